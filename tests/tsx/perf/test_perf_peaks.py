"""Peaks by config, by device name, measured, and a cache nobody can trust."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tsx.config import Precision
from tsx.perf import peaks
from tsx.perf.gemm import measure_gemm_tflops
from tsx.perf.peaks import find_datasheet_tflops, get_peak

pytestmark = pytest.mark.trainer


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Precision]]:
    """Replace the measurement by 0.25 TFLOP/s; return the list of what was measured."""
    calls: list[tuple[str, Precision]] = []

    def measure(device: torch.device, precision: Precision, budget_s: float) -> float:
        if budget_s == peaks.BUDGET_S:  # a glance at a known peak is no measurement
            calls.append((device.type, precision))
        return 0.25

    monkeypatch.setattr(peaks, "measure_gemm_tflops", measure)
    return calls


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A1000", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("", None),
    ],
)
def test_dense_peak_by_device_name(name: str, bf16: float | None) -> None:
    assert find_datasheet_tflops("cuda", name, Precision.BF16) == bf16


def test_fp32_peak_follows_torchs_matmul_setting() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert find_datasheet_tflops("cuda", "NVIDIA A100 80GB PCIe", Precision.FP32) == 19.5
        torch.set_float32_matmul_precision("high")
        assert find_datasheet_tflops("cuda", "NVIDIA A100 80GB PCIe", Precision.FP32) == 156.0
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_cpu_is_never_taken_for_a_gpu() -> None:
    assert find_datasheet_tflops("cpu", "NVIDIA A100", Precision.BF16) is None


def test_known_device_writes_no_cache(tmp_path: Path) -> None:
    cache = tmp_path / "peaks.json"
    peak = get_peak("cuda", "NVIDIA H200", Precision.BF16, None, cache)
    assert (peak.tflops, peak.source, peak.warning) == (989.0, "device name", "")
    assert not cache.exists()


@pytest.mark.parametrize(("sparse", "dense"), [(1979, 989), (1671, 835), (1513, 756), (624, 312)])
def test_sparse_override_is_flagged_and_used(tmp_path: Path, sparse: float, dense: int) -> None:
    peak = get_peak("cuda", "NVIDIA H200", Precision.BF16, sparse, tmp_path / "peaks.json")
    assert (peak.tflops, peak.source) == (sparse, "config")
    assert f"mfu_peak_tflops={sparse}" in peak.warning
    assert f"dense one is {dense}" in peak.warning


def test_dense_override_has_no_warning(tmp_path: Path) -> None:
    peak = get_peak("cpu", "cpu", Precision.FP32, 989.0, tmp_path / "peaks.json")
    assert (peak.tflops, peak.source, peak.warning) == (989.0, "config", "")


def test_measured_once_per_device_and_precision(
    tmp_path: Path, measured: list[tuple[str, Precision]]
) -> None:
    cache = tmp_path / "deep" / "peaks.json"
    for name in ("one", "one", "two"):
        for precision in (Precision.FP32, Precision.BF16):
            peak = get_peak("cpu", name, precision, None, cache)
            assert (peak.tflops, peak.source) == (0.25, "measured")
    assert len(measured) == 4
    assert len(json.loads(cache.read_text())["peaks"]) == 4
    assert [path.name for path in cache.parent.iterdir()] == ["peaks.json"]


@pytest.mark.parametrize(
    ("device_type", "name"),
    [
        ("cpu", "AMD EPYC"),
        ("cuda", "NVIDIA GeForce GTX 1080"),
        ("cuda", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
        ("cuda", ""),
        ("mps", "Apple M3 Max"),
    ],
)
def test_a_device_without_a_known_peak_is_measured_and_says_so(
    tmp_path: Path, measured: list[tuple[str, Precision]], device_type: str, name: str
) -> None:
    for _ in range(2):
        peak = get_peak(device_type, name, Precision.BF16, None, tmp_path / "peaks.json")
        assert (peak.tflops, peak.source, peak.warning) == (0.25, "measured", "")
    assert measured == [(device_type, Precision.BF16)]


def test_other_thread_count_is_measured_anew(
    tmp_path: Path, measured: list[tuple[str, Precision]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "peaks.json"
    for threads in (1, 2, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        get_peak("cpu", "name", Precision.FP32, None, cache)
    assert len(measured) == 2


@pytest.mark.parametrize(("second", "kept"), [(0.4, 0.4), (0.1, 0.25)])
def test_a_measured_peak_only_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: float, kept: float
) -> None:
    """The first look may have shared the machine with other work."""
    cache = tmp_path / "peaks.json"
    for found in (0.25, second):
        monkeypatch.setattr(peaks, "measure_gemm_tflops", lambda *_, found=found: found)
        peak = get_peak("cpu", "name", Precision.FP32, None, cache)
    assert peak == peaks.Peak(kept, "measured")
    monkeypatch.setattr(peaks, "measure_gemm_tflops", lambda *_: 0.01)
    assert get_peak("cpu", "name", Precision.FP32, None, cache).tflops == kept


def entry(value: str) -> str:
    """Return a cache whose every entry reads `value`, for the key of this machine."""
    key = peaks._cache_key("cpu", "name", Precision.FP32)
    return f'{{"peaks": {{{json.dumps(key)}: {{"tflops": {value}}}}}}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[" * 100_000,
        "null",
        "[]",
        '{"peaks": 3}',
        '{"peaks": {"a": 3}}',
        entry("NaN"),
        entry("Infinity"),
        entry("-1"),
        entry("0"),
        entry("1e300"),
        entry("1" * 400),
        entry("1" * 5000),
        entry("true"),
        entry('"12"'),
        entry("[1]"),
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_damaged_cache_is_measured_anew_and_replaced(
    tmp_path: Path, measured: list[tuple[str, Precision]], text: str
) -> None:
    cache = tmp_path / "peaks.json"
    cache.write_text(text, encoding="latin-1")
    for _ in range(2):
        assert get_peak("cpu", "name", Precision.FP32, None, cache).tflops == 0.25
    assert len(measured) == 1


def test_huge_cache_is_not_read(tmp_path: Path, measured: list[tuple[str, Precision]]) -> None:
    cache = tmp_path / "peaks.json"
    cache.write_text(entry("5.0") + " " * peaks.CACHE_BYTES)
    assert get_peak("cpu", "name", Precision.FP32, None, cache).tflops == 0.25
    assert cache.stat().st_size < 4096


def test_good_entries_of_others_are_kept(
    tmp_path: Path, measured: list[tuple[str, Precision]]
) -> None:
    cache = tmp_path / "peaks.json"
    cache.write_text('{"peaks": {"other": {"tflops": 3.5}, "bad": {"tflops": "x"}}}')
    get_peak("cpu", "name", Precision.FP32, None, cache)
    kept = json.loads(cache.read_text())["peaks"]
    assert kept["other"] == {"tflops": 3.5}
    assert "bad" not in kept
    assert len(measured) == 1


def test_cache_does_not_grow_for_ever(
    tmp_path: Path, measured: list[tuple[str, Precision]]
) -> None:
    cache = tmp_path / "peaks.json"
    many = {f"old {i}": {"tflops": 1.0} for i in range(1000)}
    cache.write_text(json.dumps({"peaks": many}))
    get_peak("cpu", "name", Precision.FP32, None, cache)
    assert len(json.loads(cache.read_text())["peaks"]) == peaks.CACHE_ENTRIES
    get_peak("cpu", "name", Precision.FP32, None, cache)
    assert len(measured) == 1


def test_folder_or_pipe_in_place_of_the_cache(
    tmp_path: Path, measured: list[tuple[str, Precision]]
) -> None:
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    blocked = folder / "file" / "peaks.json"
    blocked.parent.write_text("a file where a folder should be")
    for path in (folder, pipe, blocked):
        assert get_peak("cpu", "name", Precision.FP32, None, path).tflops == 0.25
    assert len(measured) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_device_that_cannot_be_measured_has_no_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: torch.device, precision: Precision, budget_s: float) -> float:
        raise RuntimeError("no bfloat16 here")

    monkeypatch.setattr(peaks, "measure_gemm_tflops", refuse)
    peak = get_peak("cpu", "name", Precision.BF16, None, tmp_path / "peaks.json")
    assert (peak.tflops, peak.source) == (0.0, "")
    assert "no bfloat16 here" in peak.warning


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_measuring_gives_a_believable_figure(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsx.perf.gemm.SIZES", (128, 256))
    state = torch.get_rng_state()
    assert 1e-4 < measure_gemm_tflops(torch.device("cpu"), precision) < 1e3
    assert torch.equal(state, torch.get_rng_state())
