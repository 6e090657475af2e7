"""The allocator setting, in processes of their own: it cannot be taken back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tsx.perf import allocator

pytestmark = pytest.mark.trainer

HAS_GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

MEASURE = """
import resource, sys
from tsx.perf.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import numpy as np
def touch():
    np.ones(8 << 20, np.uint8)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(setting: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, setting],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


@pytest.mark.skipif(not HAS_GLIBC, reason="the setting is glibc's")
def test_freed_blocks_are_used_again_without_asking_the_kernel():
    default = count_faults("default")  # 4 KiB pages, or a few of 2 MiB
    assert default >= 10 * (8 >> 1)
    assert count_faults("kept") < default // 4


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("another system's malloc"))
    assert allocator.keep_freed_memory() is False


def test_another_libc_has_no_such_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False
