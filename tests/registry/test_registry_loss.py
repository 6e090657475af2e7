"""A full disk and a folder that goes: the run goes on, and what is lost is counted and said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from registry.events import Heartbeat, Metrics, RunEnded, RunStarted, Status
from registry.journal import read_events
from registry.queries import Reader
from registry.recover import recover
from registry.store import Recorder

RUN = "aaaa0000"
STARTED = RunStarted(time=1.0, run_id=RUN, name="x", steps=9)


def metric(step):
    return Metrics(time=1.0 + step, step=step, values={"a": float(step)})


@pytest.fixture
def folder(home):
    return home / "runs" / RUN


@pytest.fixture
def recorder(folder, url):
    made = Recorder(folder, url)
    made.emit(STARTED)
    yield made
    made.close()


PREAMBLE = """
import json, os, resource, sys, time
from pathlib import Path
from registry import journal_file, store, writer
from registry.connection import find_url
from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.journal import read_events
from registry.queries import Reader
from registry.store import Recorder
store._BACK_OFF_S = store._PERIOD_S = journal_file._RETRY_S = 0.05
writer._BACKLOG_MAX_BYTES = 100_000
home = Path(sys.argv[1])
folder, url = home / "runs" / "aaaa0000", find_url(home)
recorder = Recorder(folder, url)
recorder.emit(RunStarted(time=1.0, run_id="aaaa0000", name="x"))
def log(steps):
    for step in steps:
        recorder.emit(Metrics(time=1.0, step=step, values={"a": float(step)}))
def report():
    with Reader.open(url) as reader:
        steps = list(reader.get_series("aaaa0000", "a").steps)
        findings = [(found.kind, found.cause) for found in reader.get_detail("aaaa0000").findings]
        status = reader.get_run("aaaa0000").status
    print(json.dumps([steps, recorder.lost, findings, status, recorder.store_error]))
"""

FULL_DISK = """
log(range(10))
ballast = os.open(home / "ballast", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(ballast, bytes(65536))
except OSError:
    pass
log(range(10, 20_000))
while not recorder.store_error:
    time.sleep(0.01)
assert str(home) in recorder.store_error, recorder.store_error
assert recorder.lost > 0
os.unlink(home / "ballast")
os.close(ballast)
recorder.emit(RunEnded(time=2.0, status=Status.COMPLETED, step=20_000))
recorder.close()
report()
"""

LIMITED = """
log(range(10))
most = (folder / "events.jsonl").stat().st_size + 200_000
resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
log(range(10, 20_000))
assert recorder.lost > 0
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.emit(RunEnded(time=2.0, status=Status.COMPLETED, step=20_000))
recorder.close()
report()
"""


def check_report(text):
    steps, lost, findings, status, store_error = json.loads(text)
    assert lost > 0
    assert len(steps) == 20_000 - lost
    assert len(set(steps)) == len(steps)
    assert steps[:10] == list(range(10))
    assert steps[-1] == 19_999
    assert [kind for kind, _ in findings] == ["events-lost"]
    assert str(lost) in findings[0][1]
    assert status == "completed"
    assert store_error is None


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk of its own")
def test_a_disk_that_fills_up_and_has_room_again(tmp_path, start_python):
    place = tmp_path / "disk"
    place.mkdir()
    mount = 'mount -t tmpfs -o size=3m tsx-test $1 && exec $2 -c "$3" $1'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", str(place), sys.executable]
    try:
        done = subprocess.run(
            [*command, PREAMBLE + FULL_DISK], capture_output=True, text=True, check=False
        )
    except OSError:
        pytest.skip("no unshare")
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("may not mount")
    assert done.returncode == 0, done.stderr
    check_report(done.stdout)


def test_a_limit_on_the_size_of_files(home, start_python):
    child = start_python(PREAMBLE + LIMITED, home)
    text = child.stdout.read()
    assert child.wait() == 0
    check_report(text)


def test_a_run_folder_that_is_deleted_under_its_run(recorder, folder, home, url, wait_until):
    recorder.emit(metric(1))
    recorder.emit(Heartbeat(time=2.0, step=1))
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    shutil.rmtree(folder)
    recorder.emit(metric(2))
    recorder.emit(Heartbeat(time=3.0, step=2))
    wait_until(lambda: recorder.store_error is not None)
    assert "deleted" in recorder.store_error
    assert str(folder) in recorder.store_error
    recorder.emit(metric(3))
    recorder.emit(RunEnded(time=9.0, status=Status.COMPLETED, step=3))
    recorder.close()
    assert recorder.lost == 4
    assert not folder.exists()
    with Reader.open(url) as reader:
        assert list(reader.get_series(RUN, "a").steps) == [1]


def test_a_home_that_vanishes(recorder, folder, home, url, wait_until):
    recorder.emit(metric(1))
    recorder.emit(Heartbeat(time=2.0, step=1))
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    shutil.rmtree(home)
    recorder.emit(metric(2))
    wait_until(lambda: recorder.lost == 1)
    assert "deleted" in recorder.store_error
    recorder.close()
    assert not home.exists()


def test_a_run_folder_that_is_moved_keeps_everything(recorder, folder, home, url, wait_until):
    recorder.emit(metric(1))
    recorder.emit(Heartbeat(time=2.0, step=1))
    wait_until(lambda: recorder._folded == recorder._journal.file.end)
    moved = folder.rename(home / "moved")
    for step in range(2, 5):
        recorder.emit(metric(step))
    wait_until(lambda: recorder.store_error is not None)
    recorder.close()
    assert recorder.lost == 0
    found = read_events(moved / "events.jsonl")
    assert [event.step for event in found if isinstance(event, Metrics)] == [1, 2, 3, 4]


UNCLOSED = """
import atexit
atexit.register(log, range(10, 20))
log(range(10))
"""


def test_an_interpreter_that_ends_without_closing(home, url, start_python):
    child = start_python(PREAMBLE + UNCLOSED, home, stderr=subprocess.PIPE)
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait() == 0
    found = read_events(home / "runs" / RUN / "events.jsonl")
    assert [event.step for event in found[1:]] == list(range(20))
    recover(home, url)
    with Reader.open(url) as reader:
        assert list(reader.get_series(RUN, "a").steps) == list(range(20))
