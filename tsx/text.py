"""How numbers, times and names are written for people. Pure; standard library only.

Times shown are local; everything stored is UTC seconds. Cells are terminal cells: wide characters
take two, combining ones none.
"""

from __future__ import annotations

import math
import time
import unicodedata

ABSENT = "–"  # noqa: RUF001 - a dash where there is no value


def count_cells(text: str) -> int:
    """Return the terminal cells of a text."""
    if text.isascii():
        return len(text)
    return sum(count_char_cells(char) for char in text)


def count_char_cells(char: str) -> int:
    """Return the terminal cells of one character: 0, 1 or 2."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, width: int) -> str:
    """Return the printable part of `text` in at most `width` cells, an ellipsis where it is cut."""
    text = text if text.isprintable() else "".join(char for char in text if char.isprintable())
    if count_cells(text) <= width:
        return text
    kept, used = [], 0
    for char in text:
        used += count_char_cells(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept) + "…" if width > 0 else ""


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Return `text` cut or filled with spaces to exactly `width` cells."""
    text = fit(text, width)
    gap = " " * (width - count_cells(text))
    return gap + text if right else text + gap


def format_value(value: float | None, digits: int = 4) -> str:
    """Return a metric in few cells: 0.4312, 23,243, 1.5e-06, NaN, Infinity."""
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    size = abs(float(f"{value:.{digits}g}"))  # as it will be shown: 0.99999 is 1.000
    if size != 0 and (size < 10 ** (1 - digits) or size >= 1e9):
        return f"{value:.{digits - 2}e}"
    if size >= 10**digits:
        return f"{value:,.0f}"
    whole = len(str(int(size))) if size >= 1 else 0
    text = f"{value:.{max(digits - whole, 0)}f}"
    return text if value != int(value) else (f"{int(value)}" if size >= 1 or value == 0 else text)


def format_exact(value: float) -> str:
    """Return a value that reads back as the same float; non-finite ones by their JSON names."""
    return repr(value) if math.isfinite(value) else format_value(value)


def format_step(step: int, steps: int) -> str:
    """Return done and planned steps: 120/200, or just the steps done where no plan is known."""
    return f"{step}/{steps}" if steps else str(step)


def format_duration(seconds: float) -> str:
    """Return a span of time in two units at most: 42s, 3m05s, 2h07m, 5d03h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    for size, unit, small, small_unit in ((3600, "m", 60, "s"), (86400, "h", 3600, "m")):
        if whole < size:
            rest = whole % small if unit == "m" else whole % 3600 // 60
            return f"{whole // small}{unit}{rest:02d}{small_unit}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_age(then: float, now: float) -> str:
    """Return how long ago a moment was, in one unit: now, 42s, 3m, 2h, 5d."""
    seconds = now - then
    if seconds < 1:
        return "now"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def format_when(then: float) -> str:
    """Return a moment in local time: 2026-01-31 14:03:07."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then))
    except (OverflowError, OSError, ValueError):
        return f"@{then:.0f}"


def format_bytes(size: int) -> str:
    """Return a size in binary units: 512 B, 1.5 MiB."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def format_count(count: float) -> str:
    """Return a large count with a unit: 950, 23.2k, 113.35M, 2.42B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(count) >= limit:
            return f"{count / limit:.2f}{unit}"
    return f"{count / 1e3:.1f}k" if abs(count) >= 1e4 else f"{count:,.0f}"
