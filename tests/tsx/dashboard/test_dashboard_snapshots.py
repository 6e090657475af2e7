"""What the dashboard looks like, cell by cell; and the screenshot of the README.

`pytest --snapshot-update` accepts a new look and writes the screenshot anew.
"""

import re
from pathlib import Path

import pytest

SIZES = [(80, 24), (120, 40), (200, 50)]
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
    app = make_app(filled)
    async with app.run_test(size=(110, 34)) as pilot:
        await settled()(pilot)
        drawn = app.export_screenshot(title="tsx dashboard", simplify=True)
    if request.config.getoption("--snapshot-update"):
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        SCREENSHOT.write_text(drawn, encoding="utf-8")
    assert SCREENSHOT.is_file(), "run: pytest tests/tsx/dashboard --snapshot-update"
    assert without_ids(SCREENSHOT.read_text(encoding="utf-8")) == without_ids(drawn)


def without_ids(svg):
    """Return an SVG without the names Textual makes up for its styles."""
    return re.sub(r"terminal-\d+", "terminal", svg)
