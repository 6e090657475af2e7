"""SIGKILL at any moment loses no line that was acknowledged."""

from __future__ import annotations

import random
import subprocess

import pytest

from registry.journal import iter_events
from registry.queries import Reader
from registry.recover import recover

LOGGING = """
import os, sys, time
from pathlib import Path
from registry.events import Metrics, RunPrepared, RunResumed, RunStarted
from registry.liveness import RunLock
from registry.store import Recorder
folder, url, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
lock = RunLock.acquire(folder)
recorder = Recorder(folder, url)
if first == 0:
    recorder.emit(RunStarted(time=time.time(), run_id=folder.name, name="x", steps=10**6))
else:
    recorder.emit(RunResumed(time=time.time(), from_step=first, steps=10**6))
recorder.emit(
    RunPrepared(
        time=time.time(), pid=os.getpid(), device="cpu", device_name="", precision="fp32"
    )
)
step = first
while True:
    step += 1
    recorder.emit(Metrics(time=time.time(), step=step, values={"a": step * 0.5, "b": 1.0}))
    os.write(1, b"%d\\n" % step)
    if step % 50 == 0:
        time.sleep(0.01)
"""


@pytest.mark.slow
def test_every_acknowledged_line_is_there_exactly_once(home, url, start_python, wait_until):
    folder = home / "runs" / "aaaa0000"
    rng = random.Random(7)
    last = 0
    for _ in range(10):
        child = start_python(LOGGING, folder, url, last, stderr=subprocess.PIPE)
        assert child.stdout.readline(), child.stderr.read()
        # At least 0 and at most some 600 lines more: before, during and after a fold.
        for _ in range(rng.choice([0, 1, 40, 200, 600])):
            line = child.stdout.readline()
        child.kill()
        rest = child.stdout.read().splitlines() or [line]
        child.wait()
        child.stderr.close()
        acknowledged = int(rest[-1])

        assert recover(home, url) == ("aaaa0000",)
        steps = {}
        for event, _ in iter_events(folder / "events.jsonl"):
            if event.__struct_config__.tag == "metrics":
                steps[event.step] = steps.get(event.step, 0) + 1
        assert min(steps) == 1
        assert max(steps) >= acknowledged
        assert sorted(steps) == list(range(1, max(steps) + 1))
        assert set(steps.values()) == {1}
        with Reader.open(url) as reader:
            run = reader.get_run("aaaa0000")
            assert run.status == "killed"
            assert f"after step {max(steps)}" in run.reason
            for key in ("a", "b"):
                assert list(reader.get_series(run.id, key).steps) == sorted(steps)
        last = max(steps)
