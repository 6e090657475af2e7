"""The random state a run carries from checkpoint to checkpoint, as text.

Data order and initialisation are pure functions of the seed and need none of it; this is for
whatever draws from torch's own generators while training (dropout, sampling).
"""

from __future__ import annotations

import base64
import binascii

import torch


def capture(device: torch.device) -> dict[str, str]:
    """Return the state of torch's generators on the host and on the run's device, base64."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return {name: base64.b64encode(s.numpy().tobytes()).decode() for name, s in states.items()}


def restore(states: dict[str, str], device: torch.device) -> None:
    """Put back what `capture` gave; the state of a device that is not the run's is left out.

    Raises:
        ValueError: a state is not base64, or not one that torch accepts.
    """
    try:
        tensors = {name: _decode(text) for name, text in states.items()}
        if "cpu" in tensors:
            torch.set_rng_state(tensors["cpu"])
        if device.type == "cuda" and "cuda" in tensors:
            torch.cuda.set_rng_state(tensors["cuda"], device)
        if device.type == "mps" and "mps" in tensors:
            torch.mps.set_rng_state(tensors["mps"])
    except (binascii.Error, RuntimeError, TypeError) as error:
        raise ValueError(f"random state cannot be restored: {error}") from None


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
