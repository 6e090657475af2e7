"""Several runs are written and read at once, without a lock error and without a lost row."""

from __future__ import annotations

import subprocess
import threading

import pytest

from registry.queries import Reader
from registry.recover import recover

WRITING = """
import sys, time
from pathlib import Path
from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.store import Recorder
folder, url, lines = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
recorder = Recorder(folder, url)
recorder.emit(RunStarted(time=time.time(), run_id=folder.name, name="x", steps=lines))
errors = set()
for step in range(1, lines + 1):
    recorder.emit(Metrics(time=time.time(), step=step, values={f"k{n}": 0.5 for n in range(8)}))
    time.sleep(0.004)
    errors.add(recorder.store_error)
recorder.emit(RunEnded(time=time.time(), status=Status.COMPLETED, step=lines))
recorder.close()
errors.add(recorder.store_error)
print(errors, flush=True)
"""
LINES = 300
WRITERS, READERS = 8, 4


class Watcher(threading.Thread):
    """Reads everything again and again; what was there once must stay."""

    def __init__(self, home, url):
        super().__init__()
        self._home, self._url = home, url
        self.done = threading.Event()
        self.looks = 0
        self.error = None

    def run(self):
        try:
            with Reader.open(self._url) as reader:
                seen = 0
                while not self.done.is_set():
                    recover(self._home, self._url)
                    reader.data_version()
                    counts = [len(reader.get_series(run.id, "k3")) for run in reader.list_runs()]
                    assert sum(counts) >= seen, counts
                    seen = sum(counts)
                    self.looks += 1
        except BaseException as error:
            self.error = error


@pytest.mark.slow
def test_writers_and_readers_at_once(home, url, start_python):
    names = [f"aaaa000{number}" for number in range(WRITERS)]
    writers = [
        start_python(WRITING, home / "runs" / name, url, LINES, stderr=subprocess.PIPE)
        for name in names
    ]
    watchers = [Watcher(home, url) for _ in range(READERS)]
    for watcher in watchers:
        watcher.start()
    for writer in writers:
        assert writer.stdout.read() == "{None}\n", writer.stderr.read()
        assert writer.stderr.read() == ""
        writer.stderr.close()
    for watcher in watchers:
        watcher.done.set()
        watcher.join()
        assert watcher.error is None
        assert watcher.looks > 0
    with Reader.open(url) as reader:
        runs = reader.list_runs()
        assert sorted(run.id for run in runs) == names
        assert {run.status for run in runs} == {"completed"}
        for run in runs:
            detail = reader.get_detail(run.id)
            assert {summary.count for summary in detail.metrics.values()} == {LINES}
            assert list(reader.get_series(run.id, "k0").steps) == list(range(1, LINES + 1))


@pytest.mark.slow
def test_many_processes_make_the_registry_at_once(home, url, start_python):
    names = [f"aaaa000{number}" for number in range(6)]
    writers = [
        start_python(WRITING, home / "runs" / name, url, 1, stderr=subprocess.PIPE)
        for name in names
    ]
    for writer in writers:
        assert writer.stdout.read() == "{None}\n", writer.stderr.read()
        writer.stderr.close()
    with Reader.open(url) as reader:
        assert sorted(run.id for run in reader.list_runs()) == names
