"""What is measured with several processes: points lost at a kill, and a crowd at one registry.

Each process is forked from one that has imported the library, so that neither costs an import.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import signal
import struct
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from benchmarks.rivals_contract import KEYS, Rival, is_same, make_values

_COUNTER = struct.Struct("q")
_ACKNOWLEDGED = "acknowledged.json"
_READY_S = 120.0  # a run may take this long to begin
_Job = Callable[[Rival, str, dict[str, Any], float], dict[str, Any]]


def measure_kills(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Kill a logging process at random moments; return what each had been told was recorded.

    The library is imported once and each victim forked from there, so that a kill costs no import;
    runs begin in the victim.
    """
    rival.load()
    rng = random.Random(order["seed"])
    acknowledged = {}
    for number in range(order["kills"]):
        run = f"{order['run']}{number:04}"
        after_s = rng.uniform(*order["between_s"])
        acknowledged[run] = _kill_one(rival, run, order["pace_ms"] / 1e3, after_s)
    time.sleep(order["settle_s"])  # a rival's own helper process may still be writing
    (rival.folder / _ACKNOWLEDGED).write_text(json.dumps(acknowledged))
    return {"kills": len(acknowledged)}


def _kill_one(rival: Rival, run: str, pace_s: float, after_s: float) -> int:
    """Start a victim, kill it so long after its first call returned; return its calls that did."""
    counter = mmap.mmap(-1, _COUNTER.size)  # shared with the child, outlives its kill
    pid = os.fork()
    if pid == 0:
        _log_until_killed(rival, run, pace_s, counter)
    deadline = time.monotonic() + _READY_S
    while _COUNTER.unpack_from(counter)[0] < 1:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError(f"{rival.name}: the run ended before its first log call")
        if time.monotonic() > deadline:
            break  # nothing acknowledged, nothing to lose
        time.sleep(0.001)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return int(_COUNTER.unpack_from(counter)[0])


def _log_until_killed(rival: Rival, run: str, pace_s: float, counter: mmap.mmap) -> NoReturn:
    """Log at a pace and count the calls that returned; the child's whole life."""
    try:
        rival.start(run)
        for step in itertools.count(1):
            rival.log(make_values(step), step)
            _COUNTER.pack_into(counter, 0, step)
            if pace_s:
                time.sleep(pace_s)
    finally:
        os._exit(1)


def check_kills(rival: Rival, _order: dict[str, Any]) -> dict[str, Any]:
    """Return how many acknowledged calls the rival's reader does not give back, and of how many."""
    rival.load_reader()
    lost, told, unreadable, worst = 0, 0, 0, 0
    acknowledged = json.loads((rival.folder / _ACKNOWLEDGED).read_text())
    for run, count in acknowledged.items():
        told += count
        try:
            here = [
                dict(zip(*rival.read_series(run, key), strict=True)) for key in (KEYS[0], KEYS[-1])
            ]
        except Exception:  # whatever it is, the user does not get the run
            unreadable += 1
            here = [{}, {}]
        missing = count - sum(_has(here, step) for step in range(1, count + 1))
        lost, worst = lost + missing, max(worst, missing)
    return {
        **{"kills": len(acknowledged), "acknowledged": told, "lost": lost},
        **{"unreadable_runs": unreadable, "most_lost": worst},
    }


def _has(curves: list[dict[int, float]], step: int) -> bool:
    """Tell whether the first and the last key of a step have their values."""
    wanted = make_values(step)
    return all(
        step in curve and is_same(curve[step], wanted[key])
        for key, curve in zip((KEYS[0], KEYS[-1]), curves, strict=True)
    )


def measure_crowd(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Let writers and readers of several processes at the same registry for some seconds.

    Every process is forked from one that has imported the library, begins on its own, and waits for
    the others before its loop.
    """
    rival.load()
    rival.load_reader()
    os.waitpid(_fork(rival, "first", _write, order | {"seconds": 0.1}, time.time()), 0)
    barrier = time.time() + order["start_s"]
    writers = [f"writer{number}" for number in range(order["writers"])]
    jobs: list[tuple[str, _Job]] = [
        *((name, _write) for name in writers),
        *((f"reader{number}", _read) for number in range(order["readers"])),
    ]
    children = {name: _fork(rival, name, job, order, barrier) for name, job in jobs}
    for pid in children.values():
        os.waitpid(pid, 0)
    answers: dict[str, dict[str, Any]] = {}
    for name in children:
        path = rival.folder / f"{name}.answer"
        answers[name] = json.loads(path.read_text()) if path.is_file() else {"died": 1}
    written = {name: answer.get("rows", 0) for name, answer in answers.items() if name in writers}
    found = sum(_count_rows(rival, name) for name in written)
    errors = [error for answer in answers.values() for error in answer.get("errors", [])]
    return {
        "expected": sum(written.values()) * len(KEYS),
        "found": found,
        "reads": sum(answer.get("reads", 0) for answer in answers.values()),
        "errors": len(errors),
        "locked": sum("lock" in error.lower() or "busy" in error.lower() for error in errors),
        "first_error": errors[0][:200] if errors else "",
        "died": sum(answer.get("died", 0) for answer in answers.values()),
    }


def _fork(rival: Rival, name: str, job: _Job, order: dict[str, Any], barrier: float) -> int:
    """Run a job in a child that leaves its answer in a file; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    errors: list[str] = []
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, kind, *_rest, **_named: (
        None if issubclass(kind, DeprecationWarning) else errors.append(f"warned: {message}")
    )
    try:
        answer: dict[str, Any] = {}
        try:
            answer = job(rival, name, order | {"errors": errors}, barrier)
        except Exception as error:  # a fault of the rival is what is measured
            errors.append(f"{type(error).__name__}: {error}")
        (rival.folder / f"{name}.answer").write_text(json.dumps(answer | {"errors": errors}))
    finally:
        os._exit(0)


def _write(rival: Rival, name: str, order: dict[str, Any], barrier: float) -> dict[str, Any]:
    """Log at a pace for a while; return the calls that returned."""
    rival.start(name)
    time.sleep(max(0.0, barrier - time.time()))
    until, rows, step = time.monotonic() + order["seconds"], 0, 0
    while time.monotonic() < until:
        step += 1
        try:
            rival.log(make_values(step), step)
            rows += 1
        except Exception as error:
            order["errors"].append(f"{type(error).__name__}: {error}")
        time.sleep(order["pace_ms"] / 1e3)
    try:
        rival.finish()
    except Exception as error:
        order["errors"].append(f"{type(error).__name__}: {error}")
    return {"rows": rows}


def _read(rival: Rival, _name: str, order: dict[str, Any], barrier: float) -> dict[str, Any]:
    """List runs and read a curve again and again; return how often that worked."""
    time.sleep(max(0.0, barrier - time.time()))
    until, reads = time.monotonic() + order["seconds"], 0
    while time.monotonic() < until:
        try:
            rival.list_runs(50)
            rival.read_series("first", KEYS[0])
            reads += 1
        except Exception as error:
            order["errors"].append(f"{type(error).__name__}: {error}")
        time.sleep(0.01)
    return {"reads": reads}


def _count_rows(rival: Rival, run: str) -> int:
    """Return the points of a run that its reader gives back, every key counted."""
    try:
        return sum(len(set(rival.read_series(run, key).steps)) for key in KEYS)
    except Exception:  # a run that nobody can read has no rows
        return 0
