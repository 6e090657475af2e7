"""What is measured of a rival, inside a process of its own: `python -m benchmarks.rivals_measures`.

`benchmarks.rivals` starts it with an order (JSON) and reads the answer from a file, because some
rivals write to stdout. Connections to anything but this machine are refused and counted.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rivals_adapters import get_rival
from benchmarks.rivals_contract import KEYS, PROJECT, Rival, is_same, make_values
from benchmarks.rivals_processes import check_kills, measure_crowd, measure_kills

WARM_UP = 10  # first calls of a paced loop that are not counted
SPIKE = 1e6  # one point of a long series, which a chart must not lose
_LOCAL = ("127.0.0.1", "::1", "localhost")


def main() -> int:
    """Carry out one order: {"rival", "what", "folder", "answer", ...its options}."""
    order = json.loads(sys.argv[1])
    refused = refuse_connections()
    rival = get_rival(order["rival"])(Path(order["folder"]))
    found = MEASURES[order["what"]](rival, order)
    Path(order["answer"]).write_text(json.dumps(found | {"connections": sorted(set(refused))}))
    return 0


def refuse_connections() -> list[str]:
    """Let sockets of this process reach this machine only; return the list of what was refused."""
    refused: list[str] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and str(address[0]) not in _LOCAL:
            refused.append(str(address))
            raise ConnectionRefusedError(f"{address}: this benchmark runs offline")
        connect(self, address)

    def guarded_look_up(host: Any, *rest: Any, **named: Any) -> Any:
        if host not in (*_LOCAL, None, "", socket.gethostname()):
            refused.append(str(host))
            raise socket.gaierror(f"{host}: this benchmark runs offline")
        return look_up(host, *rest, **named)

    socket.socket.connect = guarded  # type: ignore[assignment,method-assign]
    socket.getaddrinfo = guarded_look_up
    return refused


def measure_start(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Return the milliseconds from nothing imported to a run that can log, and of its end."""
    started = time.perf_counter()
    rival.load()
    loaded = time.perf_counter()
    rival.start(order["run"])
    ready = time.perf_counter()
    rival.log(make_values(1), 1)
    logged = time.perf_counter()
    rival.finish()
    return {
        "import_ms": (loaded - started) * 1e3,
        "init_ms": (ready - loaded) * 1e3,
        "finish_ms": (time.perf_counter() - logged) * 1e3,
    }


def measure_pace(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Return what each log call took, in microseconds, by pace and by what lies between."""
    rival.load()
    rival.start(order["run"])
    steps = itertools.count(1)
    found: dict[str, list[float]] = {}
    for pace_ms, calls in order["paces"]:
        for wait in (_sleep, _work):
            times = []
            for _ in range(calls + WARM_UP):
                step = next(steps)
                wait(pace_ms / 1e3)
                values = make_values(step)
                started = time.perf_counter()
                rival.log(values, step)
                times.append((time.perf_counter() - started) * 1e6)
            found[f"{pace_ms:g} ms {wait.__name__.strip('_')}"] = times[WARM_UP:]
    rival.finish()
    return {"times_us": found}


def _sleep(seconds: float) -> None:
    """Leave the processor to others."""
    time.sleep(seconds)


def _work(seconds: float) -> None:
    """Keep the interpreter busy, so that a recorder's thread has to share it."""
    until, total = time.perf_counter() + seconds, 0.0
    while time.perf_counter() < until:
        for number in range(200):
            total += number * 0.5


def fill(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Record one long run; return seconds and the bytes it has added."""
    rival.load()
    if order.get("prepare"):  # so that what every folder holds is not counted as this run's
        rival.fill("first", iter([make_values(1)]))
    before = rival.count_bytes()
    started = time.perf_counter()
    rival.fill(order["run"], _make_rows(order["steps"], order["keys"]))
    seconds = time.perf_counter() - started
    after = rival.count_bytes()
    points = order["steps"] * order["keys"]
    sizes = {kind: (after[kind] - before.get(kind, 0)) / points for kind in after}
    return {"seconds": seconds, "bytes_per_point": sizes, "points": points}


def _make_rows(steps: int, keys: int) -> Iterator[dict[str, float]]:
    """Yield the values of every step, with one spike in the first key."""
    for step in range(1, steps + 1):
        values = make_values(step, keys)
        if step == find_spike(steps):
            values[KEYS[0]] = SPIKE
        yield values


def find_spike(steps: int) -> int:
    """Return the step of the spike: no round number, and no multiple of a likely stride."""
    return steps * 2 // 3 | 1


def measure_read(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Return the milliseconds of each read of a curve, and whether it is all there."""
    rival.load_reader()
    width, steps = order.get("width"), order["steps"]
    times, curve = [], None
    for _ in range(order["times"]):
        started = time.perf_counter()
        if width is None:
            curve = rival.read_series(order["run"], KEYS[0])
        else:
            curve = rival.read_outline(order["run"], KEYS[0], width)
        times.append((time.perf_counter() - started) * 1e3)
    assert curve is not None
    return {
        "ms": times,
        "of": steps,
        "points": len(curve.steps),
        "missing": steps - len(set(curve.steps)) if width is None else 0,
        "spike": bool(len(curve.values)) and is_same(max(curve.values), SPIKE),
    }


def make_runs(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Record many short runs, three steps each."""
    rival.load()
    for number in range(order["runs"]):
        rival.fill(f"run{number:05}", (make_values(step) for step in (1, 2, 3)))
    return {}


def make_journals(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Record many short runs of tsx through their journals: thousands in seconds."""
    from registry.connection import open_engine
    from registry.events import Metrics, RunEnded, RunStarted, Status
    from registry.sinks import JournalSink
    from registry.store import ingest

    engine = open_engine(f"sqlite:///{rival.folder / 'registry.db'}", readonly=False)
    for number in range(order["runs"]):
        run = f"{number:08}"
        sink = JournalSink(rival.folder / "runs" / run)
        now = time.time()
        sink.emit(RunStarted(time=now, run_id=run, name=f"run{number:05}", project=PROJECT))
        for step in (1, 2, 3):
            sink.emit(Metrics(time=now, step=step, values=make_values(step)))
        sink.emit(RunEnded(time=now, status=Status.COMPLETED, step=3))
        sink.close()
        ingest(engine, rival.folder / "runs" / run)
    engine.dispose()
    return {}


def measure_list(rival: Rival, order: dict[str, Any]) -> dict[str, Any]:
    """Return the milliseconds of each list of runs with their last values, and what it lacks."""
    rival.load_reader()
    times, listed = [], {}
    for _ in range(order["times"]):
        started = time.perf_counter()
        listed = rival.list_runs(order["limit"])
        times.append((time.perf_counter() - started) * 1e3)
    wanted = make_values(3)
    right = sum(
        all(is_same(values.get(key, -1.0), wanted[key]) for key in KEYS)
        for values in listed.values()
    )
    return {"ms": times, "of": order["runs"], "missing": order["limit"] - right}


MEASURES: dict[str, Callable[[Rival, dict[str, Any]], dict[str, Any]]] = {
    "start": measure_start,
    "pace": measure_pace,
    "kills": measure_kills,
    "check_kills": check_kills,
    "fill": fill,
    "read": measure_read,
    "make_runs": make_runs,
    "make_journals": make_journals,
    "list": measure_list,
    "crowd": measure_crowd,
}

if __name__ == "__main__":
    sys.exit(main())
