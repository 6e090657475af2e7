"""docs/metrics.md names what a run emits, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from registry.events import Metrics
from tsx.data.corpus import open_corpus
from tsx.data.stream import BatchStream
from tsx.trainer.telemetry import DEVICE_KEYS

pytestmark = pytest.mark.trainer

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAME = re.compile(r"`((?:train|val|ood|router|sys)/[\w/<>]*\w)`")
# Once an update was left out; where there is a GPU.
ELSEWHERE = {
    "train/skipped_steps",
    *(f"train/{name}" for name in DEVICE_KEYS),
    *DEVICE_KEYS.values(),
    "sys/gpu_mem_gib",
    "sys/gpu_power_w",
    "train/kernel_launches_per_step",
}


@pytest.fixture
def emitted(lab):
    """Return every key of a run on a CPU that does all it can."""
    sink = lab.run(
        eval__every=2,
        perf__sample_every_s=0.001,
        data__ood_path=str(lab.path_of_others()),
        train__steps=30,
    ).sink
    return {key for event in sink.of(Metrics) for key in event.values}


def test_every_name_in_the_docs_is_emitted_and_every_key_is_documented(emitted):
    named = {page.name: set(NAME.findall(page.read_text(encoding="utf-8"))) for page in PAGES}
    known = {re.sub(r"layer\d+", "layer<i>", key) for key in emitted}
    for page, names in named.items():
        assert names - known - ELSEWHERE == set(), page
    # A table of one split stands for the other, one horizon for all of them.
    stems = {re.sub(r"_h\d+$", "_h8", key.replace("ood/", "val/")) for key in known}
    assert stems - named["metrics.md"] == set()
    assert named["metrics.md"] >= ELSEWHERE


def test_tokens_points_and_padding_are_counted_apart(lab):
    changes = {"train__fixed_batches": 1, "train__steps": 4, "model__patch_len": 4}
    ran = lab.run(data__val_split=0.0, **changes)
    config = ran.config
    windows = open_corpus(config.data, home=lab.root / "home", patch_len=4).train
    batch = BatchStream(windows, batch_size=4, seed=0, fixed_batches=1).next_batch()
    share = batch.input_mask_BC.mean()
    assert share < 1  # one of these windows is padded
    speeds = [
        ran.sink.curve(f"train/{name}")
        for name in ("toks_per_sec", "points_per_sec", "valid_points_per_sec")
    ]
    for step, tokens in speeds[0].items():
        assert speeds[1][step] == pytest.approx(4 * tokens)
        assert speeds[2][step] == pytest.approx(share * speeds[1][step])
