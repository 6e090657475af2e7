"""The doors into and out of autocast: places that choose their own dtype."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which every op computes in the dtype of its inputs.

    A device type without autocast ("meta", for shapes and FLOPs) needs no door.
    """
    if not _has_autocast(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def find_autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype that matrix products have under the autocast around, None without one."""
    if not _has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def _has_autocast(device_type: str) -> bool:
    # torch.amp.is_autocast_available says the same, and torch 2.11 cannot compile a call of it.
    return device_type != "meta"
