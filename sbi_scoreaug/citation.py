"""What to cite for a result."""

from __future__ import annotations

from typing import Any

from sbi_scoreaug.amortized_cost import AmortizedCostEstimator
from sbi_scoreaug.errors import InvalidTypeError
from sbi_scoreaug.score_augmented.trainer import ScoreTerm
from sbi_scoreaug.score_npe import ScoreNPE

SBI = r"""@article{tejerocantero2020sbi,
  title = {{sbi}: A toolkit for simulation-based inference},
  author = {Tejero-Cantero, Alvaro and Boelts, Jan and Deistler, Michael and
            Lueckmann, Jan-Matthis and Durkan, Conor and Gon{\c{c}}alves, Pedro J. and
            Greenberg, David S. and Macke, Jakob H.},
  journal = {Journal of Open Source Software},
  volume = {5},
  number = {52},
  pages = {2505},
  year = {2020},
  doi = {10.21105/joss.02505}
}"""

PAPERS = {
    ScoreTerm: r"""@article{shen2026keeping,
  title = {Keeping Score: Efficiency Improvements in Neural Likelihood Surrogate
           Training via Score-Augmented Loss Functions},
  author = {Shen, Alexander and Kuusela, Mikael},
  year = {2026},
  eprint = {2605.12118},
  archivePrefix = {arXiv}
}""",
    ScoreNPE: r"""@inproceedings{geffner2023compositional,
  title = {Compositional Score Modeling for Simulation-Based Inference},
  author = {Geffner, Tomas and Papamakarios, George and Mnih, Andriy},
  booktitle = {International Conference on Machine Learning},
  year = {2023},
  eprint = {2209.14249},
  archivePrefix = {arXiv}
}""",
    AmortizedCostEstimator: r"""@inproceedings{gao2023generalized,
  title = {Generalized Bayesian Inference for Scientific Simulators via Amortized Cost
           Estimation},
  author = {Gao, Richard and Deistler, Michael and Macke, Jakob H.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023},
  eprint = {2305.15208},
  archivePrefix = {arXiv}
}""",
}


def citation(trainer: Any) -> str:
    """Return the BibTeX entries of what a trainer of this package stands on.

    Args:
        trainer: A trainer, or its class.

    Raises:
        InvalidTypeError: Something else.

    Example:
        >>> print(citation(ScoreNPE).splitlines()[0])
        @inproceedings{geffner2023compositional,
    """
    cls = trainer if isinstance(trainer, type) else type(trainer)
    entries = [entry for base, entry in PAPERS.items() if issubclass(cls, base)]
    if not entries:
        raise InvalidTypeError(
            "trainer: expected a trainer of sbi_scoreaug or its class, got "
            f"{cls.__name__}."
        )
    return "\n\n".join([*entries, SBI])
