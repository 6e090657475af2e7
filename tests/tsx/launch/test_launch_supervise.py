"""Real training processes: how they end, what is recorded, and who survives whom."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.events import Metrics
from registry.journal import iter_events
from tests.tsx.launch.open_files import list_holders

pytestmark = pytest.mark.slow

# Small enough to step in milliseconds, through the same code as any run.
TINY = (
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.num_layers=1",
    "data.context_length=32",
    "data.demo_series=4",
    "train.batch_size=4",
    "train.log_every=1",
    "train.checkpoint_every=5",
    "eval.every=0",
    "perf.mfu_peak_tflops=0.1",
)
ENDLESS = ("train.steps=1000000", "train.max_wall_time_s=120")
WAIT_S = 120.0


class Home:
    """A TSX_HOME and the commands given in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = {**os.environ, "TSX_HOME": str(path), "NO_COLOR": "1"}
        for name in ("TSX_REGISTRY", "PYTHONUNBUFFERED"):
            self.env.pop(name, None)

    def start(
        self, *arguments: str, at_birth: Callable[[], object] | None = None, **env: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tsx", *arguments],
            env={**self.env, **env},
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever starts the tests may ignore hangups (nohup), and children would inherit that.
            preexec_fn=at_birth or (lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)),
        )

    def tsx(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=WAIT_S)
        return process.returncode, out, err

    def list_runs(self) -> list[dict[str, Any]]:
        status, out, err = self.tsx("runs", "--json")
        assert status == 0, err
        runs: list[dict[str, Any]] = json.loads(out)["runs"]
        return runs

    def find_workers(self, run_id: str) -> list[int]:
        return list_holders(self.path / "runs" / run_id / "lock")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    path = tmp_path_factory.mktemp("home")
    (path / "tsx-recipes").mkdir()
    return Home(path)


def sets(*overrides: str) -> list[str]:
    return [word for override in (*TINY, *overrides) for word in ("--set", override)]


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("what was waited for did not happen")


def count_steps(home: Home, run_id: str) -> int:
    journal = home.path / "runs" / run_id / "events.jsonl"
    if not journal.exists():
        return 0
    return sum(
        1
        for event, _ in iter_events(journal)
        if isinstance(event, Metrics) and "train/loss" in event.values
    )


def start_endless(
    home: Home, *extra: str, at_birth: Callable[[], object] | None = None
) -> tuple[subprocess.Popen[str], str]:
    """Start a run that never ends by itself; return once it has taken a few steps."""
    before = {path.name for path in (home.path / "runs").glob("*")}
    process = home.start("run", "sanity", *sets(*ENDLESS), *extra, at_birth=at_birth)

    def find_new() -> str:
        names = {path.name for path in (home.path / "runs").glob("*")} - before
        return next((name for name in names if count_steps(home, name) >= 8), "")

    return process, str(wait_for(find_new))


def get_curve(home: Home, run_id: str) -> list[list[float]]:
    status, out, err = home.tsx("metrics", run_id, "train/loss", "--json")
    assert status == 0, err
    points: list[list[float]] = json.loads(out)["points"]
    return points


def test_a_run_is_recorded_whole_and_ends_completed(home: Home) -> None:
    status, out, err = home.tsx("run", "sanity", "--name", "whole", *sets("train.steps=6"))
    assert status == 0, err
    printed = [line for line in out.splitlines() if line.startswith("step=")]
    run = next(run for run in home.list_runs() if run["name"] == "whole")
    assert (run["status"], run["step"], run["steps"]) == ("completed", 6, 6)
    assert len(printed) == len(get_curve(home, run["id"])) == 6
    assert out.splitlines()[-1].startswith("run model=")
    assert any(line.startswith("params total=") for line in out.splitlines())


def test_a_killed_run_shows_killed_has_every_printed_line_and_resumes(home: Home) -> None:
    process, run_id = start_endless(home)
    (worker,) = home.find_workers(run_id)
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 137, err
    printed = [line for line in out.splitlines() if line.startswith("step=")]
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert run["status"] == "killed"
    assert "SIGKILL" in run["reason"]
    curve = get_curve(home, run_id)
    assert len(curve) == count_steps(home, run_id) >= len(printed) > 0

    steps = int(curve[-1][0]) + 3
    status, out, err = home.tsx("resume", run_id, "--set", f"train.steps={steps}")
    assert status == 0, err
    assert "resumed step=" in out
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert (run["status"], run["step"]) == ("completed", steps)
    assert [point[0] for point in get_curve(home, run_id)] == list(range(1, steps + 1))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_stop_signal_to_the_parent_leaves_a_checkpoint_and_interrupted(
    home: Home, name: str
) -> None:
    process, run_id = start_endless(home)
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, err
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert run["status"] == "interrupted"
    assert name in run["reason"]
    checkpoints = sorted((home.path / "runs" / run_id / "checkpoints").glob("step-*"))
    assert checkpoints[-1].name == f"step-{run['step']:08d}"


def test_a_child_outlives_its_parent_and_is_still_recorded(home: Home) -> None:
    process, run_id = start_endless(home)
    process.kill()
    process.communicate(timeout=WAIT_S)
    seen = count_steps(home, run_id)
    wait_for(lambda: count_steps(home, run_id) > seen + 20)
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert run["status"] == "running"
    (worker,) = home.find_workers(run_id)
    os.kill(worker, signal.SIGTERM)
    wait_for(lambda: not home.find_workers(run_id))
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert run["status"] == "interrupted"


def test_when_parent_and_child_are_gone_the_next_look_shows_killed(home: Home) -> None:
    process, run_id = start_endless(home)
    process.kill()
    for worker in home.find_workers(run_id):
        os.kill(worker, signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    wait_for(lambda: not home.find_workers(run_id))
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert run["status"] == "killed"
    assert len(get_curve(home, run_id)) == count_steps(home, run_id)


def test_a_native_crash_is_failed_with_the_signal_and_a_trace(home: Home) -> None:
    process, run_id = start_endless(home)
    (worker,) = home.find_workers(run_id)
    os.kill(worker, signal.SIGSEGV)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert run["status"] == "failed"
    assert "SIGSEGV" in run["reason"]
    assert "Segmentation fault" in (home.path / "runs" / run_id / "stderr.log").read_text()


def test_a_running_run_cannot_be_resumed(home: Home) -> None:
    process, run_id = start_endless(home)
    try:
        status, _, err = home.tsx("resume", run_id)
        assert status == 2
        assert "still going" in err
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_S)


def test_a_sweep_goes_on_after_a_run_that_failed(home: Home) -> None:
    (home.path / "tsx-recipes" / "half-bad.toml").write_text(
        '[recipe]\nsummary = "one bad path"\nextends = "sanity"\n'
        '[sweep]\n"data.path" = ["/nowhere/at/all", ""]\n'.replace('""', f'"{_series(home)}"')
    )
    status, _, err = home.tsx("run", "half-bad", *sets("train.steps=2", "data.val_split=0"))
    assert status == 2, err
    runs = [run for run in home.list_runs() if run["recipe"] == "half-bad"]
    assert {run["status"] for run in runs} == {"failed", "completed"}
    assert len({run["parent"] for run in runs}) == 1
    assert runs[0]["parent"]
    failed = next(run for run in runs if run["status"] == "failed")
    assert "/nowhere/at/all" in failed["reason"]


def test_three_seeds_are_three_runs_with_seeds_s_s1_s2(home: Home) -> None:
    status, _, err = home.tsx(
        "run", "sanity", "--seed", "5", "--seeds", "3", "--name", "seeded", *sets("train.steps=2")
    )
    assert status == 0, err
    runs = [run for run in home.list_runs() if run["name"].startswith("seeded")]
    assert sorted(run["seed"] for run in runs) == [5, 6, 7]


def test_a_dry_run_shows_everything_and_records_nothing(home: Home) -> None:
    before = home.list_runs()
    status, out, err = home.tsx("run", "sanity", "--dry-run", *sets())
    assert status == 0, err
    assert "params total=" in out
    assert "dry run" in err
    assert home.list_runs() == before


def test_a_detached_run_returns_its_id_at_once_and_completes(home: Home) -> None:
    status, out, err = home.tsx("run", "sanity", "--detach", *sets("train.steps=3"))
    assert status == 0, err
    run_id = out.strip()

    def is_done() -> bool:
        return any(run["id"] == run_id and run["status"] == "completed" for run in home.list_runs())

    assert wait_for(is_done)


def test_a_detached_run_ignores_a_hangup(home: Home) -> None:
    status, out, err = home.tsx("run", "sanity", "--detach", *sets(*ENDLESS))
    assert status == 0, err
    run_id = out.strip()
    wait_for(lambda: count_steps(home, run_id) > 3)
    (worker,) = home.find_workers(run_id)
    os.kill(worker, signal.SIGHUP)
    seen = count_steps(home, run_id)
    wait_for(lambda: count_steps(home, run_id) > seen + 20)
    os.kill(worker, signal.SIGTERM)
    wait_for(lambda: not home.find_workers(run_id))
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert run["status"] == "interrupted"


def test_a_refused_resume_names_the_difference_and_leaves_the_run_as_it_was(home: Home) -> None:
    status, _, err = home.tsx("run", "sanity", "--name", "fixed", *sets("train.steps=5"))
    assert status == 0, err
    before = next(run for run in home.list_runs() if run["name"] == "fixed")
    status, _, err = home.tsx("resume", "fixed", "--set", "model.hidden_size=32")
    assert status == 2
    assert "model.hidden_size" in err
    assert "16 -> 32" in err
    assert next(run for run in home.list_runs() if run["name"] == "fixed") == before


def test_a_registry_that_cannot_be_written_is_an_error_before_anything_starts(home: Home) -> None:
    blocked = home.path / "blocked"
    blocked.write_text("a file, not a folder")
    status, _, err = home.tsx("run", "sanity", *sets(), TSX_HOME=str(blocked))
    assert status == 3
    assert str(blocked) in err


def test_secrets_of_the_environment_are_nowhere_below_the_home(home: Home) -> None:
    secret = "s3cr3t-" + "x" * 20
    status, _, err = home.tsx(
        "run", "sanity", "--note", f"token {secret}", *sets("train.steps=2"), HF_TOKEN=secret
    )
    assert status == 0, err
    holders = [
        path
        for path in home.path.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]
    assert holders == []


def test_lines_come_as_they_are_recorded_and_a_reader_that_leaves_stops_nothing(home: Home) -> None:
    process, run_id = start_endless(home)
    assert process.stdout is not None
    assert any(line.startswith("step=") for line in process.stdout)
    process.stdout.close()
    seen = count_steps(home, run_id)
    wait_for(lambda: count_steps(home, run_id) > seen + 50)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_S) == 130
    process.communicate(timeout=WAIT_S)


def test_under_nohup_a_hangup_is_ignored(home: Home) -> None:
    process, run_id = start_endless(
        home, at_birth=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    seen = count_steps(home, run_id)
    wait_for(lambda: count_steps(home, run_id) > seen + 20)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    run = next(run for run in home.list_runs() if run["id"] == run_id)
    assert "SIGTERM" in run["reason"]


def test_a_disk_that_fills_up_stops_no_training_and_what_is_lost_is_said(home: Home) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, 160_000))

    process = home.start(
        *("run", "sanity", "--name", "overfull"),
        *sets("train.steps=400", "train.checkpoint_every=0"),
        at_birth=limit_files,
        TSX_HOME=str(home.path / "small"),
    )
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3, err
    assert "completed" in err
    assert "events could not be written and are lost" in err
    assert "its end is not recorded" in err


def test_files_of_the_current_folder_are_not_taken_for_modules(home: Home) -> None:
    folder = home.path / "mine"
    folder.mkdir()
    for name in ("random", "registry", "torch"):
        (folder / f"{name}.py").write_text("raise SystemExit('this is not the real one')")
    script = "import sys; from tsx.cli.main import run; sys.exit(run())"
    line = [sys.executable, "-P", "-c", script, "run", "sanity", *sets("train.steps=1")]
    for flags in ([], ["--dry-run"], ["--detach"]):
        done = subprocess.run(
            [*line, *flags], cwd=folder, env=home.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def _series(home: Home) -> Path:
    """Write a few series as jsonl."""
    path = home.path / "series.jsonl"
    rows = [[float((step * (row + 3)) % 17) for step in range(100)] for row in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
