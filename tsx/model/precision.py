"""The doors out of autocast: places that choose their own dtype."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which every op computes in the dtype of its inputs.

    A device type without autocast ("meta", for shapes and FLOPs) needs no door.
    """
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
