r"""Trained estimators in files that hold numbers and no code.

    save_estimator(trainer.train(), "ratio.safetensors")

    trainer = ScoreAugmentedNRE(prior)            # the same arguments, nothing trained
    load_estimator("ratio.safetensors", trainer)
    posterior = trainer.build_posterior()

*What unpickling means.* sbi's way to keep a trainer or a posterior is `pickle`, and
ours can be pickled. But a pickle is a program: whoever wrote the file runs code of his
choice with your rights on the machine that loads it (`pickle.load`, and `torch.load`
without `weights_only=True`). Unpickle what you have written yourself, nothing else. A
pickle also needs the versions of sbi and of this package that it was written with.

A file written here is read without running anything in it: tensors in the safetensors
format, beside a JSON text of names, shapes and versions. The network is built again by
your own trainer, from its own arguments; the tensors are filled in by name, and the
result is refused unless it gives, at a few fixed points, the values that the saved one
gave. This serves whatever the trainer can build, sbi's own trainers included. It does
not keep data, scores and the state of a training (pickle the trainer to resume it), nor
what `AmortizedCostEstimator` knows of familiar observations.

Reference: https://huggingface.co/docs/safetensors on the format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sbi.inference.trainers.base import NeuralInference
from sbi.neural_nets.estimators import ConditionalVectorFieldEstimator
from sbi.neural_nets.estimators.base import ConditionalEstimator
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor, nn

from sbi_scoreaug._host import LikelihoodEstimatorTrainer
from sbi_scoreaug.amortized_cost import AmortizedCostEstimator
from sbi_scoreaug.amortized_cost.builder import build_cost_net
from sbi_scoreaug.amortized_cost.estimator import ExpectedCost
from sbi_scoreaug.amortized_cost.penalized_cost import PenalizedCost
from sbi_scoreaug.errors import InvalidInputError, InvalidStateError, InvalidTypeError
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator

FORMAT = "sbi_scoreaug estimator 2"
PROBE = "probe"  # the name of the values at fixed points
PRIOR = "prior"  # the name of parameters at fixed quantiles of the prior
NUM_ROWS = 100  # made up, to build a network from


def save_estimator(estimator: ConditionalEstimator, path: str | Path) -> None:
    """Write a trained estimator to a file; see the module.

    Args:
        estimator: What `train` of a trainer returned, ours or sbi's.
        path: The file; replaced if there is one, as a whole or not at all.

    Raises:
        InvalidTypeError: Something else than an estimator of sbi.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from sbi.inference import NRE_A
        >>> trainer = NRE_A(show_progress_bars=False)
        >>> theta = torch.randn(100, 2)  # (num_simulations, dim_theta)
        >>> trainer = trainer.append_simulations(theta, theta)
        >>> estimator = trainer.train(training_batch_size=50, max_num_epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_estimator(estimator, Path(folder) / "ratio.safetensors")
    """
    if not isinstance(estimator, ConditionalEstimator):
        raise InvalidTypeError(
            "estimator: expected what train() returns, got "
            f"{type(estimator).__name__}. To keep a trainer or a posterior, pickle it."
        )
    path = Path(path)
    tensors = {name: t.detach().cpu().clone() for name, t in _tensors(estimator)}
    tensors[PROBE], tensors[PRIOR] = _probe(estimator), _prior_probe(estimator)
    about = {
        "format": FORMAT,
        "estimator": _name(estimator),
        "input_shape": list(estimator.input_shape),
        "condition_shape": list(estimator.condition_shape),
        "sbi": version("sbi"),
        "torch": torch.__version__,
    }
    partial = path.with_name(f"{path.name}.part")
    try:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            partial,
            metadata={"about": json.dumps(about)},
        )
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({error}).") from error


def load_estimator(path: str | Path, trainer: Any) -> ConditionalEstimator:
    """Read an estimator into a trainer that can build it; see the module.

    Args:
        path: A file of `save_estimator`.
        trainer: A trainer with the arguments of the one that trained it (prior,
            network, device). Its `build_posterior()` uses the estimator from now on.

    Returns:
        The estimator, in evaluation mode, on the trainer's device.

    Raises:
        InvalidInputError: The file is no such file, or holds another network than the
            trainer builds; the trainer is left as it was.
        InvalidTypeError: `trainer` is no trainer.
        InvalidStateError: `trainer` was unpickled and cannot build a network.
        FileNotFoundError: There is no file.

    Example:
        >>> import tempfile
        >>> from sbi_scoreaug import ScoreAugmentedNRE
        >>> from sbi_scoreaug.simulators import LinearGaussian
        >>> prior = LinearGaussian().prior
        >>> theta = prior.sample((100,))
        >>> trainer = ScoreAugmentedNRE(prior, show_progress_bars=False)
        >>> estimator = trainer.append_simulations(theta, theta).train(max_num_epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_estimator(estimator, f"{folder}/ratio.safetensors")
        ...     other = ScoreAugmentedNRE(prior, show_progress_bars=False)
        ...     loaded = load_estimator(f"{folder}/ratio.safetensors", other)
        >>> torch.equal(estimator(theta, theta), loaded(theta, theta))
        True
    """
    if not isinstance(trainer, NeuralInference):
        raise InvalidTypeError(
            f"trainer: expected a trainer of sbi or ours, got {type(trainer).__name__}."
        )
    about, tensors = _read(Path(path))
    expected, expected_prior = tensors.pop(PROBE), tensors.pop(PRIOR)
    target: Any = trainer  # the host declares no network
    estimator = _build(target, about)
    if _name(estimator) != about["estimator"]:
        raise InvalidInputError(
            f"{path}: expected a network that the trainer builds, a {_name(estimator)},"
            f" got a {about['estimator']}. Give the trainer the arguments of the one "
            "that trained it."
        )
    prior = _prior_probe(estimator)
    if not _same(prior, expected_prior):
        raise InvalidInputError(
            f"{path}: expected the prior of the trainer, under which the network sees "
            f"{prior[0].tolist()}, got {expected_prior[0].tolist()} at the same point. "
            "Give the trainer the prior of the one that trained it."
        )
    _fill(estimator, tensors, path)
    estimator.eval()
    if not _same(_probe(estimator), expected):
        raise InvalidInputError(
            f"{path}: expected the network that the trainer builds, got one of its "
            "shapes with other values. Give the trainer the arguments (prior, network, "
            "activation) of the one that trained it."
        )
    target._neural_net = estimator.to(target._device)
    return estimator


def _name(estimator: nn.Module) -> str:
    return f"{type(estimator).__module__}.{type(estimator).__qualname__}"


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and all buffers, also those that are not persistent."""
    yield from module.named_parameters()
    yield from module.named_buffers()


@torch.no_grad()
def _probe(estimator: ConditionalEstimator) -> Tensor:
    """Return what the estimator says at three fixed pairs, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    shapes = (estimator.input_shape, estimator.condition_shape)
    first, second = (torch.randn(3, *shape, generator=generator) for shape in shapes)
    device = next(t for _, t in _tensors(estimator)).device
    first, second = first.to(device), second.to(device)
    net, training = cast(Any, estimator), estimator.training
    net.eval()
    if isinstance(estimator, RatioEstimator):
        values = net(first, second)
    elif isinstance(estimator, ExpectedCost):
        values = net(second, first)  # its input is x
    elif isinstance(estimator, ConditionalVectorFieldEstimator):
        values = net(first, second, torch.full((3,), 0.5, device=device))
    else:
        values = net.log_prob(first.unsqueeze(0), second)
    net.train(training)
    return values.float().cpu().contiguous()


@torch.no_grad()
def _prior_probe(estimator: Any) -> Tensor:
    """Return parameters at fixed z where the prior is part of the network, else 0s."""
    if not isinstance(estimator, FactorizedScoreEstimator):
        return torch.zeros(1)
    device = next(t for _, t in _tensors(estimator)).device
    z = torch.linspace(-1.0, 1.0, 3).expand(estimator.input_shape.numel(), 3).mT
    return estimator.from_z(z.to(device)).float().cpu().contiguous()


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(
        first, second, 1e-3, 1e-4, equal_nan=True
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says of itself, and its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise InvalidInputError(
            f"{path}: expected a file of save_estimator, got something else ({error})."
        ) from error
    if about.get("format") != FORMAT or not {PROBE, PRIOR} <= set(tensors):
        raise InvalidInputError(
            f"{path}: expected {FORMAT!r}, got {about.get('format')!r}. Was it written "
            "by save_estimator of this version?"
        )
    return about, tensors


def _build(trainer: Any, about: dict[str, Any]) -> ConditionalEstimator:
    """Return a network of the trainer, built from made-up data of the right shapes."""
    build, prior = trainer._build_neural_net, trainer._prior
    if build is None:
        raise InvalidStateError(
            "trainer: expected one that can build its network, got one that was "
            "unpickled. Create it anew."
        )
    shapes = about["input_shape"], about["condition_shape"]
    if isinstance(trainer, LikelihoodEstimatorTrainer):
        shapes = shapes[::-1]  # the network's input is x there
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theta, x = (torch.randn(NUM_ROWS, *shape) for shape in shapes)
        try:
            if hasattr(prior, "sample"):
                theta = prior.sample((NUM_ROWS,)).cpu().reshape(theta.shape)
            if not isinstance(trainer, AmortizedCostEstimator):
                return build(theta, x)
            distance = deepcopy(trainer.distance).cpu().fit(x)
            penalty = about["estimator"].endswith(PenalizedCost.__qualname__)
            return build_cost_net(build, theta, x, distance, penalty)
        except Exception as error:  # Builders are foreign code: whatever they raise.
            raise InvalidInputError(
                "path: expected a network that the trainer can build, got one of "
                f"parameters {shapes[0]} and data {shapes[1]}, on which its builder "
                f"fails ({type(error).__name__}: {error})."
            ) from error


@torch.no_grad()
def _fill(estimator: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Set every parameter and buffer; only buffers may have another shape."""
    own = dict(_tensors(estimator))
    for name, value in tensors.items():
        parent, _, leaf = name.rpartition(".")
        known = own.pop(name, None)
        if isinstance(known, nn.Parameter) and known.shape == value.shape:
            known.copy_(value)
            continue
        try:
            module = estimator.get_submodule(parent)
        except AttributeError:
            module = None
        if module is None or leaf not in module._buffers:
            _refuse(path, name, value, known)
        else:
            module._buffers[leaf] = value.clone()
    for name, known in own.items():
        _refuse(path, name, None, known)


def _refuse(path: str | Path, name: str, value: Any, known: Any) -> None:
    got, expected = (
        "nothing" if t is None else f"shape {tuple(t.shape)}" for t in (value, known)
    )
    raise InvalidInputError(
        f"{path}: expected {expected} as {name!r} in the network that the trainer "
        f"builds, got {got}. Give the trainer the arguments of the one that trained it."
    )
