"""Make the table of `benchmarks.rivals` out of its answers: Markdown, ready for README.md."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rivals_contract import Rival

Found = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # part, rival, rounds
Rounds = Sequence[Mapping[str, Any]]


class Cell(NamedTuple):
    """What one row says of one rival; `value` is what a target is compared with."""

    text: str
    value: float


class Row(NamedTuple):
    """One row: what it shows of which part, and what tsx promises."""

    title: str
    part: str
    show: Callable[[Rounds], Cell]
    target: float | None = None
    unit: str = ""


def render(
    rivals: Sequence[type[Rival]],
    found: Found,
    failed: Mapping[tuple[str, str], str],
    about: str,
) -> tuple[str, int]:
    """Return the table with all that is known so far, and the number of missed targets."""
    missed = 0
    lines = [about, "", _say_versions(rivals), "", "", ""]
    lines[-2] = "| what | " + " | ".join(rival.name for rival in rivals) + " | limit for tsx |"
    lines[-1] = "|---" * (len(rivals) + 2) + "|"
    for row in _list_rows(found):
        cells, verdict = [], "" if row.target is None else f"{row.target:g} {row.unit}".strip()
        for rival in rivals:
            rounds = found.get(row.part, {}).get(rival.name, ())
            if not rounds:
                cells.append("broke" if (row.part, rival.name) in failed else "")
                continue
            cell = row.show(rounds)
            cells.append(cell.text)
            if rival.promises and row.target is not None and cell.value > row.target:
                verdict += ": **missed**"
                missed += 1
        if any(cells):
            lines.append(f"| {row.title} | " + " | ".join(cells) + f" | {verdict} |")
    notes = [f"{rival.name} {rival.outline_note}" for rival in rivals]
    lines += ["", "A chart is given, by " + "; by ".join(notes) + "."]
    lines += [_say_connections(found)]
    lines += [f"Broke: {name}, {part}: {why}." for (part, name), why in failed.items()]
    return "\n".join(lines), missed


def describe_machine(absent: Sequence[str], quick: bool) -> str:
    """Return where and when, and who is not there to be measured."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    told = (
        f"{os.cpu_count()} cores of {_read_processor()}, {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d', time.gmtime())}; "
        f"load average at the start {os.getloadavg()[0]:.1f}."
    )
    if quick:
        told += " A quick run: too little of everything for figures."
    if absent:
        told += (
            f" Not installed, so not measured: {', '.join(absent)} (`make rivals` installs all)."
        )
    return told


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _say_versions(rivals: Sequence[type[Rival]]) -> str:
    return "Versions: " + ", ".join(rival.list_versions() for rival in rivals) + "."


def _say_connections(found: Found) -> str:
    """Return what the processes have tried to reach outside this machine."""
    tried: dict[str, set[str]] = {}
    for part in found.values():
        for name, rounds in part.items():
            for answer in rounds:
                tried.setdefault(name, set()).update(answer.get("connections", ()))
    named = [f"{name} ({', '.join(sorted(hosts))})" for name, hosts in tried.items() if hosts]
    return "Tried to leave the machine, and refused: " + (", ".join(named) or "nobody") + "."


def _list_rows(found: Found) -> list[Row]:
    """Return every row; how much was measured is told from the answers."""
    rows = [
        Row("import, ms", "start", _show_start("import_ms")),
        Row("start of a run, ms (the first of all)", "start", _show_start("init_ms")),
        Row("end of a run, ms", "start", _show_start("finish_ms")),
    ]
    paced = [answer for rounds in found.get("pace", {}).values() for answer in rounds]
    for case in paced[0]["times_us"] if paced else ():
        title = f"log call of 8 values, {case} between: median (99th percentile), us"
        rows.append(Row(title, "pace", _show_pace(case), 10, "us"))
    chart = "for a chart of 1,000 columns, ms"
    long = _count(found, "long outline")
    return [
        *rows,
        Row("lost at SIGKILL, a call every 2 ms", "kills", _show_kills, 0),
        Row("lost at SIGKILL, calls without a pause", "kills_full", _show_kills, 0),
        Row(f"a curve of {_count(found, 'series')} points, ms", "series", _show_read, 120, "ms"),
        Row(f"the same {chart}", "outline", _show_outline),
        Row(
            f"{long} points {chart}",
            "long outline",
            _show_outline,
            10,
            "ms",
        ),
        Row(f"{_count(found, 'list')} runs with last values, ms", "list", _show_list, 30, "ms"),
        Row(f"the newest 100 of {_count(found, 'page')} runs, ms", "page", _show_list, 100, "ms"),
        Row("8 writers and 4 readers at once, points", "crowd", _show_crowd, 0),
        Row("bytes a point", "size", _show_size, 40, "bytes"),
    ]


def _count(found: Found, part: str) -> str:
    """Return how many points or runs a part is about."""
    counts = [answer["of"] for rounds in found.get(part, {}).values() for answer in rounds]
    return f"{max(counts, default=0):,}"


def _show_start(key: str) -> Callable[[Rounds], Cell]:
    """Show the median of all rounds but the first, and the first, which makes the database."""

    def show(rounds: Rounds) -> Cell:
        later = [answer[key] for answer in rounds[1:]] or [rounds[0][key]]
        middle = statistics.median(later)
        first = f" ({rounds[0][key]:,.0f})" if key == "init_ms" else ""
        return Cell(f"{middle:,.0f}{first}", middle)

    return show


def _show_pace(case: str) -> Callable[[Rounds], Cell]:
    def show(rounds: Rounds) -> Cell:
        times = sorted(time for answer in rounds for time in answer["times_us"].get(case, ()))
        if not times:
            return Cell("", 0)
        middle = statistics.median(times)
        return Cell(f"{_say(middle)} ({_say(times[int(len(times) * 0.99)])})", middle)

    return show


def _say(number: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"


def _show_kills(rounds: Rounds) -> Cell:
    (answer,) = rounds
    text = f"{answer['lost']:,} of {answer['acknowledged']:,} in {answer['kills']} kills"
    if answer["unreadable_runs"]:
        text += f", {answer['unreadable_runs']} runs unreadable"
    return Cell(text, answer["lost"])


def _show_read(rounds: Rounds) -> Cell:
    missing = max(answer["missing"] for answer in rounds)
    return _time_reads(rounds, f", {missing:,} points missing" if missing else "")


def _show_outline(rounds: Rounds) -> Cell:
    lost = "" if all(answer["spike"] for answer in rounds) else ", the spike **lost**"
    shown = _time_reads(rounds, lost)
    return shown._replace(text=f"{shown.text}; {rounds[0]['points']:,} points")


def _show_list(rounds: Rounds) -> Cell:
    missing = max(answer["missing"] for answer in rounds)
    return _time_reads(rounds, f", {missing} runs wrong" if missing else "")


def _show_crowd(rounds: Rounds) -> Cell:
    (answer,) = rounds
    lost = answer["expected"] - answer["found"]
    text = f"{lost:,} lost of {answer['expected']:,}, {answer['errors']} errors"
    if answer["locked"]:
        text += f" ({answer['locked']} of a lock)"
    if answer["died"]:
        text += f", {answer['died']} processes died"
    return Cell(f"{text}, {answer['reads']} reads", abs(lost) + answer["errors"] + answer["died"])


def _show_size(rounds: Rounds) -> Cell:
    (answer,) = rounds
    sizes = answer["bytes_per_point"]
    beside = "".join(f", {kind} {size:.1f}" for kind, size in sizes.items() if kind != "store")
    return Cell(f"{sizes['store']:.1f}{beside} ({answer['points']:,} points)", sizes["store"])


def _time_reads(rounds: Rounds, fault: str) -> Cell:
    """Show the median of the reads, and that of the first ones, which open what they read.

    What is read with a fault is not read in time.
    """
    later = statistics.median(ms for answer in rounds for ms in answer["ms"][1:] or answer["ms"])
    first = statistics.median(answer["ms"][0] for answer in rounds)
    return Cell(f"{later:,.1f} ({first:,.0f}){fault}", math.inf if fault else later)
