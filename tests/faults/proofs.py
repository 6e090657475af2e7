"""What proofs are made of: plain statements about a loop after its steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.faults.plant import Loop


def shows_at_last_step(loop: Loop) -> None:
    """Loss or gradient is not finite at the last step, and was finite at each before it."""
    assert all(step.is_finite for step in loop.seen[:-1])
    assert not loop.seen[-1].is_finite


def find_parameter(loop: Loop, name: str) -> Tensor:
    """Return the parameter or buffer of that name."""
    state = dict([*loop.model.named_parameters(), *loop.model.named_buffers()])
    return state[name].detach()


def has_moved(loop: Loop, name: str) -> bool:
    """Whether one bit of it changed."""
    return not torch.equal(find_parameter(loop, name), loop.initial[name])


def stands_still(*names: str, others: bool = True) -> Callable[[Loop], None]:
    """Return a proof that these parameters are bit-equal and that (others) all the rest moved."""

    def proof(loop: Loop) -> None:
        found = {name for name, _ in loop.model.named_parameters() if not has_moved(loop, name)}
        assert set(names) <= found
        if others:
            assert found == set(names)
        assert all(step.is_finite for step in loop.seen)

    return proof


def look_ahead(model: nn.Module, x: Tensor, change: Callable[[Tensor], Tensor], t: int) -> float:
    """Return how far outputs before time t move when x changes from t on; [B, T, ...] both."""
    other = x.clone()
    other[:, t:] = change(other[:, t:])
    before, after = forward_quietly(model, x), forward_quietly(model, other)
    return float((before - after)[:, :t].abs().max())


def look_aside(model: nn.Module, x: Tensor, change: Callable[[Tensor], Tensor]) -> float:
    """Return how far the outputs of the other samples move when the first one changes."""
    other = x.clone()
    other[:1] = change(other[:1])
    before, after = forward_quietly(model, x), forward_quietly(model, other)
    return float((before - after)[1:].abs().max())


@torch.no_grad()
def forward_quietly(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output in eval mode, leaving the model as it is; the first of several."""
    output = copy.deepcopy(model).eval()(x)
    while isinstance(output, tuple):
        output = output[0]
    return output


def next_token(ids: Tensor) -> Tensor:
    """Return other tokens."""
    return ids % 10 + 1


def shifted(x: Tensor) -> Tensor:
    """Return other numbers, changed differently at each place."""
    return x + torch.linspace(1.0, 2.0, x.numel()).view_as(x)


def leaks_ahead(loop: Loop, t: int = 5) -> None:
    """Outputs before t move with inputs from t on."""
    x = loop.batch(1)[0]
    assert look_ahead(loop.model, x, shifted if x.is_floating_point() else next_token, t) > 1e-6
    assert all(step.is_finite for step in loop.seen)


def leaks_aside(loop: Loop) -> None:
    """Outputs of one sample move with the inputs of another, in eval mode."""
    x = loop.batch(1)[0]
    changes = (
        (shifted, lambda x: -5 * x, lambda x: 5 * x) if x.is_floating_point() else (next_token,)
    )
    assert max(look_aside(loop.model, x, change) for change in changes) > 1e-6
    assert all(step.is_finite for step in loop.seen)


def equal_batches(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two batches are the same bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def falls(loop: Loop, share: float = 0.9, window: int = 5) -> None:
    """All is finite and the mean loss of the last steps is well under that of the first."""
    assert all(step.is_finite for step in loop.seen)
    losses = [sum(step.losses) / len(step.losses) for step in loop.seen]
    assert sum(losses[-window:]) < share * sum(losses[:window]), losses


def trains(*frozen: str, share: float = 0.9) -> Callable[[Loop], None]:
    """Return a proof that the loss falls and that every parameter but these moves."""

    def proof(loop: Loop) -> None:
        falls(loop, share)
        still = {name for name, _ in loop.model.named_parameters() if not has_moved(loop, name)}
        assert still == set(frozen)

    return proof
