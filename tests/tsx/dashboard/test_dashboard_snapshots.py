"""What the dashboard looks like, cell by cell; and the screenshot of the README.

`pytest --snapshot-update` accepts a new look and writes the screenshot anew.
"""

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest

SIZES = [(80, 24), (120, 40), (200, 50)]
CELL_WIDTH, CELL_HEIGHT, BASELINE = 12.2, 24.4, 18.5  # of Rich's SVG, in its own units
BRAILLE = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # bit -> (side, row)
TEXT = re.compile(
    r'(?P<head><text class="(?P<style>[^"]+)" x="(?P<x>[^"]+)" y="(?P<y>[^"]+)"[^>]*>)'
    r"(?P<text>[^<]*[\u2800-\u28ff][^<]*)</text>"
)
SCREENSHOT = Path(__file__).parents[3] / "docs" / "assets" / "dashboard.svg"


@pytest.fixture
def settled(until):
    """Return a function for `run_before`: press keys once the first snapshot is on screen."""

    def make(*keys):
        async def run(pilot):
            app = pilot.app
            await until(pilot, lambda: app._snapshot is not None)
            for key in keys:
                await pilot.press(key)
                await until(pilot, lambda: is_settled(app))
            await until(pilot, lambda: is_settled(app))

        return run

    return make


def is_settled(app):
    """Return whether what is shown belongs to what is asked for."""
    snapshot, focus = app._snapshot, app._find_focus()
    if not snapshot.runs:
        return True
    is_same = snapshot.run_id == focus.run_id
    return is_same and (not focus.full or snapshot.detail is not None)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_overview(snap_compare, make_app, filled, settled, size):
    assert snap_compare(make_app(filled), terminal_size=size, run_before=settled("down", "up"))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_run(snap_compare, make_app, filled, settled, size):
    keys = settled("down", "down", "enter")
    assert snap_compare(make_app(filled), terminal_size=size, run_before=keys)


@pytest.mark.parametrize("tab", ["metrics", "findings", "config", "about"])
def test_tabs(snap_compare, make_app, filled, settled, tab):
    number = str(["curves", "metrics", "findings", "config", "about"].index(tab) + 1)
    keys = settled("down", "down", "enter", number)
    assert snap_compare(make_app(filled), terminal_size=(100, 30), run_before=keys)


@pytest.mark.parametrize("size", [(40, 12), (80, 24)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_empty(snap_compare, make_app, empty, settled, size):
    assert snap_compare(make_app(empty), terminal_size=size, run_before=settled())


def test_smallest(snap_compare, make_app, filled, settled):
    assert snap_compare(make_app(filled), terminal_size=(40, 12), run_before=settled())


def test_help(snap_compare, make_app, filled, settled):
    keys = settled("question_mark")
    assert snap_compare(make_app(filled), terminal_size=(80, 24), run_before=keys)


async def test_the_screenshot_of_the_readme_is_what_is_drawn(make_app, filled, settled, request):
    tame = {"p0o9i8u7": {"name": "long-context", "reason": ""}}
    filled.runs = [replace(run, **tame.get(run.id, {})) for run in filled.runs]
    app = make_app(filled)
    async with app.run_test(size=(110, 34)) as pilot:
        await settled()(pilot)
        drawn = draw_dots(app.export_screenshot(title="tsx dashboard", simplify=True))
    if request.config.getoption("--snapshot-update"):
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        SCREENSHOT.write_text(drawn, encoding="utf-8")
    assert SCREENSHOT.is_file(), "run: pytest tests/tsx/dashboard --snapshot-update"
    assert "<circle" in drawn
    assert not re.search("[\u2800-\u28ff]", drawn)
    assert without_ids(SCREENSHOT.read_text(encoding="utf-8")) == without_ids(drawn)


def without_ids(svg):
    """Return an SVG without the names Textual makes up for its styles."""
    return re.sub(r"terminal-\d+", "terminal", svg)


def draw_dots(svg):
    """Return the SVG with braille as circles: few fonts of a browser have these characters."""

    def replace_text(found):
        style, x, y, text = found["style"], float(found["x"]), float(found["y"]), found["text"]
        chars = list(html.unescape(text))
        dots = []
        for column, char in enumerate(chars):
            mask = ord(char) - 0x2800 if "\u2800" <= char <= "\u28ff" else 0
            for bit, (side, row) in enumerate(BRAILLE):
                if mask >> bit & 1:
                    centre_x = x + (column + 0.25 + side / 2) * CELL_WIDTH
                    centre_y = y - BASELINE + (row + 0.5) * CELL_HEIGHT / 4
                    place = f'cx="{centre_x:.1f}" cy="{centre_y:.1f}"'
                    dots.append(f'<circle class="{style}" {place} r="2.3"/>')
        kept = "".join("\xa0" if "\u2800" <= char <= "\u28ff" else char for char in chars)
        return f"{found['head']}{html.escape(kept)}</text>{''.join(dots)}"

    return TEXT.sub(replace_text, svg)
