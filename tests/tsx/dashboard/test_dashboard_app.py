"""The dashboard in use: keys, live updates, trouble, hostile text, any size."""

import threading
from dataclasses import replace

import pytest

from tsx.dashboard.screens.overview import OverviewScreen
from tsx.dashboard.screens.run import RunScreen
from tsx.dashboard.widgets.lines import Page
from tsx.dashboard.widgets.run_table import RunTable


@pytest.fixture
def open_app(make_app, until):
    """Return an async context: the app with its first snapshot on screen."""

    def make(reader, size=(120, 40), **more):
        app = make_app(reader, **more)
        return Opened(app, size, until)

    return make


class Opened:
    def __init__(self, app, size, until):
        self.app, self.until = app, until
        self.context = app.run_test(size=size)

    async def __aenter__(self):
        self.pilot = await self.context.__aenter__()
        await self.until(self.pilot, lambda: self.app._snapshot is not None)
        return self.app, self.pilot

    async def __aexit__(self, *failure):
        await self.context.__aexit__(*failure)


async def test_the_first_frame_stands_before_the_registry_is_opened(
    make_app, filled, read_screen, until
):
    gate = threading.Event()

    def open_reader():
        assert gate.wait(20)
        return filled

    app = make_app(None, open_reader=open_reader)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        shown = read_screen(app)
        assert "tsx" in shown
        assert "quit" in shown
        assert "sanity" not in shown
        gate.set()
        await until(pilot, lambda: "sanity" in read_screen(app))


async def test_an_empty_registry_names_the_first_command_and_picks_up_the_first_run(
    open_app, empty, read_screen, until
):
    async with open_app(empty) as (app, pilot):
        assert "tsx run sanity" in read_screen(app)
        empty.add("n0000001", "newcomer", "running", done=30, age=5)
        await until(pilot, lambda: "newcomer" in read_screen(app))
        await until(pilot, lambda: "━ train" in read_screen(app))
        assert "tsx run sanity" not in read_screen(app)


async def test_any_of_thousands_of_runs_is_reached_and_opened(
    open_app, crowded, read_screen, until
):
    async with open_app(crowded, size=(120, 40)) as (app, pilot):
        table = app.screen.query_one(RunTable)
        assert "3000 runs" in read_screen(app)
        await pilot.press("end")
        await until(pilot, lambda: table.run_id == "old02993")
        assert "old02993" in read_screen(app)
        await pilot.press("pageup", "up")
        await until(pilot, lambda: table.run_id in read_screen(app))
        chosen = table.run_id
        crowded.add("n0000001", "newcomer", age=1.0)
        await until(pilot, lambda: "3001 runs" in read_screen(app))
        assert table.run_id == chosen
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        await until(pilot, lambda: chosen in read_screen(app))
        await until(pilot, lambda: app._snapshot.detail is not None)
        await pilot.press("escape")
        await until(pilot, lambda: chosen in read_screen(app))
        assert table.run_id == chosen
        await pilot.press("home")
        await until(pilot, lambda: table.run_id == "n0000001")


async def test_keys_select_runs_and_their_curves_follow(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        table = app.screen.query_one(RunTable)
        assert table.run_id == "a1b2c3d4"
        await pilot.press("down", "j")
        assert table.run_id == "zz91ab3c"
        await until(pilot, lambda: "╎" in read_screen(app))
        await pilot.press("end")
        assert table.run_id == "m1n2b3v4"
        await pilot.press("home", "up")
        assert table.run_id == "a1b2c3d4"


async def test_a_click_selects_and_a_second_opens(open_app, filled, until):
    async with open_app(filled) as (app, pilot):
        await pilot.click(RunTable, offset=(10, 3))
        assert app.screen.query_one(RunTable).run_id == "zz91ab3c"
        await pilot.click(RunTable, offset=(10, 2), times=2)
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert app.screen.focus_wanted.run_id == "k3m2x9q1"


async def test_enter_opens_a_run_and_escape_goes_back(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: "findings 3" in read_screen(app))
        assert "train/loss is NaN at step 80" in read_screen(app)
        for key, said in (("2", "val/mse_h32"), ("right", "pass True where"), ("4", "[data]")):
            await pilot.press(key)
            await until(pilot, lambda said=said: said in read_screen(app))
        await pilot.press("5")
        await until(pilot, lambda: "checkpoints/step-200" in read_screen(app))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, OverviewScreen))
        assert app.screen.query_one(RunTable).run_id == "zz91ab3c"


async def test_the_tab_keys_go_round(open_app, filled, until):
    async with open_app(filled) as (app, pilot):
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        pages = app.screen.query_one("#pages")
        seen = []
        for _ in range(6):
            seen.append(pages.current)
            await pilot.press("right")
        assert seen == ["curves", "metrics", "findings", "config", "about", "curves"]
        await pilot.press("left", "left", "left")
        assert pages.current == "config"


async def test_help_opens_over_any_screen_and_q_quits(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        await pilot.press("question_mark")
        await until(pilot, lambda: "open the run" in read_screen(app))
        await pilot.press("escape")
        await until(pilot, lambda: "open the run" not in read_screen(app))
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running)
    assert app.return_code == 0


async def test_a_live_run_moves(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        await until(pilot, lambda: "━ train" in read_screen(app))
        filled.extend("a1b2c3d4", "train/loss", range(125, 190), [7.5] * 65)
        await until(pilot, lambda: "train 7.500" in read_screen(app))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and "lr" in read_screen(app))
        filled.extend("a1b2c3d4", "train/loss", [190], [8.25])
        await until(pilot, lambda: "train 8.250" in read_screen(app))


async def test_selection_and_view_survive_runs_that_arrive(open_app, filled, read_screen, until):
    for number in range(60):
        filled.add(f"old{number:05}", f"old-{number}", age=300_000 + number)
    async with open_app(filled, size=(100, 24)) as (app, pilot):
        table = app.screen.query_one(RunTable)
        await pilot.press(*["down"] * 30)
        selected = table.run_id
        line = next(n for n, text in enumerate(read_screen(app).split("\n")) if "▌" in text)
        for number in range(3):
            filled.add(f"new{number:05}", f"new-{number}", age=10 - number)
        await until(pilot, lambda: "69 runs" in read_screen(app))
        assert table.run_id == selected
        after = next(n for n, text in enumerate(read_screen(app).split("\n")) if "▌" in text)
        assert after == line


async def test_at_the_top_new_runs_come_into_view(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        filled.add("new00001", "fresh-arrival", "running", done=5, age=1)
        await until(pilot, lambda: "fresh-arrival" in read_screen(app))
        assert app.screen.query_one(RunTable).run_id == "a1b2c3d4"


async def test_a_selected_run_that_vanishes_leaves_the_cursor_in_place(
    open_app, filled, read_screen, until
):
    async with open_app(filled) as (app, pilot):
        await pilot.press("down")
        filled.runs = [run for run in filled.runs if run.id != "k3m2x9q1"]
        filled.version += 1
        await until(pilot, lambda: "5 runs" in read_screen(app))
        assert app.screen.query_one(RunTable).run_id == "zz91ab3c"


async def test_an_open_run_that_vanishes_says_so(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        filled.runs = filled.runs[1:]
        filled.version += 1
        await until(pilot, lambda: "no longer in the registry" in read_screen(app))


async def test_what_a_reader_scrolled_to_stays(open_app, filled, read_screen, until):
    async with open_app(filled, size=(80, 20)) as (app, pilot):
        await pilot.press("enter")
        await until(pilot, lambda: "train 0." in read_screen(app))
        await pilot.press("4", "pagedown")
        page = app.screen.query_one("#config", Page)
        await until(pilot, lambda: page.scroll_offset.y > 0)
        await until(pilot, lambda: not page.is_scrolling)
        before = page.scroll_offset.y
        filled.extend("a1b2c3d4", "train/loss", [125], [7.0])
        await until(pilot, lambda: app._snapshot.curves["train/loss"].values[-1] == 7.0)
        assert page.scroll_offset.y == before


async def test_trouble_is_in_the_footer_and_goes_away(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        filled.error = RuntimeError("registry is locked by pid 42")
        await until(pilot, lambda: "locked by pid 42" in read_screen(app).split("\n")[-1])
        assert "patch-probe" in read_screen(app)
        filled.error = None
        await until(pilot, lambda: "locked" not in read_screen(app))


async def test_trouble_from_the_start_is_shown_instead_of_an_empty_registry(
    open_app, filled, read_screen
):
    filled.error = RuntimeError("not a registry: /x/registry.db")
    async with open_app(filled) as (app, _):
        assert "not a registry" in read_screen(app)
        assert "tsx run sanity" not in read_screen(app)


async def test_hostile_text_is_inert_on_every_page(open_app, filled, read_screen, until):
    async with open_app(filled) as (app, pilot):
        await pilot.press(*["down"] * 4)
        await until(pilot, lambda: "␛[31m[bold]red[/bold]" in read_screen(app))
        await pilot.press("enter")
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
            shown = read_screen(app)
            assert "\x1b" not in shown
            assert "\u202e" not in shown
            assert "␛[31m[bold]red[/bold]" in shown


@pytest.mark.parametrize("keys", [[], ["enter"], ["enter", "2"], ["enter", "3"], ["question_mark"]])
async def test_any_size_is_drawn_whole(open_app, filled, read_screen, keys):
    async with open_app(filled) as (app, pilot):
        await pilot.press("down", "down", *keys)
        for size in [
            (40, 12),
            (200, 50),
            (60, 15),
            (41, 60),
            (159, 19),
            (160, 33),
            (80, 24),
            (20, 5),
        ]:
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert app.size == size
            read_screen(app)


async def test_the_smallest_size_still_has_runs_loss_and_keys(open_app, filled, read_screen, until):
    async with open_app(filled, size=(40, 12)) as (app, pilot):
        await until(pilot, lambda: "━ train" in read_screen(app))
        shown = read_screen(app)
        assert "sanity" in shown
        assert "quit" in shown


async def test_a_thousand_runs_cost_no_more_than_what_is_seen(open_app, empty, read_screen, until):
    empty.add("seed0000", "first")
    curves = empty.curves["seed0000"]
    row = empty.runs[0]
    names = [(f"r{number:07}", f"n{number}") for number in range(1000)]
    empty.runs = [replace(row, id=run_id, name=name) for run_id, name in names]
    empty.curves = {run.id: curves for run in empty.runs}
    async with open_app(empty) as (app, pilot):
        table = app.screen.query_one(RunTable)
        await pilot.press("end")
        assert table.run_id == "r0000999"
        await until(pilot, lambda: "n999" in read_screen(app))
