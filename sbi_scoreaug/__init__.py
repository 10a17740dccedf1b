"""A plugin to sbi for simulators that can say more than a sample."""

__version__ = "0.1.0"
