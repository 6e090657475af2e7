"""The manner of the house, as far as a parser can see it."""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath

import pytest

FULL_INITS = {"tsx/__init__.py"}  # version, and the lazy doors of the Python API
# Who may write to stdout and stderr, and why.
WRITERS = {
    "tsx/cli/output.py",  # the one writer of the command line
    "tsx/cli/live.py",  # rich's progress bar on a terminal
    "tsx/launch/detached.py",  # one line to the starter of a background process
    "tsx/launch/worker.py",  # its stdout is captured, not shown
}
VAGUE = re.compile(r"(^|_)(utils?|helpers?|common|managers?|misc|data2)(_|$)", re.IGNORECASE)
WRITING_CALLS = {"typer.echo", "typer.secho", "click.echo", "rich.print"}


def test_inits_hold_a_docstring_only(sources):
    wrong = [
        source.path
        for source in sources
        if source.path.endswith("__init__.py")
        and source.path not in FULL_INITS
        and not (len(source.tree.body) == 1 and ast.get_docstring(source.tree))
    ]
    assert wrong == []


def test_every_module_says_what_it_owns(sources):
    assert [source.path for source in sources if not ast.get_docstring(source.tree)] == []


def test_no_relative_imports(list_nodes):
    wrong = [
        f"{source.path}:{node.lineno}" for source, node in list_nodes(ast.ImportFrom) if node.level
    ]
    assert wrong == []


def test_no_star_imports(list_nodes):
    wrong = [
        f"{source.path}:{node.lineno}"
        for source, node in list_nodes(ast.ImportFrom)
        if any(alias.name == "*" for alias in node.names)
    ]
    assert wrong == []


def test_no_vague_names(sources, list_nodes):
    modules = [source.path for source in sources if VAGUE.search(PurePosixPath(source.path).stem)]
    named = [
        f"{source.path}:{node.lineno} {node.name}"
        for source, node in list_nodes(ast.FunctionDef, ast.ClassDef)
        if VAGUE.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name))
    ]
    assert (modules, named) == ([], [])


def test_only_the_writer_writes(list_nodes):
    wrong = [
        f"{source.path}:{node.lineno} {what}"
        for source, node in list_nodes(ast.Call)
        if source.path not in WRITERS and (what := find_writing(node))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "writes"),
    [
        ("print('x')", True),
        ("sys.stdout.write('x')", True),
        ("sys.stderr.writelines([])", True),
        ("sys.__stdout__.buffer.write(b'')", True),
        ("os.write(1, b'x')", True),
        ("typer.echo('x')", True),
        ("Console()", True),
        ("Console(file=stream)", False),
        ("sys.stdout.isatty()", False),
        ("os.write(fd, b'x')", False),
        ("file.write('x')", False),
        ("output.data('x')", False),
    ],
)
def test_the_net_for_writers_catches(code, writes):
    call = ast.parse(code, mode="eval").body
    assert bool(find_writing(call)) is writes


def find_writing(call):
    """Return what a call writes with when it writes to stdout or stderr, else ""."""
    name = ast.unparse(call.func)
    if name == "print" or name in WRITING_CALLS:
        return name
    if re.fullmatch(r"sys\.(__)?std(out|err)(__)?(\.buffer)?\.write(lines)?", name):
        return name
    if name == "os.write" and ast.unparse(call.args[0]) in {"1", "2"}:
        return name
    if name.rpartition(".")[2] == "Console":
        return "" if any(keyword.arg == "file" for keyword in call.keywords) else name
    return ""


def test_no_unfinished_work_in_comments(sources):
    wrong = [
        f"{source.path}:{number}"
        for source in sources
        for number, line in enumerate(source.text.splitlines(), 1)
        if re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", line)
    ]
    assert wrong == []
