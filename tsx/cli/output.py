"""The only writer to stdout and stderr.

stdout is data, stderr is talk. Text from runs, recipes and paths may be hostile: everything that
goes through here has its escape codes and control characters made visible, and no text is ever
read as markup. Color only on a terminal, and not under NO_COLOR. rich is imported only to draw a
table or a bar on a terminal.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

MAX_LINE = 20_000  # characters of one line of text; what follows is cut and counted
MAX_CELL = 200  # characters of one table cell

Style = Literal["", "dim", "strong", "good", "warning", "bad", "accent", "curve 4", "curve 5"]

_SGR = {
    **{"dim": "2", "strong": "1", "good": "32", "warning": "33", "bad": "31", "accent": "36"},
    **{"curve 4": "35", "curve 5": "34"},  # of a chart; its first three are accent, warning, good
}
_RICH = {
    "": "",
    "dim": "dim",
    "strong": "bold",
    "good": "green",
    "warning": "yellow",
    "bad": "red",
    "accent": "cyan",
    "curve 4": "magenta",
    "curve 5": "blue",
}
# C0 and C1 controls, DEL, line and paragraph separators, marks that reorder or hide text
# (bidirectional, zero-width, byte-order), tag characters, and halves of surrogate pairs.
_HOSTILE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


class Column(NamedTuple):
    """A table column. `style` colors its cells on a terminal."""

    name: str
    right: bool = False
    style: Style = ""


class Cell(NamedTuple):
    """A table cell with a color of its own."""

    text: object
    style: Style = ""


def clean(text: object, *, limit: int = MAX_LINE) -> str:
    r"""Return `text` as one line that no terminal acts on.

    Escape becomes U+241B, newline and tab `\n` and `\t`, other controls `\x07`, `\u202e` and so
    on; nothing else changes. More than `limit` characters are cut, with the count in their place.
    """
    kept = str(text)
    if len(kept) > limit:
        kept = f"{kept[:limit]}... (+{len(kept) - limit} characters)"
    return _HOSTILE.sub(_show_control, kept)


def clean_lines(text: str, *, limit: int = MAX_LINE) -> str:
    """Return `text` with every line made inert; newlines stay, tabs become spaces."""
    lines = text.replace("\r\n", "\n").expandtabs(4).split("\n")
    return "\n".join(clean(line, limit=limit) for line in lines)


def data(text: str, *, style: Style = "", limit: int = MAX_LINE) -> None:
    """Write text and a newline to stdout; a line is cut at `limit` characters."""
    _write(sys.stdout, _paint(clean_lines(text, limit=limit), style, sys.stdout))


def pieces(parts: Iterable[tuple[str, Style]]) -> None:
    """Write one line of differently styled texts to stdout."""
    _write(sys.stdout, "".join(_paint(clean(text), style, sys.stdout) for text, style in parts))


def talk(text: str, *, style: Style = "") -> None:
    """Write text and a newline to stderr."""
    _write(sys.stderr, _paint(clean_lines(text), style, sys.stderr))


def warn(text: str) -> None:
    """Write a warning to stderr."""
    talk(f"warning: {text}", style="warning")


def error(message: str, *, next_command: str = "") -> None:
    """Write an error and what to type next to stderr; never fails itself.

    Further lines are set in: a file's name with a line break in it cannot pose as a line of ours.
    """
    try:
        talk("error: " + message.replace("\n", "\n  "), style="bad")
        if next_command:
            talk("next: " + next_command.replace("\n", "\n  "))
        sys.stderr.flush()
    except OSError:
        return  # nobody reads: the exit status is all that is left


def json(obj: object) -> None:
    """Write one strict JSON document to stdout: ASCII, non-finite values as strings."""
    import json as stdlib_json

    _write(sys.stdout, stdlib_json.dumps(to_strict(obj), indent=2, allow_nan=False))


def to_strict(obj: object) -> object:
    """Return `obj` with non-finite floats as "NaN", "Infinity", "-Infinity", tuples as lists.

    Raises:
        TypeError: something JSON has no form for.
    """
    if obj is None or isinstance(obj, str | bool | int):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else _name_nonfinite(obj)
    if isinstance(obj, Mapping):
        return {str(key): to_strict(value) for key, value in obj.items()}
    if isinstance(obj, Iterable):
        return [to_strict(value) for value in obj]
    raise TypeError(f"no JSON form for {type(obj).__name__}")


def table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[object]],
    *,
    max_cell: int = MAX_CELL,
) -> None:
    """Write a table to stdout: drawn by rich on a terminal, aligned text elsewhere.

    Cells are cleaned and cut at `max_cell` characters. On a terminal a table wider than the screen
    folds its cells; elsewhere a row is one line, whatever its length.
    """
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    cells = [
        [_make_cell(cell, head, max_cell) for cell, head in zip(row, heads, strict=True)]
        for row in rows
    ]
    if is_terminal(sys.stdout):
        _draw_table(heads, cells)
    else:
        _write(sys.stdout, "\n".join(_align(heads, cells)))


def flush() -> None:
    """Hand everything written to the kernel, so that a full disk or closed pipe is noticed.

    Raises:
        OSError: the reader is gone or the disk is full.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def abandon_broken() -> None:
    """Stop writing where it fails: its reader is gone, and the exit of Python must not fail too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _abandon(stream)


def open_missing() -> None:
    """Give a process that was started with closed streams /dev/null in their place.

    Else the next file that it opens would get the number of one of them, and what is printed.
    """
    while (sink := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(sink, True)
    os.close(sink)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def is_terminal(stream: TextIO) -> bool:
    """Return whether a person reads this stream directly."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def use_color(stream: TextIO) -> bool:
    """Return whether color may be written: a terminal that knows any, and no NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return is_terminal(stream) and not plain


def terminal_size() -> tuple[int, int]:
    """Return columns and rows of the terminal, 80x24 where there is none."""
    size = shutil.get_terminal_size()
    return size.columns, size.lines


def _abandon(stream: TextIO) -> None:
    """Let what a stream still has go to nobody."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
        stream.flush()
    except (OSError, ValueError):
        name = "stdout" if stream is sys.stdout else "stderr"
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it lives as long as the process


def _show_control(match: re.Match[str]) -> str:
    """Return the visible form of one hostile character."""
    char = match.group()
    if char == "\x1b":
        return "␛"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def make_bars(*columns: ProgressColumn) -> Progress:
    """Return rich's progress on stderr: description, bar, `columns`, remaining time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )


def _name_nonfinite(value: float) -> str:
    """Return the string that stands for a non-finite value."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _paint(text: str, style: Style, stream: TextIO) -> str:
    """Return cleaned text in color where the stream shows any."""
    if not style or not use_color(stream):
        return text
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m"


def _write(stream: TextIO, text: str) -> None:
    """Write a line; characters the stream cannot encode become escapes."""
    try:
        stream.write(f"{text}\n")
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))


def _make_cell(cell: object, head: Column, limit: int) -> Cell:
    """Return a cleaned cell in its own or its column's style."""
    text, style = cell if isinstance(cell, Cell) else (cell, head.style)
    return Cell(clean(text, limit=limit), style)


def _align(heads: list[Column], rows: list[list[Cell]]) -> list[str]:
    """Return the table as aligned plain lines, two spaces between columns."""
    from tsx.text import count_cells, pad

    lines = [[head.name for head in heads], *([str(cell.text) for cell in row] for row in rows)]
    widths = [max(count_cells(line[i]) for line in lines) for i in range(len(heads))]
    return [
        "  ".join(
            pad(text, width, right=head.right)
            for text, width, head in zip(line, widths, heads, strict=True)
        ).rstrip()
        for line in lines
    ]


def _draw_table(heads: list[Column], rows: list[list[Cell]]) -> None:
    """Draw the table with rich; cells are Text, so nothing in them is markup."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        justify: Literal["left", "right"] = "right" if head.right else "left"
        drawn.add_column(Text(head.name), justify=justify, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell.text), style=_RICH[cell.style]) for cell in row))
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False).print(drawn)
