"""Which line of a program a compiled function is compiled again for."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

from torch import nn

from tsx.diagnostics.tracing.places import shorten
from tsx.diagnostics.tracing.trace import is_user_line

_STDLIB = sysconfig.get_path("stdlib")
_LINE_OF_GUARD = re.compile(r"# (\S+\.py):(\d+) in (?!torch_dynamo_resume)")


class Frame(NamedTuple):
    """A function that was compiled."""

    file: str
    line: int
    name: str


def find_use(frame: Frame, reason: str) -> str:
    """Return the line that uses what a guard is about, "" where nobody can tell.

    A guard names the line that read the value first; of a counter that is its own increment, and
    the line that matters is the one that makes the result depend on it.
    """
    found = _LINE_OF_GUARD.search(reason)
    attribute = re.search(r"self\.(\w+) ==", reason)
    if attribute is not None:
        lines = list(_iter_lines(frame))
        uses = [n for n, text in lines if f"self.{attribute[1]}" in text]
        kept = [n for n in uses if not _is_increment(dict(lines)[n], attribute[1])]
        if kept:
            return shorten(f"{frame.file}:{kept[0]}")
    return f"{found[1]}:{found[2]}" if found else ""


def find_assignment(module: nn.Module, name: str) -> str:
    """Return the line outside of __init__ that gives a module another buffer, "" for none."""
    for kind in type(module).__mro__:
        if kind is nn.Module:
            break
        try:
            lines, first = inspect.getsourcelines(kind)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, TypeError, SyntaxError):
            continue
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef) or function.name == "__init__":
                continue
            for node in ast.walk(function):
                if _gives(node, name):
                    line = first + node.lineno - 1  # type: ignore[attr-defined]
                    return shorten(f"{inspect.getsourcefile(kind)}:{line}")
    return ""


def _gives(node: ast.AST, name: str) -> bool:
    """Return whether a statement gives `self` a buffer of that name."""
    if isinstance(node, ast.Call):
        is_register = isinstance(node.func, ast.Attribute) and node.func.attr == "register_buffer"
        first = node.args[0] if node.args else None
        return is_register and isinstance(first, ast.Constant) and first.value == name
    if isinstance(node, ast.Assign):
        return any(isinstance(t, ast.Attribute) and t.attr == name for t in node.targets)
    return False


def _is_increment(text: str, attribute: str) -> bool:
    """Return whether a line only changes the attribute."""
    return re.match(rf"self\.{attribute}\s*([-+*/]?=)(?!=)", text.strip()) is not None


def _iter_lines(frame: Frame) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a function, as far as they are indented."""
    text = linecache.getline(frame.file, frame.line)
    depth = len(text) - len(text.lstrip())
    for number in range(frame.line + 1, frame.line + 500):
        text = linecache.getline(frame.file, number)
        if not text or (text.strip() and len(text) - len(text.lstrip()) <= depth):
            return
        yield number, text


def find_user_frame() -> FrameType | None:
    """Return the innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def is_user_file(path: str) -> bool:
    """Return whether a file is neither torch's, ours nor Python's own."""
    is_stdlib = path.startswith(_STDLIB) and "site-packages" not in path
    return is_user_line(path) and not is_stdlib


def find_module(model: nn.Module, frame: Frame) -> str:
    """Return the first module whose forward a function is, "" for none."""
    for name, module in model.named_modules():
        code = getattr(getattr(type(module), "forward", None), "__code__", None)
        if code is not None and (code.co_filename, code.co_name) == (frame.file, frame.name):
            last = code.co_firstlineno + len(list(code.co_lines()))
            if code.co_firstlineno <= frame.line <= last:
                return str(name)
    return ""


def find_enclosing(model: nn.Module, file: str, function: str, line: int) -> str:
    """Return the first module whose method of that name holds a line."""
    for name, module in model.named_modules():
        code = getattr(getattr(type(module), function, None), "__code__", None)
        if code is None or code.co_filename != file:
            continue
        lines = [number for _, _, number in code.co_lines() if number is not None]
        if min(lines) <= line <= max(lines):
            return str(name)
    return ""
