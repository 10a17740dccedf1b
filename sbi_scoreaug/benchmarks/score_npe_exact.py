r"""Table 1 of score_npe: with exact scores, what error is the sampler's alone?

For each problem and number n of observations fresh sets are drawn, every sampler runs
on the exact scores of single observations, and its samples are held against exact ones
(`score_npe_metrics`). References are enumerated up to n = 10, and the ends of Gibbs
chains of 30 sweeps beyond (20 could not be told from 60 on other sets). *Perfect draws*
are a second exact sample: the floor.

Peers are sbi's iid methods in its Euler-Maruyama sampler with all defaults (500 steps),
given the same exact scores. An evaluation is one call for all observations.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from sbi.neural_nets.estimators.score_estimator import VPScoreEstimator
from torch import Tensor, nn

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.benchmarks.score_npe_metrics import METRICS, Reference, join
from sbi_scoreaug.score_npe import ComposedScore, VPSchedule, sample_set
from sbi_scoreaug.simulators import (
    GaussianGaussian,
    GaussianMixtureLikelihood,
    LinearGaussianMixture,
    SignFlip,
)

SCHEDULE, NUM_EXACT, NUM_SWEEPS = VPSchedule(), 2000, 30
PROBLEMS: dict[str, Callable[[], LinearGaussianMixture]] = {
    "Gaussian": GaussianGaussian,
    "mixture": GaussianMixtureLikelihood,
    "flip .5": lambda: SignFlip(0.5),
    "flip .7": lambda: SignFlip(0.7),
    "correlated": lambda: GaussianGaussian(correlation=0.8),
    "unequal": lambda: GaussianGaussian(variances=torch.logspace(-2, 2, 10)),
}
SIZES = (1, 2, 8, 32, 100, 1000)
GAUSSIAN = ("Gaussian", "correlated", "unequal")
OWN: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto, no polish": {"polish": False},
    "auto, no jump": {"polish": True, "jump": False},
    "gauss": {"sampler": "gauss"},
    "composed": {"sampler": "composed"},
    "langevin": {"sampler": "langevin"},
}
FLOOR = "perfect draws"


class Limit(NamedTuple):
    """What a method is run on, where 10 sets at every n take too long."""

    sizes: tuple[int, ...]
    sets: int
    samples: int = 1000


# In the order in which they run. One observation needs no iid method of the host's, so
# that "sbi fnpe" at n = 1 stands for all of them.
LIMITS: dict[str, tuple[Limit, ...]] = {
    "composed": (Limit((1, 2, 8, 32, 100), 10),),
    "sbi fnpe": (Limit((1, 2, 8, 32, 100), 10), Limit((1000,), 3)),
    "gauss": (Limit((1, 2, 8, 32, 100), 10), Limit((1000,), 3)),
    "sbi gauss": (Limit((2, 8, 32, 100), 10), Limit((1000,), 3)),
    "sbi auto_gauss": (Limit((2, 8), 10), Limit((32, 100), 3)),
    "langevin": (Limit((1, 2, 8, 32), 3, 500),),
    "sbi jac_gauss": (Limit((2, 8), 3, 300),),
}


FAST = (FLOOR, "auto", "auto, no polish", "auto, no jump")
EXACT_METHODS = (*FAST, *LIMITS)


class ExactScores(VPScoreEstimator):
    """A host's estimator whose scores are the simulator's, differentiable in theta."""

    def __init__(self, simulator: LinearGaussianMixture) -> None:
        dim = torch.Size([simulator.dim_theta])
        super().__init__(nn.Linear(1, 1), dim, simulator.shape_x)  # type: ignore[arg-type]
        self.simulator, self.calls = simulator, 0

    def forward(
        self, input: Tensor, condition: Tensor, time: Tensor, **_: Any
    ) -> Tensor:
        """Return the scores of theta_t `(..., dim)` given x, one time for all."""
        self.calls += 1
        m = SCHEDULE.mean(float(time.flatten()[0]))
        lead, dim = condition.shape[:-1], input.shape[-1]
        log_pi, means, covariances = self.simulator._diffused(
            m, condition.reshape(-1, dim).double()
        )
        log_pi, means = log_pi.reshape(*lead, -1), means.reshape(*lead, -1, dim)
        cholesky = torch.linalg.cholesky(covariances)
        log_det = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        precision = torch.cholesky_inverse(cholesky).to(input)
        residual = input.unsqueeze(-2) - means.to(input)
        pull = torch.einsum("kij,...kj->...ki", precision, residual)
        odds = (log_pi - log_det).to(input) - 0.5 * (residual * pull).sum(-1)
        return -(odds.softmax(-1).unsqueeze(-1) * pull).sum(-2)


@lru_cache(maxsize=128)
def draw_set(problem: str, num_observations: int, seed: int) -> tuple[Tensor, Any]:
    """Return a fresh set `(n, dim)` and its exact posterior's samples."""
    simulator = PROBLEMS[problem]()
    torch.manual_seed(seed)
    theta = simulator.prior.sample(torch.Size([1])).double()
    x = simulator(theta.expand(num_observations, -1))
    return x, Reference(simulator.reference_samples(NUM_EXACT, x, NUM_SWEEPS))


def run_own(
    simulator: LinearGaussianMixture, x: Tensor, num_samples: int, **options: Any
) -> tuple[Tensor, int]:
    """Return samples and evaluations of one of our samplers."""

    def posterior_score(theta: Tensor, t: float, x: Tensor) -> Tensor:
        return simulator.diffused_score(theta, SCHEDULE.mean(t), x)

    score = ComposedScore(posterior_score, x)
    samples, diagnostics = sample_set(
        score, SCHEDULE, num_samples, simulator.dim_theta, **options
    )
    return samples, diagnostics.evaluations


def run_peer(
    simulator: LinearGaussianMixture, x: Tensor, num_samples: int, iid_method: str
) -> tuple[Tensor, int]:
    """Return samples and evaluations of one of the host's methods."""
    estimator = ExactScores(simulator)
    posterior = VectorFieldPosterior(estimator, simulator.prior)
    samples = or_nan(
        posterior.sample,
        (num_samples,),
        x=x.float(),
        iid_method=iid_method,
        show_progress_bars=False,
        reject_outside_prior=False,
    )
    return samples.double(), estimator.calls


def or_nan(sample: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Return samples, or one NaN where the host raises since all of them are NaN."""
    try:
        return sample(*args, **options)
    except RuntimeError as error:
        if "All samples NaN" not in str(error):
            raise
        return torch.full((1, 1), float("nan"))


def exact_cell(
    problem: str, method: str, num_observations: int, sets: int, samples: int, seed: int
) -> Row:
    """Run one sampler on `sets` fresh sets; per-set figures are joined."""
    simulator, found = PROBLEMS[problem](), []
    for k in range(sets):
        x, reference = draw_set(problem, num_observations, seed + k)
        torch.manual_seed(seed + k + 500_000)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that were shrunk, for one
            if method == FLOOR:
                drawn = simulator.reference_samples(samples, x, NUM_SWEEPS)
                calls = 0
            elif method in OWN:
                drawn, calls = run_own(simulator, x, samples, **OWN[method])
            else:
                drawn, calls = run_peer(simulator, x, samples, method.split()[1])
        seconds = time.process_time() - start
        finite = drawn.isfinite().all(1)
        failed = {**dict.fromkeys(METRICS, float("nan"))}
        errors = reference.errors(drawn) if finite.all() else failed
        found.append({**errors, "evaluations": calls, "cpu": seconds})
    return {key: join([one[key] for one in found]) for key in found[0]}


def exact_cells(quick: bool, methods: Sequence[str], seed: int) -> list[Row]:
    """Return the settings of table 1, the fast methods of all problems first."""
    slow = [(name,) for name in (("composed", "sbi fnpe") if quick else LIMITS)]
    small, large = (1, 2, 8, 32, 100), (1000,)
    blocks = [(FAST, small), (FAST, large), *((group, SIZES) for group in slow)]
    return [
        cell
        for group, sizes in ([(FAST, (2, 8)), *blocks[2:]] if quick else blocks)
        for problem in PROBLEMS
        for n in sizes
        for method in group
        if method in methods and (cell := _cell(problem, method, n, quick, seed))
    ]


def _cell(problem: str, method: str, n: int, quick: bool, seed: int) -> Row | None:
    sizes = SIZES if problem in GAUSSIAN else (1, 2, 8, 32)
    limits = LIMITS.get(method, (Limit(SIZES, 10),))
    limit = next((limit for limit in limits if n in limit.sizes), None)
    if limit is None or n not in sizes:
        return None
    if quick and (n not in (2, 8) or (method not in FAST and problem != "Gaussian")):
        return None
    cell: Row = {"problem": problem, "method": method, "num_observations": n}
    sets = min(limit.sets, 2) if quick else limit.sets
    return cell | {"sets": sets, "samples": limit.samples, "seed": seed}
