"""Every command of the research notes: read to the last flag, and in their order really run.

tests/assets/notes_commands.txt holds the commands alone, one a line; where the notes say "same args
as above" they stand in full.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from registry.events import Metrics, Status
from registry.sinks import ListSink
from tsx.cli import run
from tsx.cli.train_flags import FLAGS
from tsx.config import RunConfig, to_plain

ASSET = Path(__file__).resolve().parents[2] / "assets" / "notes_commands.txt"
COMMANDS = [shlex.split(line)[1:] for line in ASSET.read_text().splitlines()]
TRAINING = [words for words in COMMANDS if words[0] == "train"]
SHORT = (
    *("--steps-per-epoch", "2", "--epochs", "1", "--batch-size", "2", "--log-every", "1"),
    *("--hidden-size", "24", "--n-head", "2", "--n-decoder-layers", "1"),
    *("--seq-max-len", "64", "--seq-stride", "64"),
)
# Flags that set no key of their own name, or one together: what they come to is tested by itself.
TOGETHER = {"--steps-per-epoch", "--epochs", "--patch", "--num-expert-layers", "--patch-stride"}
TOGETHER |= {"--dataset-path", "--ood-val-dataset-path"}


@pytest.fixture
def time300b(put_partition, tmp_path: Path) -> None:
    """Put a part of Time-300B where the notes' two downloads would."""
    for seed, name in enumerate(("energy/etth1", "web/wiki", "finance/exchange_rate")):
        put_partition(tmp_path / "tsx-home" / "data" / "time300b" / name, seed=10 * seed)


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list:
    """Return the plans that a dry run would prepare."""
    plans: list = []
    monkeypatch.setattr(run, "_rehearse", lambda asked, home: plans.extend(asked) or 0)
    return plans


def read_typed(words: list[str]) -> dict[str, str]:
    """Return flag to value as typed, the last of a repeated one; "" for a flag without one."""
    typed: dict[str, str] = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            after = words[at + 1] if at + 1 < len(words) else "--"
            typed[word] = "" if after.startswith("--") else after
    return typed


def expect(typed: dict[str, str]) -> dict[str, object]:
    """Return "section.key" to value for every flag that says it by itself."""
    expected: dict[str, object] = {}
    for flag in FLAGS:
        if flag.name in typed and flag.name not in TOGETHER:
            value = True if flag.kind is bool else flag.kind(typed[flag.name])
            value = value if flag.convert is None else flag.convert(value)
            expected |= dict.fromkeys(flag.keys, value)
    return expected


@pytest.mark.parametrize("words", TRAINING, ids=lambda words: " ".join(words)[-60:])
def test_every_flag_of_every_command_is_in_the_config(tsx, time300b, rehearsed, words) -> None:
    done = tsx(*words, "--dry-run")
    assert done.status == 0, done.err
    (plan,) = rehearsed
    config, typed = plan.config, read_typed(words)
    plain = {
        f"{s}.{key}": value for s, keys in to_plain(config).items() for key, value in keys.items()
    }
    expected = expect(typed)
    assert {key: plain[key] for key in expected} == expected
    assert config.train.steps == int(typed["--steps-per-epoch"]) * int(typed["--epochs"])
    assert config.model.patch_len == (32 if "--patch" in typed else 1)
    assert config.data.source == "time300b"
    assert config.data.ood_include == (("finance/*",) if "--ood-val-dataset-path" in typed else ())
    assert plan.recipe == plan.name == "train"
    twice = {word for word in words if word.startswith("--") and words.count(word) > 1}
    assert all(f"{flag} is given 2 times" in done.err for flag in twice)


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAINING, ids=lambda words: " ".join(words)[-60:])
def test_every_command_trains(tsx, time300b, rehearsed, tmp_path: Path, words) -> None:
    """Shortened by appended flags; in this process, as the command's own would."""
    if "--compile" in words and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler for torch.compile")
    assert tsx(*words, *SHORT, "--d-ff", "48", "--d-expert", "24", "--dry-run").status == 0
    (plan,) = rehearsed
    losses = train_here(plan.config, tmp_path)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


def train_here(config: RunConfig, tmp_path: Path) -> list[float]:
    """Train a run without a process of its own; return the losses of its lines."""
    from tsx.trainer.loop import train

    sink = ListSink()
    folder, home = tmp_path / "run", tmp_path / "tsx-home"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler has its own
        outcome = train(config, sink, folder=folder, home=home, stop=threading.Event())
    assert outcome.status is Status.COMPLETED
    lines = [event.values for event in sink.events if isinstance(event, Metrics)]
    return [values["train/loss"] for values in lines if "train/loss" in values]


def test_the_asset_holds_commands_of_every_kind() -> None:
    assert len(TRAINING) > 12
    assert len(COMMANDS) - len(TRAINING) == 2
    flags = {word for words in TRAINING for word in words if word.startswith("--")}
    assert {"--patch", "--no-amp", "--profile", "--d-expert", "--ood-val-dataset-path"} <= flags


def find(needle: str) -> list[str]:
    """Return the first command that has these words."""
    return next(words for words in COMMANDS if needle in " ".join(words))


@pytest.mark.slow
def test_the_commands_run_in_the_notes_order(hub, tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    environ = os.environ | {"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}

    def go(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "tsx", *words]
        return subprocess.run(
            line, env=environ, cwd=tmp_path / "cwd", capture_output=True, text=True, check=False
        )

    def succeed(*words: str) -> list[str]:
        done = go(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    sanity, ood = find("--hidden-size 64"), find("--ood-val-dataset-path")
    refused = go(*sanity, *SHORT)
    assert refused.returncode == 2
    assert "next: tsx data download --partition-set debug" in refused.stderr
    assert not (tmp_path / "tsx-home").exists()  # nothing was recorded

    succeed(*COMMANDS[0])
    lines = succeed(*sanity, *SHORT)
    assert lines[0] == "data source=time300b windows train=18 val=9"
    assert [line.split()[0] for line in lines if line.startswith("step=")] == ["step=1", "step=2"]

    refused = go(*ood, *SHORT)
    assert refused.returncode == 2
    assert "next: tsx data download --partition-set finance\n" in refused.stderr
    succeed(*COMMANDS[0], "--partition-set", "finance")
    lines = succeed(*ood, *SHORT)
    assert lines[0] == "data source=time300b windows train=18 val=9 ood=9"
    assert any(line.startswith("ood step=2 ") for line in lines)

    lines = succeed(*find("--patch-len 32"), *SHORT, "--seq-max-len", "256")
    assert lines[1].startswith("params total=")
    lines = succeed(*find("--log-perf-metrics"), *SHORT, "--steps-per-epoch", "4")
    # Steps 1 and 2 warm up, detectors trace the 4th: only the 3rd has a speed.
    assert sum(line.startswith("timing data=") for line in lines) == 1

    runs = json.loads("\n".join(succeed("runs", "--json")))["runs"]
    assert {(run["recipe"], run["status"]) for run in runs} == {("train", "completed")}
    assert len(runs) == 4
