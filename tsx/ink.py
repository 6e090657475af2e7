"""Lines as pieces of text of a kind: what the command line and the dashboard both show.

The command line gives each kind a terminal colour (`tsx.cli.paint`), the dashboard one of its style
sheet. Pure; standard library only.
"""

from __future__ import annotations

from typing import NamedTuple

STATUS_GLYPHS = {
    "running": "●",
    "completed": "✓",
    "failed": "✗",
    "diverged": "✗",
    "oom": "✗",
    "interrupted": "◌",
    "killed": "✗",
}
STATUSES = tuple(STATUS_GLYPHS)
SEVERITY_GLYPHS = {"info": "·", "warning": "▲", "error": "✗"}
SEVERITIES = tuple(SEVERITY_GLYPHS)
NUM_CURVE_INKS = 8

KINDS = (
    "text",
    "strong",  # names and titles
    "muted",
    "faint",  # frames
    "grid",
    "accent",
    "hint",
    "fault",
    "head",
    "better",
    "worse",
    "cursor",
    *STATUSES,
    *SEVERITIES,
    *(f"curve-{number}" for number in range(NUM_CURVE_INKS)),
)
INK_CLASSES = {f"ink--{kind}" for kind in KINDS}


class Piece(NamedTuple):
    """A stretch of one line and its kind."""

    text: str
    kind: str = "text"


class Line(NamedTuple):
    """One line: pieces from the left edge, and pieces that end at the right edge."""

    left: tuple[Piece, ...] = ()
    right: tuple[Piece, ...] = ()


def find_status_kind(status: str) -> str:
    """Return the kind of text a status is written in; an unknown one as a failure."""
    return status if status in STATUSES else "failed"
