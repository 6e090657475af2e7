"""glibc's allocator, set so that training on a CPU stops paying for fresh memory.

By default malloc maps every large block anew and gives it back when it is freed, so each step of a
training loop asks the kernel for gigabytes of zeroed pages. With mmap off, no trimming and the heap
growing in large pieces, a freed activation is the next step's activation. The process keeps its
peak of memory until it exits, which is what a training process needs anyway.

Linux with glibc only; elsewhere nothing is done. Effect: benchmarks/README.md.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_TOP_PAD_BYTES = 64 * 2**20
_SMALL_PAD_BYTES = 2**20


def keep_freed_memory() -> bool:
    """Tell malloc to reuse what is freed; call before the first large allocation.

    Returns:
        Whether the allocator took it.
    """
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all(_set(option, value) for option, value in settings)


def grow_in_small_steps() -> bool:
    """Tell malloc to ask for little more than it needs, so that a memory limit is a sharp one.

    Returns:
        Whether the allocator took it.
    """
    return _set(_M_TOP_PAD, _SMALL_PAD_BYTES)


def _set(option: int, value: int) -> bool:
    """Set one of glibc's malloc options, where there is a glibc."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has another malloc, and no mallopt
        return False
    return bool(libc.mallopt(option, value) == 1)
