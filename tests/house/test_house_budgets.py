"""Budgets of size. Over the target is reported (pytest -rP tests/house), over the limit fails."""

from __future__ import annotations

import ast

FILE_TARGET, FILE_LIMIT = 400, 600
FUNCTION_TARGET, FUNCTION_LIMIT = 40, 80
CLASS_LIMIT = 200


def over(sizes, target, limit):
    """Print what is over the target and return what is over the limit."""
    for lines, place in sorted(sizes, reverse=True):
        if lines > target:
            print(f"{lines:>4} lines (target {target}): {place}")
    return [f"{place}: {lines} lines, at most {limit}" for lines, place in sizes if lines > limit]


def measure(nodes):
    """Return (lines, place) of functions or classes, decorators and docstring included."""
    return [
        (node.end_lineno - node.lineno + 1, f"{source.path}:{node.lineno} {node.name}")
        for source, node in nodes
    ]


def test_files_stay_short(sources):
    sizes = [(source.text.count("\n"), source.path) for source in sources]
    assert over(sizes, FILE_TARGET, FILE_LIMIT) == []


def test_functions_stay_short(list_nodes):
    sizes = measure(list_nodes(ast.FunctionDef, ast.AsyncFunctionDef))
    assert len(sizes) > 50
    assert over(sizes, FUNCTION_TARGET, FUNCTION_LIMIT) == []


def test_classes_stay_short(list_nodes):
    assert over(measure(list_nodes(ast.ClassDef)), CLASS_LIMIT, CLASS_LIMIT) == []
