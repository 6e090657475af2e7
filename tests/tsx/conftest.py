"""A Hub on loopback for every test that downloads; nothing here reaches the real network."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PARTITIONS = (
    *("other/m4_daily", "healthcare/hospital", "sales/dominick", "finance/exchange_rate"),
    *("energy/etth1", "nature/weather", "synthetic/waves", "web/wiki"),
)
SERVER = Path(__file__).resolve().parents[1] / "assets" / "hub_server.py"


@pytest.fixture(scope="session")
def hub_server() -> ModuleType:
    """Return the module of the small Hub; it stands by itself so that it can be run by hand."""
    name = "tests_hub_server"
    spec = importlib.util.spec_from_file_location(name, SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def put_partition() -> Callable[..., Path]:
    """Return a writer of one partition: folder, points a shard, shards; values follow `seed`."""

    def write(folder: Path, points: int = 300, shards: int = 2, seed: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for index in range(shards):
            name = f"data-{index + 1}-of-{shards}.bin"
            values = array("f", ((seed + index + point) % 97 for point in range(points)))
            (folder / name).write_bytes(values.tobytes())
            files[name] = points
        scales = [{"offset": 0, "length": points * shards}]
        meta = {"num_sequences": 1, "dtype": "float32", "files": files, "scales": scales}
        (folder / "meta.json").write_text(json.dumps(meta))
        return folder

    return write


@pytest.fixture
def hub(
    hub_server: ModuleType,
    put_partition: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """Serve eight small partitions as Maple728/Time-300B; waits between repetitions are none."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    repository = tmp_path / "repository"
    for seed, name in enumerate(PARTITIONS):
        put_partition(repository / name, seed=seed)
    (repository / "README.md").write_text("Time-300B")
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr("tsx.data.hub.PIECE_BYTES", 100)  # what a break may lose
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with hub_server.Hub(page=7) as server:
        server.publish(repository)
        server.repository, server.waits = repository, waits
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
        close_session()
