r"""Classifier two-sample tests of many pairs of samples at once.

The classifier is that of the paper and of sbi's `c2st(classifier="mlp")`: two hidden
layers of 10 dim ReLU units on standardized parameters, trained by Adam on all folds but
one, its accuracy measured on that one. Here the networks of all pairs and folds are
trained side by side, which costs a tenth of one random forest (sbi's default) each.

The accuracy of *any* classifier is at most 1/2 + TV/2 in expectation, TV the total
variation between the two densities, which the grids of `amortized_cost_figures` give
without sampling.

Reference: Lopez-Paz & Oquab (2017), arXiv 1610.06545.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Layer = tuple[Tensor, Tensor]


def two_sample_accuracies(
    one: Tensor,
    other: Tensor,
    num_folds: int = 5,
    num_steps: int = 400,
    batch_size: int = 200,
    learning_rate: float = 5e-3,
) -> Tensor:
    """Return held-out accuracies `(num_pairs,)`; .5 where the classifier sees nothing.

    Args:
        one: Samples `(num_pairs, num_samples, dim)`.
        other: Samples of the same shape.
        num_folds: Folds of the cross-validation.
        num_steps: Steps of Adam.
        batch_size: Rows in a step, of each network.
        learning_rate: At first; it falls to zero along a line.

    Example:
        >>> x = torch.randn(2, 500, 1)
        >>> two_sample_accuracies(x, torch.stack([x[0] + 9, x[1]])).round()
        tensor([1., 0.])
    """
    rows = torch.cat([one, other], dim=1)
    rows = (rows - one.mean(1, keepdim=True)) / one.std(1, keepdim=True).clamp(1e-12)
    num_pairs, num_rows, dim = rows.shape
    label = (torch.arange(num_rows) >= one.shape[1]).float()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(1)
        order = torch.randperm(num_rows)
        rows, label = rows[:, order], label[order]
        fold = torch.arange(num_rows) * num_folds // num_rows
        train = [(fold != k).nonzero().flatten() for k in range(num_folds)]
        layers = _layers(num_pairs * num_folds, (dim, 10 * dim, 10 * dim, 1))
        parameters = [value for layer in layers for value in layer]
        optimizer = torch.optim.Adam(parameters, learning_rate)
        for step in range(num_steps):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
            chosen = torch.stack(
                [t[torch.randint(len(t), (batch_size,))] for t in train]
            )
            inputs = rows[:, chosen].flatten(0, 1)  # networks: pairs, then folds
            target = label[chosen].repeat(num_pairs, 1)
            logits = _forward(layers, inputs)
            # the sum, so that no network's step depends on the others
            loss = binary_cross_entropy_with_logits(logits, target, reduction="sum")
            optimizer.zero_grad()
            (loss / batch_size).backward()
            optimizer.step()
    with torch.no_grad():
        inputs = rows.repeat_interleave(num_folds, dim=0)
        right = (_forward(layers, inputs) > 0) == label.bool()
        right = right.unflatten(0, (num_pairs, num_folds))
        held_out = fold == torch.arange(num_folds).unsqueeze(1)
        return (right & held_out).sum((1, 2)) / num_rows


def _layers(num_networks: int, sizes: tuple[int, ...]) -> list[Layer]:
    layers = []
    for dim_in, dim_out in zip(sizes[:-1], sizes[1:], strict=True):
        bound = dim_in**-0.5
        weight = (2 * torch.rand(num_networks, dim_in, dim_out) - 1) * bound
        bias = (2 * torch.rand(num_networks, 1, dim_out) - 1) * bound
        layers.append((weight.requires_grad_(), bias.requires_grad_()))
    return layers


def _forward(layers: list[Layer], inputs: Tensor) -> Tensor:
    """Logits `(num_networks, rows)` of `inputs (num_networks, rows, dim)`."""
    for weight, bias in layers[:-1]:
        inputs = torch.baddbmm(bias, inputs, weight).relu()
    weight, bias = layers[-1]
    return torch.baddbmm(bias, inputs, weight).squeeze(2)
