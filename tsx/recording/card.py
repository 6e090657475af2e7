"""A run as a small card of HTML, for notebooks. Standard library only; all text is inert."""

from __future__ import annotations

import html
from collections.abc import Mapping

from tsx.cli.output import clean
from tsx.text import format_value

MAX_VALUES = 12  # keys that are shown; the rest are counted


def make_card(run_id: str, name: str, status: str, step: int, values: Mapping[str, float]) -> str:
    """Return id, name, status, step and the newest values of a run as HTML."""
    rows = [
        f"<tr><td>{_show(key)}</td><td>{_show(format_value(value))}</td></tr>"
        for key, value in list(values.items())[:MAX_VALUES]
    ]
    if len(values) > MAX_VALUES:
        rows.append(f"<tr><td colspan='2'>and {len(values) - MAX_VALUES:,} more</td></tr>")
    head = f"<b>{_show(name)}</b> <code>{_show(run_id)}</code> {_show(status)}, step {step:,}"
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    return f"<div>{head}{table}<code>tsx show {_show(run_id)}</code></div>"


def _show(text: str) -> str:
    """Return text that is neither markup nor control characters."""
    return html.escape(clean(text, limit=100))
