"""The user's own loop as source: which functions are under way, and which of their lines matter.

Reads the frames above a call and the source files they name; runs nothing and changes nothing. A
program without source (a notebook's cell that is gone, a frozen program) has no lines.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from tsx.diagnostics.tracing.places import shorten

MAX_FRAMES = 24
MAX_LINES = 2000  # of one function
_HERE = Path(__file__).resolve().parents[1]
_SKIPPED = (
    *(str(Path(torch.__file__).parent), "<"),
    *(str(_HERE.parent / room) for room in ("diagnostics", "recording", "api.py")),
)
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Guard:
    """A test "counter % interval == 0" in a loop. `body` is the text of what it guards."""

    where: str  # "file.py:12"
    interval: int
    body: str


def list_frames() -> list[FrameType]:
    """Return the frames of the user's program that are under way, the innermost first.

    For use at once: a frame that is kept keeps all its variables.
    """
    found: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < MAX_FRAMES:
        if not frame.f_code.co_filename.startswith(_SKIPPED):
            found.append(frame)
        frame = frame.f_back
    return found


def find_above(frames: Sequence[FrameType], pattern: re.Pattern[str]) -> str:
    """Return "file.py:12" of the nearest line up from where frames are that fits, "" for none."""
    for frame in frames:
        first, lines = _read(frame.f_code)
        for number in range(min(frame.f_lineno, first + len(lines) - 1), first, -1):
            text = lines[number - first].partition("#")[0]
            if pattern.search(text):
                return shorten(f"{frame.f_code.co_filename}:{number}")
    return ""


def find_only_return(code: CodeType) -> str:
    """Return "file.py:12" of the return of a function that has just one, of any other its start."""
    first, lines = _read(code)
    returns = [node.lineno for node in _walk(lines) if isinstance(node, ast.Return)]
    number = returns[0] - 1 if len(returns) == 1 else 0
    return shorten(f"{code.co_filename}:{first + number}") if first else ""


def list_guards(frames: Sequence[FrameType]) -> list[Guard]:
    """Return the tests for multiples in functions under way, as far as their numbers are known."""
    return [guard for frame in frames for guard in _iter_guards(frame)]


def _iter_guards(frame: FrameType) -> Iterator[Guard]:
    first, lines = _read(frame.f_code)
    for node in _walk(lines):
        if not isinstance(node, ast.If):
            continue
        body = "\n".join(ast.unparse(each) for each in node.body)
        for test in ast.walk(node.test):
            if isinstance(test, ast.BinOp) and isinstance(test.op, ast.Mod):
                interval = _resolve(test.right, frame)
                if type(interval) is int and interval > 1:
                    where = f"{frame.f_code.co_filename}:{first + node.lineno - 1}"
                    yield Guard(shorten(where), interval, body)


def _read(code: CodeType) -> tuple[int, list[str]]:
    """Return the number of a function's first line and its lines; (0, []) without source."""
    try:
        lines, first = inspect.getsourcelines(code)
    except (OSError, TypeError, IndexError, SyntaxError):
        return 0, []
    return (max(first, 1), lines) if len(lines) <= MAX_LINES else (0, [])


def _walk(lines: Sequence[str]) -> Iterator[ast.AST]:
    """Yield the syntax of a function's lines; nothing where they cannot be read by themselves."""
    try:
        yield from ast.walk(ast.parse(textwrap.dedent("".join(lines))))
    except (SyntaxError, ValueError, RecursionError):
        return


def _resolve(node: ast.expr, frame: FrameType) -> Any:
    """Return what a literal, a name or a chain of plain attributes stands for, else a marker."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return frame.f_locals.get(node.id, frame.f_globals.get(node.id, _MISSING))
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, frame)
        # No property is run: what is looked up is what is stored.
        return inspect.getattr_static(owner, node.attr, _MISSING)
    return _MISSING
