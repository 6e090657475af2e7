"""What the keys do, over whatever screen is open."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from tsx.dashboard.widgets.lines import Page
from tsx.ink import Line, Piece
from tsx.text import pad

_KEYS = (
    ("↑ ↓  j k", "select a run, or scroll"),
    ("home end  g G", "first and last"),
    ("page up, page down", "a screenful"),
    ("enter", "open the run"),
    ("esc", "back to the list"),
    ("← →  tab", "next and previous tab"),
    ("1 - 5", "a tab by its number"),
    ("?", "this page"),
    ("q", "quit"),
)
_SIGNS = (
    ("━", "a curve, with its last value", "curve-0"),
    ("×", "a value that is not a number", "fault"),  # noqa: RUF001 - the mark of the charts
    ("▲ ▼", "a value that is infinite", "fault"),
    ("╎", "where a curve stops being finite", "fault"),
)


class HelpScreen(ModalScreen[None]):
    """Keys and signs; any of the usual keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter", "dismiss", "Close"),
    ]

    def compose(self) -> ComposeResult:
        """Lay out one page of lines."""
        lines = [Line((Piece("keys", "strong"),))]
        lines += [Line((Piece(pad(key, 20), "accent"), Piece(text))) for key, text in _KEYS]
        lines += [Line(), Line((Piece("charts", "strong"),))]
        lines += [Line((Piece(pad(sign, 20), kind), Piece(text))) for sign, text, kind in _SIGNS]
        yield Page(lines, id="help")
