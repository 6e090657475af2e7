"""The poller over a real registry while a run writes to it."""

import hashlib
from functools import partial

import msgspec
import pytest

from registry.connection import find_url
from registry.events import Finding, Metrics, RunEnded, RunResumed, RunStarted, Severity, Status
from registry.queries import Reader
from registry.recover import recover
from registry.store import Recorder
from tsx.dashboard.messages import Focus
from tsx.dashboard.poller import Poller


@pytest.fixture
def home(tmp_path):
    return tmp_path / "tsx-home"


@pytest.fixture
def start(home):
    """Return a function that starts recording a run and the events of it so far."""

    def make(run_id="aaaaaaaa", name="one"):
        folder = home / "runs" / run_id
        folder.mkdir(parents=True)
        recorder = Recorder(folder, find_url(home))
        recorder.emit(RunStarted(time=1.0, run_id=run_id, name=name, steps=9))
        return recorder, folder

    return make


def emit_steps(recorder, *steps):
    for step in steps:
        values = {"train/loss": 10.0 / step, "train/aux": 1.0}
        recorder.emit(Metrics(time=1.0 + step, step=step, values=values))


@pytest.fixture
def watch(home):
    """Return a poller and what it posts."""
    posted = []
    url = find_url(home)
    poller = Poller(partial(Reader.open, url), posted.append, file=home / "registry.db")
    yield poller, posted
    poller._close()


def wait_for(watch, is_true):
    """Look again until a snapshot answers: the recorder writes in a thread of its own."""
    poller, posted = watch
    for number in range(3000):
        poller.look(float(number))
        if is_true(posted[-1]):
            return posted[-1]
    raise AssertionError(f"never seen; last: {posted[-1]}")


def test_a_first_run_and_its_new_points_are_picked_up(watch, start):
    assert wait_for(watch, lambda snapshot: True).runs == ()
    recorder, folder = start()
    emit_steps(recorder, 1, 2, 3)
    recorder.close()
    seen = wait_for(watch, lambda snapshot: "train/loss" in snapshot.curves)
    assert list(seen.curves["train/loss"].steps) == [1, 2, 3]
    again = Recorder(folder, find_url(folder.parents[1]))
    emit_steps(again, 4)
    again.close()
    seen = wait_for(watch, lambda snapshot: len(snapshot.curves["train/loss"]) == 4)
    assert seen.curves["train/loss"].values[-1] == 2.5
    assert seen.trouble == ""


def test_a_resume_that_rewinds_cuts_the_curve_on_screen(watch, start):
    recorder, folder = start()
    emit_steps(recorder, 1, 2, 3, 4, 5)
    recorder.close()
    wait_for(watch, lambda snapshot: len(snapshot.curves.get("train/loss", ())) == 5)
    again = Recorder(folder, find_url(folder.parents[1]))
    again.emit(RunResumed(time=20.0, from_step=2, steps=9))
    again.emit(Metrics(time=21.0, step=3, values={"train/loss": 0.125}))
    again.close()
    seen = wait_for(watch, lambda snapshot: snapshot.curves["train/loss"].values[-1] == 0.125)
    assert list(seen.curves["train/loss"].steps) == [1, 2, 3]


def test_findings_of_a_run_that_goes_on_show_once_and_count_up(watch, start):
    recorder, folder = start()
    emit_steps(recorder, 1)
    told = Finding(
        time=2.0,
        kind="router",
        severity=Severity.WARNING,
        step=1,
        module="moe.router",
        where="moe.py:57",
        cause="an expert gets no tokens",
    )
    recorder.emit(told)
    recorder.close()
    poller, _ = watch
    poller.set_focus(Focus("aaaaaaaa", full=True))
    seen = wait_for(watch, lambda snapshot: snapshot.detail and snapshot.detail.findings)
    assert seen.runs[0].finding_counts == {"warning": 1}
    again = Recorder(folder, find_url(folder.parents[1]))
    for step in (2, 3):
        again.emit(msgspec.structs.replace(told, step=step))
    again.close()
    seen = wait_for(watch, lambda snapshot: snapshot.detail.findings[0].count == 3)
    (row,) = seen.detail.findings
    assert (row.kind, row.step) == ("router", 1)
    assert (row.module, row.where, row.cause) == (told.module, told.where, told.cause)
    assert seen.runs[0].finding_counts == {"warning": 1}


def test_a_damaged_registry_is_trouble_until_it_is_whole_again(watch, start, home):
    recorder, _ = start()
    emit_steps(recorder, 1)
    recorder.emit(RunEnded(time=9.0, status=Status.COMPLETED, step=1))
    recorder.close()
    wait_for(watch, lambda snapshot: len(snapshot.runs) == 1)
    file = home / "registry.db"
    whole = file.read_bytes()
    broken = home / "broken.db"
    broken.write_bytes(b"no database at all" * 400)
    broken.replace(file)
    seen = wait_for(watch, lambda snapshot: snapshot.trouble != "")
    assert "rebuild" not in seen.runs[0].name
    assert len(seen.runs) == 1
    file.unlink()
    wait_for(watch, lambda snapshot: "is gone" in snapshot.trouble)
    back = home / "back.db"
    back.write_bytes(whole)
    back.replace(file)
    wait_for(watch, lambda snapshot: snapshot.trouble == "")


def test_a_dead_run_is_shown_as_killed(home, start):
    recorder, folder = start()
    emit_steps(recorder, 1, 2)
    recorder.close()
    posted, url = [], find_url(home)
    poller = Poller(partial(Reader.open, url), posted.append, recover=partial(recover, home, url))
    poller.look(0.0)
    assert posted[-1].runs[0].status == "killed"
    assert len(posted[-1].curves["train/loss"]) == 2
    poller._close()
    assert folder.exists()


def test_looking_changes_no_file(watch, start, home):
    recorder, _ = start()
    emit_steps(recorder, 1, 2)
    recorder.close()
    before = list_hashes(home)
    wait_for(watch, lambda snapshot: len(snapshot.runs) == 1)
    watch[0]._close()
    assert list_hashes(home) == before


def list_hashes(home):
    """Return the content of every file, SQLite's shared memory aside."""
    files = [path for path in sorted(home.rglob("*")) if path.is_file()]
    kept = [path for path in files if not path.name.endswith(("-shm", "-wal"))]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
