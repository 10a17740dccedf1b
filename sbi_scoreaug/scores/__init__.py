"""Where scores come from and how they travel beside their simulations."""
