"""Whether a model starts from draws or from weights that were trained before.

A fresh matrix is drawn element by element, so the mean squares of its rows differ only by chance,
and those of its columns too; an orthogonal one has no differences at all. Training makes some rows
and columns several times larger than others. A norm whose weights differ was trained as well.
Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tsx.diagnostics.loop.updates import is_measurable

MAX_MATRICES = 32  # spread over the model
MAX_ELEMENTS = 1_000_000  # of one matrix
LEAST_SIDE = 4  # rows and columns: fewer say nothing about their spread
MAX_SPREAD = 2.0  # times what chance makes; trained matrices show 4 and more
MAX_NORM_SPREAD = 0.01  # of the weights of one norm, against their mean


def measure_draws(model: nn.Module) -> Tensor | None:
    """Return [matrices, 2] on the model's device: how far each is from a draw; None without any.

    The first column is the spread of a matrix over what chance makes, NaN where it is all zero; the
    second the spread of a norm's weights. A matrix has 0 in the second, a norm NaN in the first.
    """
    matrices = [p.detach() for p in model.parameters() if _is_matrix(p)]
    every = max(1, len(matrices) // MAX_MATRICES)
    rows = [_measure_matrix(matrix) for matrix in matrices[::every][:MAX_MATRICES]]
    rows += [
        torch.stack([norm.new_tensor(float("nan")), norm.std() / norm.abs().mean()])
        for norm in list(_iter_norms(model))[:MAX_MATRICES]
    ]
    return torch.stack([row.to(rows[0]) for row in rows]) if rows else None


def looks_drawn(measured: Sequence[Sequence[float]]) -> bool:
    """Return whether what `measure_draws` has measured says that nothing was trained before."""
    if any(spread > MAX_NORM_SPREAD for _, spread in measured):
        return False
    spreads = [spread for spread, _ in measured if spread == spread]
    return 2 * sum(spread <= MAX_SPREAD for spread in spreads) >= len(spreads)


def _is_matrix(param: Tensor) -> bool:
    if param.ndim < 2 or not is_measurable(param) or not param.is_floating_point():
        return False
    return type(param.data) is Tensor and min(_flatten(param.shape)) >= LEAST_SIDE


def _flatten(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns: filters for a convolution, all rows of all experts for a stack."""
    columns = 1
    for size in shape[1:] if len(shape) > 3 else shape[-1:]:
        columns *= size
    rows = shape[0] if len(shape) > 3 else torch.Size(shape[:-1]).numel()
    return rows, columns


def _measure_matrix(matrix: Tensor) -> Tensor:
    rows, columns = _flatten(matrix.shape)
    flat = matrix.reshape(rows, columns)[: max(LEAST_SIDE, MAX_ELEMENTS // columns)].float()
    squares = flat.square()
    worst = torch.maximum(_spread(squares.mean(1), columns), _spread(squares.mean(0), len(flat)))
    return torch.stack([worst, worst.new_zeros(())])


def _spread(means: Tensor, count: int) -> Tensor:
    """Return the spread of mean squares over `count` elements, against a normal draw's."""
    spread: Tensor = means.std() / means.mean() / (2.0 / count) ** 0.5
    return spread


def _iter_norms(model: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of norms."""
    for module in model.modules():
        # As an attribute a parametrized weight would be made anew, which moves a spectral norm.
        weight = module._parameters.get("weight")
        if "Norm" not in type(module).__name__ or weight is None:
            continue
        if weight.ndim == 1 and weight.numel() > 1 and is_measurable(weight):
            yield weight.detach().float()
