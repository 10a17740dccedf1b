r"""What a distance between simulations and targets is.

A distance d(x, x_t) replaces the likelihood: the network learns its expectation over
x ~ p(x | theta). Each class states

    on_sets         whether an event is a set of trials (n, dim) instead of one point
    lower_bound     the least value that it can take
    differentiable  whether it has gradients in x, so that particles can be trained
    features        phi with d = mean_k (phi_k(x) - phi_k(x_t))^2, where there is one

and `fit` freezes its scales from prior predictive simulations, so that a distance does
not change between rounds.

How to implement your own: any function (x, x_t) -> (batch,) will do; subclass
`Distance` to declare what is known. Every generic test runs on the names in DISTANCES.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from __future__ import annotations

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sbi_scoreaug.errors import InvalidTypeError


class Distance(nn.Module, ABC):
    """A distance on batches; see the module's docstring for its attributes.

    Example:
        >>> import torch
        >>> class Chebyshev(Distance):
        ...     def forward(self, x, x_t):
        ...         return (x - x_t).abs().amax(1)
        >>> distance = Chebyshev().fit(torch.randn(50, 2))
        >>> distance(torch.zeros(1, 2), torch.tensor([[3.0, -4.0]]))
        tensor([4.])
    """

    on_sets: bool = False
    lower_bound: float = 0.0
    differentiable: bool = True

    def fit(self, x: Tensor) -> Distance:
        """Freeze the scales from simulations `(num_simulations, *shape_x)`."""
        return self

    def features(self, x: Tensor) -> Tensor | None:
        """Return phi(x) `(batch, num_features)`, None if d is not quadratic."""
        return None

    @abstractmethod
    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return d(x, x_t) `(batch,)` of rows `(batch, *shape_x)` each."""


class CallableDistance(Distance):
    """A user's function `(x, x_t) -> (batch,)`.

    Args:
        function: The distance of `x` and `x_t`, both `(batch, *shape_x)`.
        on_sets: Whether events are sets of trials, with NaN rows for missing ones.
        lower_bound: The least value that it can take, minus infinity if unknown.
        differentiable: Whether it has useful gradients in x.

    Example:
        >>> import torch
        >>> distance = CallableDistance(lambda x, x_t: (x - x_t).abs().amax(1))
        >>> distance(torch.zeros(1, 2), torch.tensor([[3.0, -4.0]]))
        tensor([4.])
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        *,
        on_sets: bool = False,
        lower_bound: float = -math.inf,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.function = function
        self.on_sets = on_sets
        self.lower_bound = lower_bound
        self.differentiable = differentiable

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(x, x_t)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallableDistance:
        return CallableDistance(
            self.function,
            on_sets=self.on_sets,
            lower_bound=self.lower_bound,
            differentiable=self.differentiable,
        )

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickle.dumps(self.function)
        except Exception as error:
            raise InvalidTypeError(
                "distance: expected a function that can be pickled, got "
                f"{self.function!r}. Define it with `def` at the top of a module "
                "instead of as a lambda or inside a function; nothing is lost, train "
                "and sample on in this session."
            ) from error
        return dict(self.__dict__)
