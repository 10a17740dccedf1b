"""ScoreNPE: one network for any number of observations.

The posterior score of single observations is learned once; scores of sets are composed
when sampling (Geffner, Papamakarios & Mnih 2023, arXiv 2209.14249).

Which sampler when, `build_posterior(sample_with=...)`; n is the number of observations,
an evaluation is one of the composed score:

========  ===========  ================================================================
name      evaluations  when
========  ===========  ================================================================
auto      25 to 99     the default, at any n. 25: the descent of `descent`; 63 for one
                       observation
..        48, 50       with Metropolis steps, for networks that were given scores,
                       have a leading mixture beside them or little `circulation`
..        97, 99       with jumps between modes too, for exact scores without a network
                       and where the mixture has nearly all of the score of a small
                       set. Or say polish=, jump= yourself
gauss     76 or more   few observations of very unequal precision; n pilot runs
langevin  20,000       the paper's Algorithm 1: slow, faithful to the paper
composed  400          the paper's Algorithm 2: right at n = 1 only, its spread tends to
                       1/sqrt(2) of the truth
sde, ode  the host's   one observation
========  ===========  ================================================================

Networks trained by denoising have large relative errors at small noise, and errors add
up over observations: polish and jumps then make samples worse, or better, depending on
the network (best at t_last=.05). Where the mixture of Gaussians beside the network has
a share of .6 or more of the score, `estimator.net.mixture.share`, Metropolis steps made
nearly all samples better, and are made; from .9 on jumps did too, for sets of up to
sqrt(N / 300), N simulations having been trained on. Scores mend most networks, but not
all between walls: there `circulation` decides with scores too. For n in the thousands
`minibatch=b` draws b observations at each evaluation and all at two centres of the
particles, and `damping=d`, a function of t with d(0) = 1,
takes less of them at large noise. `max_set_size=m` in training leaves n / m terms to be
composed. Without a network, exact scores are sampled by `sample_set`:

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.tensor([[0.5], [1.5], [1.0]])    # x_j ~ N(theta, 1), theta ~ N(0, 1)
    >>> schedule = VPSchedule()
    >>> def posterior_score(theta, t, x):          # of N(x_j / 2, 1 / 2), diffused
    ...     m = schedule.mean(t)
    ...     return (m * x / 2 - theta[:, None]) / (1 - m**2 / 2)
    >>> score = ComposedScore(posterior_score, x)
    >>> samples, diagnostics = sample_set(score, schedule, 1000, dim=1)
    >>> bool(abs(samples.mean() - 0.75) < 0.05), bool(abs(samples.std() - 0.5) < 0.05)
    (True, True)
    >>> diagnostics.evaluations
    23
"""

from sbi_scoreaug.score_npe.composition import ComposedScore
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.posterior import FactorizedPosterior
from sbi_scoreaug.score_npe.samplers import SAMPLERS, sample_set
from sbi_scoreaug.score_npe.schedule import VPSchedule
from sbi_scoreaug.score_npe.trainer import ScoreNPE

__all__ = [
    "SAMPLERS",
    "ComposedScore",
    "FactorizedPosterior",
    "SamplerDiagnostics",
    "ScoreNPE",
    "VPSchedule",
    "sample_set",
]
