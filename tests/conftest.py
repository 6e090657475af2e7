"""Every test has a home and a registry of its own, no secrets and no color."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point tsx at a folder of this test and take the machine's secrets out of its sight."""
    for name in [name for name in os.environ if any(word in name for word in SECRET_WORDS)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TSX_REGISTRY", raising=False)
    monkeypatch.setenv("TSX_HOME", str(tmp_path / "tsx-home"))
    monkeypatch.setenv("NO_COLOR", "1")
