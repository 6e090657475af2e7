"""Every test has a home and a registry of its own, no secrets and no color."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests run side by side: threads of torch that wait for each other would make all of them slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point tsx at a folder of this test and take the machine's secrets out of its sight."""
    for name in [name for name in os.environ if any(word in name for word in SECRET_WORDS)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TSX_REGISTRY", raising=False)
    monkeypatch.setenv("TSX_HOME", str(tmp_path / "tsx-home"))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(autouse=True)
def _no_watch_is_left() -> Iterator[None]:
    """Fail where a run that watches is not closed: it would see the steps of all later tests."""
    yield
    optimizers = sys.modules.get("torch.optim.optimizer")
    if optimizers is not None:
        left = list(optimizers._global_optimizer_pre_hooks.values())
        optimizers._global_optimizer_pre_hooks.clear()
        optimizers._global_optimizer_post_hooks.clear()
        assert not left
