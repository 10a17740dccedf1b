r"""Sets of observations from a mixture of linear Gaussians: exact at every noise level.

    theta ~ N(0, I),    p(x|theta) = sum_k w_k N(x; a_k theta, S_k),    a_k a number

The base of three problems of Geffner, Papamakarios & Mnih (2023), whose answers are
known for any number n of observations:

*One observation.* p(theta|x) = sum_k pi_k N(mu_k, C_k) with
C_k = (I + a_k^2 S_k^-1)^-1, mu_k = a_k C_k S_k^-1 x and pi_k proportional to
w_k N(x; 0, a_k^2 I + S_k). Under a variance-preserving diffusion,
theta_t = m theta + s e with m^2 + s^2 = 1, it stays a mixture:

    p_t(theta_t|x) = sum_k pi_k N(theta_t; m mu_k, m^2 C_k + s^2 I)

*A set.* The product over n observations is a mixture with one component for each
assignment c of observations to components: precision I + sum_j a_{c_j}^2 S_{c_j}^-1.
All K^n are enumerated where they are at most 1024 (n <= 10 for K = 2). Beyond, many
independent Gibbs chains alternate c|theta and theta|c, with a Metropolis move from
theta to -theta, which connects modes that a sign keeps apart. Do not use the chains
for small sets: one component of each observation traps them.

Reference: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, appendix C.
"""

import itertools
import math

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    MixtureSameFamily,
    MultivariateNormal,
)

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.base import ScoredSimulator

MAX_COMPONENTS = 1024


class LinearGaussianMixture(ScoredSimulator):
    """A simulator whose noise and sign are drawn from a few known choices.

    Args:
        weights: Probabilities w of the components `(K,)`.
        factors: The numbers a `(K,)`.
        covariances: The matrices S `(K, dim, dim)`.

    Raises:
        InvalidInputError: If a shape does not fit, weights are not probabilities, or a
            covariance is not positive definite.

    Example:
        >>> weights, factors = torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0])
        >>> covariances = torch.eye(2).repeat(2, 1, 1)
        >>> simulator = LinearGaussianMixture(weights, factors, covariances)
        >>> theta = simulator.prior.sample((1,))
        >>> x_set = simulator(theta.expand(3, -1))  # (n, dim)
        >>> simulator.exact_posterior(x_set).sample((10,)).shape
        torch.Size([10, 2])
    """

    def __init__(self, weights: Tensor, factors: Tensor, covariances: Tensor) -> None:
        weights, factors = weights.double(), factors.double()
        covariances = covariances.double()
        num, dim = len(weights), covariances.shape[-1]
        if factors.shape != (num,) or covariances.shape != (num, dim, dim):
            raise InvalidInputError(
                f"factors and covariances must be ({num},) and ({num}, dim, dim), got "
                f"{tuple(factors.shape)} and {tuple(covariances.shape)}."
            )
        if not (weights > 0).all() or abs(float(weights.sum()) - 1) > 1e-6:
            raise InvalidInputError(
                f"weights must be positive and sum to 1, got {weights.tolist()}."
            )
        cholesky, failed = torch.linalg.cholesky_ex(covariances)
        if failed.any():
            raise InvalidInputError(
                "covariances must be symmetric and positive definite, got eigenvalues "
                f"{torch.linalg.eigvalsh(covariances).tolist()}."
            )
        self.weights, self.factors, self.covariances = weights, factors, covariances
        self._cholesky = cholesky
        self._precision = torch.cholesky_inverse(cholesky)
        identity = torch.eye(dim).double()
        squares = factors.square()[:, None, None]
        self._single_covariance = torch.linalg.inv(identity + squares * self._precision)
        self._evidence = squares * identity + covariances
        self.prior = MultivariateNormal(torch.zeros(dim), torch.eye(dim))
        self.shape_x = torch.Size([dim])

    def _simulate(self, theta: Tensor) -> Tensor:
        k = torch.multinomial(self.weights, len(theta), replacement=True)
        noise = torch.randn(len(theta), self.dim_theta, 1, dtype=theta.dtype)
        return self.factors[k, None] * theta + (self._cholesky[k] @ noise).squeeze(-1)

    def _component_log_probs(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log w_k N(x; a_k theta, S_k), `(batch, K)`."""
        residual = x[..., None, :] - self.factors[:, None] * theta[..., None, :]
        return self.weights.log() + _log_normal(residual, self.covariances)

    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return self._component_log_probs(theta, x).logsumexp(-1)

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        odds = self._component_log_probs(theta, x).softmax(-1)
        residual = x[..., None, :] - self.factors[:, None] * theta[..., None, :]
        pulls = torch.einsum("kij,bkj->bki", self._precision, residual)
        return (odds[..., None] * self.factors[:, None] * pulls).sum(-2)

    # one observation, at any noise level

    def _diffused(self, mean_factor: float, x: Tensor) -> tuple[Tensor, ...]:
        """Log pi `(n, K)`, means `(n, K, dim)` and covariances `(K, dim, dim)`."""
        log_pi = self.weights.log() + _log_normal(x[:, None, :], self._evidence)
        gain = self.factors[:, None, None] * self._single_covariance @ self._precision
        means = mean_factor * torch.einsum("kij,nj->nki", gain, x)
        identity = torch.eye(self.dim_theta).double()
        spread = mean_factor**2 * self._single_covariance
        return log_pi.log_softmax(-1), means, spread + (1 - mean_factor**2) * identity

    def diffused_log_prob(self, theta: Tensor, mean_factor: float, x: Tensor) -> Tensor:
        """Log density of every diffused single-observation posterior.

        Args:
            theta: Diffused parameters theta_t `(batch, dim)`.
            mean_factor: The m of the noise level, between 0 and 1.
            x: Observations `(n, dim)`.

        Returns:
            log p_t(theta_t|x_j), `(batch, n)`, differentiable in `theta`.

        Raises:
            InvalidInputError: If a shape or the noise level does not fit.
        """
        rows, x = self._check_theta(theta), self._check_x(x)
        _check_mean_factor(mean_factor)
        log_pi, means, covariances = self._diffused(mean_factor, x)
        residual = rows[:, None, None, :] - means
        return (log_pi + _log_normal(residual, covariances)).logsumexp(-1).to(theta)

    @torch.no_grad()
    def diffused_score(self, theta: Tensor, mean_factor: float, x: Tensor) -> Tensor:
        """Posterior score of every single observation, in closed form.

        Args:
            theta: Diffused parameters theta_t `(batch, dim)`.
            mean_factor: The m of the noise level, between 0 and 1.
            x: Observations `(n, dim)`.

        Returns:
            grad log p_t(theta_t|x_j) with respect to theta_t, `(batch, n, dim)`.

        Raises:
            InvalidInputError: If a shape or the noise level does not fit.
        """
        rows, x = self._check_theta(theta), self._check_x(x)
        _check_mean_factor(mean_factor)
        log_pi, means, covariances = self._diffused(mean_factor, x)
        precision = torch.linalg.inv(covariances)
        # Whitened, a squared distance is one matrix product and no (batch, n, K, dim).
        pull = torch.einsum("kij,bj->bki", precision, rows)
        centre = torch.einsum("kij,nkj->nki", precision, means)
        if len(self.weights) == 1:
            return (centre[None, :, 0] - pull[:, None, 0]).to(theta)
        square = (pull * rows[:, None]).sum(-1)[:, None] + (centre * means).sum(-1)
        square = square - 2 * torch.einsum("bi,nki->bnk", rows, centre)
        odds = log_pi - 0.5 * (square + torch.logdet(covariances))
        odds = odds.softmax(-1)
        score = torch.einsum("bnk,nki->bni", odds, centre)
        return (score - torch.einsum("bnk,bki->bni", odds, pull)).to(theta)

    # sets

    @torch.no_grad()
    def exact_posterior(self, x_o: Tensor) -> MixtureSameFamily:
        """Posterior given a set, by enumeration of all assignments.

        Args:
            x_o: The set `(n, dim)`, or one observation `(dim,)`.

        Returns:
            A Gaussian mixture with K^n components over `(dim,)`, in float64.

        Raises:
            InvalidInputError: If `x_o` is not finite, has another shape, or needs more
                than 1024 components: use `reference_samples` then.
        """
        x_o = self._check_set(x_o)
        num = len(self.weights) ** len(x_o)
        if num > MAX_COMPONENTS:
            raise InvalidInputError(
                f"x_o: expected a set with at most {MAX_COMPONENTS} components, got "
                f"{num} for {len(x_o)} observations. Use reference_samples."
            )
        choices = range(len(self.weights))
        c = torch.tensor(list(itertools.product(choices, repeat=len(x_o))))
        precision, linear, log_constant = self._natural(c, x_o)
        covariance = torch.linalg.inv(precision)
        covariance = (covariance + covariance.mT) / 2
        mean = (covariance @ linear.unsqueeze(-1)).squeeze(-1)
        logits = log_constant + 0.5 * (linear * mean).sum(-1)
        logits = logits + 0.5 * torch.logdet(covariance)
        return MixtureSameFamily(
            Categorical(logits=logits), MultivariateNormal(mean, covariance)
        )

    @torch.no_grad()
    def reference_samples(
        self, num_samples: int, x_o: Tensor, num_sweeps: int = 100
    ) -> Tensor:
        """Independent posterior samples given a set of any size.

        Args:
            num_samples: Number of samples.
            x_o: The set `(n, dim)`, or one observation `(dim,)`.
            num_sweeps: Length of each Gibbs chain, where chains are needed.

        Returns:
            `(num_samples, dim)`, in float64: exact draws up to 1024 components, and
            the ends of `num_samples` independent chains beyond.

        Raises:
            InvalidInputError: If `x_o` is not finite or has another shape.
        """
        x_o = self._check_set(x_o)
        if len(self.weights) ** len(x_o) <= MAX_COMPONENTS:
            return self.exact_posterior(x_o).sample((num_samples,))
        start = torch.randn(num_samples, self.dim_theta, dtype=torch.float64)
        return self._gibbs(start, x_o, num_sweeps)

    def _gibbs(self, theta: Tensor, x: Tensor, num_sweeps: int) -> Tensor:
        for _ in range(num_sweeps):
            odds = self._component_log_probs(theta[:, None], x)
            c = Categorical(logits=odds).sample()
            precision, linear, _ = self._natural(c, x)
            cholesky = torch.linalg.cholesky(precision)
            mean = torch.cholesky_solve(linear.unsqueeze(-1), cholesky)
            noise = torch.randn_like(mean)
            step = torch.linalg.solve_triangular(cholesky.mT, noise, upper=True)
            theta = (mean + step).squeeze(-1)
            # The prior is symmetric, so the likelihood alone decides on a flip.
            gain = self._set_log_prob(-theta, x) - self._set_log_prob(theta, x)
            flip = torch.rand_like(gain).log() < gain
            theta = torch.where(flip[:, None], -theta, theta)
        return theta

    def _set_log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return self._component_log_probs(theta[:, None], x).logsumexp(-1).sum(-1)

    def _natural(self, c: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Precision, linear term and constant for assignments c `(batch, n)`."""
        counts = torch.nn.functional.one_hot(c, len(self.weights)).double()
        squares = self.factors.square()[:, None, None] * self._precision
        precision = torch.eye(self.dim_theta).double() + torch.einsum(
            "bk,kij->bij", counts.sum(1), squares
        )
        pull = self.factors[:, None, None] * self._precision
        pull = torch.einsum("kij,nj->nki", pull, x)
        linear = torch.einsum("bnk,nki->bi", counts, pull)
        at_zero = self.weights.log() + _log_normal(x[:, None, :], self.covariances)
        return precision, linear, torch.einsum("bnk,nk->b", counts, at_zero)

    def _check_set(self, x_o: Tensor) -> Tensor:
        if isinstance(x_o, Tensor) and x_o.shape == self.shape_x:
            x_o = x_o.unsqueeze(0)
        return self._check_x(x_o)


def _log_normal(residual: Tensor, covariances: Tensor) -> Tensor:
    """Log N(residual; 0, covariance) for `(..., K, dim)` and `(K, dim, dim)`."""
    precision = torch.linalg.inv(covariances)
    pull = torch.einsum("...ki,kij->...kj", residual, precision)
    square = (pull * residual).sum(-1)
    log_det = torch.logdet(covariances)
    return -0.5 * (square + log_det + residual.shape[-1] * math.log(2 * math.pi))


def _check_mean_factor(mean_factor: float) -> None:
    if not 0 <= mean_factor <= 1:
        raise InvalidInputError(
            f"mean_factor: expected a number between 0 and 1, got {mean_factor}."
        )
