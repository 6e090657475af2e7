"""Charts: exact characters, exact size, and every point where it belongs."""

import math
import random
from array import array

import pytest

from tsx.axis import make_position_axis, make_value_axis
from tsx.chart import (
    AXIS,
    FAULT,
    GRID,
    LABEL,
    TITLE,
    Curve,
    Frame,
    draw,
    draw_sparkline,
    share_ranges,
)
from tsx.text import count_cells

NAN, INF = math.nan, math.inf
CROSS = "\N{MULTIPLICATION SIGN}"
MARKS = f"{CROSS}▲▼"
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
DOTS = {(0, 0): 0x40, (0, 1): 0x80, (1, 0): 4, (1, 1): 0x20}
DOTS |= {(2, 0): 2, (2, 1): 0x10, (3, 0): 1, (3, 1): 8}


def lines(chart):
    return ["".join(text for text, _ in row) for row in chart.rows]


def text(*curves, width=40, height=8, **frame):
    return draw(list(curves), width, height, Frame(**frame)).to_text()


def list_dots(chart):
    """Return the set of (dot column, dot row from below) of the plot, read off the characters."""
    found = set()
    shown = lines(chart)
    bottom = max(row for row, line in enumerate(shown) if "└" not in line and row >= chart.top)
    rows = [row for row in range(chart.top, len(shown)) if row <= bottom]
    rows = [row for row in rows if not any("└" in shown[r] for r in range(chart.top, row + 1))]
    for row in rows:
        for column, char in enumerate(shown[row][chart.left :]):
            mask = ord(char) - 0x2800 if 0x2800 <= ord(char) <= 0x28FF else 0
            for (dot, side), bit in DOTS.items():
                if mask & bit:
                    found.add((column * 2 + side, (rows[-1] - row) * 4 + dot))
    return found, len(rows)


def read_number(label):
    unit = UNITS.get(label[-1], 1.0)
    return float(label[:-1]) * unit if unit != 1.0 else float(label)


def read_ticks(chart, num_rows):
    """Return (dots above the bottom of the row's centre, value) of every tick label."""
    found = []
    for index in range(num_rows):
        line = lines(chart)[chart.top + index]
        label = line[: chart.left - 1].strip()
        if label:
            found.append(((num_rows - index - 0.5) * 4, read_number(label)))
    return found


def test_a_rising_line_is_drawn_exactly():
    shown = text(Curve("loss", [0, 10], [0.0, 10.0]), width=24, height=8, title="rise")
    assert shown.splitlines() == [
        "rise  ━ loss",
        "10 ┤                ⢀⣀⠤⠒",
        "   │            ⣀⠤⠔⠊⠁",
        " 5 ┤       ⣀⠤⠔⠊⠉",
        "   │  ⣀⡠⠔⠊⠉",
        " 0 ┤⠒⠉",
        "   └┬─────────┬────────┬",
        "    0         5       10",
    ]


def test_two_curves_and_a_gap_are_drawn_exactly():
    train = Curve("train", [1, 2, 3, 4, 5, 6, 7, 8], [4, 3, 2, 1, NAN, NAN, 2, 3])
    shown = text(train, Curve("val", [2, 8], [3.5, 1.5]), width=32, height=9)
    assert shown.splitlines() == [
        "━ train  ━ val",
        "  │                ╎",
        "4 ┤⠢⢄              ╎",
        "  │  ⠑⠢⡉⠑⠒⠢⠤⢄⣀⡀    ╎           ⢀",
        "  │    ⠈⠑⢄⡀   ⠈⠉⠑⠒⠢⠤⢄⣀⡀      ⡠⠒⠁",
        "2 ┤       ⠈⠢⢄      ╎  ⠈⠉⠑⠒⠢⠴⢍⣀⡀",
        "  │          ⠑⠢⡀   ╎          ⠈⠉",
        f"  └────┬───────┬───{CROSS}───{CROSS}───────┬",
        "       2       4       6       8",
    ]


def test_a_not_finite_value_breaks_the_line_and_is_marked():
    chart = draw([Curve("loss", range(1, 9), [4, 3, 2, 1, NAN, NAN, INF, -INF])], 24, 9)
    baseline = lines(chart)[-2]
    marks = [char for char in baseline if char in MARKS]
    assert marks[0] == CROSS
    assert set(marks) == set(MARKS)
    onset = baseline.index(CROSS)
    column = [lines(chart)[row][onset] for row in range(chart.top, len(chart.rows) - 2)]
    assert "╎" in column
    dots, _ = list_dots(chart)
    assert max(x for x, _ in dots) < (onset - chart.left) * 2 + 2


def test_marks_and_their_line_have_the_ink_of_faults():
    chart = draw([Curve("loss", [1, 2, 3], [1.0, NAN, 2.0])], 30, 8)
    faults = [part for row in chart.rows for part, series in row if series == FAULT]
    assert CROSS in faults
    assert set("".join(faults)) == {CROSS, "╎"}


def test_nan_outranks_an_infinity_in_one_column():
    ys = [1.0, *[INF, NAN, INF] * 200, 1.0]
    chart = draw([Curve("a", range(len(ys)), ys)], 20, 6)
    marks = {char for char in lines(chart)[-2] if char in MARKS}
    assert marks == {CROSS}


def test_no_spike_is_lost_among_a_million_points():
    ys = array("d", [1.0]) * 1_000_000
    ys[123_456], ys[777_777] = 9.0, -7.0
    chart = draw([Curve("a", range(1_000_000), ys)], 60, 12)
    dots, num_rows = list_dots(chart)
    heights = {y for _, y in dots}
    assert chart.y_axis.place(9.0) in heights
    assert chart.y_axis.place(-7.0) in heights
    spike = [x for x, y in dots if y == chart.y_axis.place(9.0)]
    assert all(abs(x - 123_456 / 999_999 * (chart.x_axis.dots - 1)) <= 1 for x in spike)
    assert num_rows * 4 == chart.y_axis.dots


@pytest.mark.parametrize("seed", range(40))
def test_every_point_lies_within_a_dot_of_its_true_place(seed):
    source = random.Random(seed)
    count = source.choice([2, 3, 17, 200, 3000])
    size = 10.0 ** source.randint(-8, 9)
    middle = source.choice([0.0, 0.0, 3.0, -40.0]) * size
    xs = sorted(source.sample(range(count * 7), count))
    ys = [middle + size * source.gauss(0, 1) for _ in xs]
    width, height = source.randint(24, 160), source.randint(9, 40)
    chart = draw([Curve("a", xs, ys)], width, height)
    dots, num_rows = list_dots(chart)
    ticks = read_ticks(chart, num_rows)
    assert len(ticks) >= 2
    (low_at, low), (high_at, high) = ticks[-1], ticks[0]
    num_columns = (width - chart.left) * 2
    for x, y in zip(xs, ys, strict=True):
        column = (x - xs[0]) / (xs[-1] - xs[0]) * (num_columns - 1)
        centre = low_at + (y - low) / (high - low) * (high_at - low_at) - 0.5
        near = {(c, r) for c in around(column) for r in around(centre)}
        assert near & dots, (x, y)


def around(place):
    """Return the dots whose centre is within one dot of a place."""
    return [
        dot for dot in range(math.floor(place) - 1, math.floor(place) + 3) if abs(dot - place) <= 1
    ]


@pytest.mark.parametrize("seed", range(12))
def test_every_point_lies_within_a_dot_on_a_log_axis(seed):
    source = random.Random(seed)
    xs = range(200)
    ys = [10 ** source.uniform(-6, source.choice([-5, 0, 6])) for _ in xs]
    chart = draw([Curve("a", xs, ys)], 70, 16, Frame(log_y=True))
    dots, num_rows = list_dots(chart)
    low, high = math.log10(min(ys)), math.log10(max(ys))
    for x, y in zip(xs, ys, strict=True):
        column = x / 199 * (chart.x_axis.dots - 1)
        row = (math.log10(y) - low) / (high - low) * (num_rows * 4 - 1)
        assert {(c, r) for c in around(column) for r in around(row)} & dots, (x, y)


@pytest.mark.parametrize("seed", range(60))
def test_a_chart_is_exactly_as_large_as_asked(seed):
    source = random.Random(seed)
    width, height = source.randint(0, 90), source.randint(0, 20)
    values = [0.0, -1.0, NAN, INF, -INF, 1e308, -1e308, 5e-324, 1e-9, 3.5, 1e6]
    curves = [
        Curve(
            source.choice(["a", "näme", "日本語の名前", "e\u0301", "x" * 80, "\x1b[31m", ""]),
            range(count := source.choice([0, 1, 2, 30, 500])),
            [source.choice(values) for _ in range(count)],
        )
        for _ in range(source.randint(0, 9))
    ]
    frame = Frame(title=source.choice(["", "loss", "題" * 50]), log_y=source.random() < 0.4)
    chart = draw(curves, width, height, frame)
    assert len(chart.rows) == height
    assert {count_cells(line) for line in lines(chart)} <= {width}
    assert all(line.isprintable() for line in lines(chart))


def test_without_points_it_says_so():
    shown = text(width=30, height=5)
    assert shown.strip() == "no points yet"
    assert text(Curve("a", [], []), empty_text="nothing").count("nothing") == 1


def test_with_nothing_but_nan_there_are_marks_and_no_tick_values():
    chart = draw([Curve("a", [1, 2], [NAN, NAN])], 30, 7)
    assert lines(chart)[-2].count(CROSS) == 2
    assert "┤" not in chart.to_text()


def test_a_single_point_is_a_visible_block():
    chart = draw([Curve("a", [5], [3.5])], 30, 8)
    dots, _ = list_dots(chart)
    assert len(dots) == 4
    assert any(abs(y - chart.y_axis.place(3.5)) <= 1 for _, y in dots)
    assert "5" in lines(chart)[-1]


def test_a_point_between_two_nan_is_a_visible_block():
    chart = draw([Curve("a", [1, 2, 3, 4, 5], [1.0, NAN, 2.0, NAN, 1.0])], 40, 9)
    dots, _ = list_dots(chart)
    assert len([dot for dot in dots if abs(dot[0] - chart.x_axis.dots / 2) < 4]) == 4


def test_a_flat_curve_is_a_flat_line():
    chart = draw([Curve("a", range(50), [0.25] * 50)], 40, 9)
    dots, _ = list_dots(chart)
    assert len({y for _, y in dots}) == 1
    assert {x for x, _ in dots} == set(range(chart.x_axis.dots))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.31, 2.74), (-5.0, 5.0), (1e-7, 9e-7), (99.5, 99.6), (-3e9, 8e9), (0, 1e300)],
)
def test_ticks_stand_on_the_centre_of_their_row(low, high):
    for rows in range(3, 40):
        axis = make_value_axis(low, high, rows, log=False)
        assert axis.ticks
        unit = (axis.high - axis.low) / rows
        for tick in axis.ticks:
            centre = (axis.high - (tick.cell + 0.5) * unit) / axis.scale
            slack = unit / axis.scale * 1e-6
            assert math.isclose(read_number(tick.label), centre, rel_tol=1e-6, abs_tol=slack)


def test_the_value_axis_wastes_little():
    source = random.Random(3)
    for _ in range(300):
        low = source.uniform(-10, 10)
        high = low + 10 ** source.uniform(-3, 4)
        axis = make_value_axis(low, high, 12, log=False)
        assert axis.low <= low < high <= axis.high
        assert axis.high - axis.low < 1.8 * (high - low)
        assert 2 <= len(axis.ticks) <= 7


def test_a_curve_that_is_never_negative_gets_no_rows_below_zero():
    for high in (0.01, 0.7, 1.0, 3.3, 250.0):
        axis = make_value_axis(0.0, high, 14, log=False)
        assert axis.low >= -(axis.high - axis.low) / 14


def test_log_ticks_are_powers_of_ten_over_many_decades():
    axis = make_value_axis(1e-8, 100.0, 20, log=True)
    assert {tick.label for tick in axis.ticks} >= {"1", "1e-8"}
    for tick in axis.ticks:
        assert math.log10(read_number(tick.label)) == pytest.approx(
            round(math.log10(read_number(tick.label)))
        )


def test_zero_and_below_are_marked_on_a_log_axis():
    chart = draw([Curve("a", [1, 2, 3, 4], [1.0, 0.0, -1.0, 10.0])], 40, 8, Frame(log_y=True))
    assert {char for char in lines(chart)[-2] if char in MARKS} == {CROSS, "▼"}


def test_step_ticks_are_whole_numbers_with_room_around_them():
    for last in (2, 3, 7, 50, 199, 12_345, 10_000_000):
        axis = make_position_axis(1, last, 70)
        values = [read_number(tick.label) for tick in axis.ticks]
        assert values
        assert all(value == int(value) for value in values)
        assert all(
            abs(axis.place(v) // 2 - t.cell) <= 0 for v, t in zip(values, axis.ticks, strict=True)
        )
    labels = lines(draw([Curve("a", range(1, 12_346), [0.0] * 12_345)], 90, 8))[-1]
    assert "  " in labels.strip()


def test_the_first_and_last_points_are_on_the_outermost_dots():
    chart = draw([Curve("a", [100, 350, 900], [1.0, 2.0, 3.0])], 50, 10)
    dots, _ = list_dots(chart)
    assert min(x for x, _ in dots) == 0
    assert max(x for x, _ in dots) == chart.x_axis.dots - 1


def test_each_curve_keeps_its_own_ink_and_every_dot():
    up, down = Curve("up", [0, 9], [0.0, 9.0]), Curve("down", [0, 9], [9.0, 0.0])
    both, _ = list_dots(draw([up, down], 40, 12))
    alone = [list_dots(draw([curve], 40, 12))[0] for curve in (up, down)]
    assert both == alone[0] | alone[1]
    inks = {series for row in draw([up, down], 40, 12).rows for _, series in row}
    assert {0, 1, AXIS, LABEL, GRID} <= inks


def test_names_stand_in_the_ink_of_their_curves():
    chart = draw([Curve("first", [0, 1], [0, 1]), Curve("second", [0, 1], [1, 0])], 60, 9)
    named = {series: part for part, series in chart.rows[0] if series >= 0}
    assert named == {0: "━ first", 1: "━ second"}
    titled = draw([Curve("a", [0, 1], [0, 1])], 60, 9, Frame(title="loss"))
    assert titled.rows[0][0] == ("loss", TITLE)


def test_curves_share_ranges_when_drawn_one_by_one():
    curves = [Curve("a", [0, 10], [0.0, 1.0]), Curve("b", [5, 30], [-4.0, 0.5])]
    frame = share_ranges(curves, Frame())
    one, two = (draw([curve], 50, 10, frame) for curve in curves)
    assert (one.x_axis, one.y_axis) == (two.x_axis, two.y_axis)
    assert frame.y_range == (-4.0, 1.0)


def test_points_outside_the_given_range_are_left_out():
    chart = draw(
        [Curve("a", [0, 10, 20, 30], [0.0, 1.0, 2.0, 3.0])], 50, 10, Frame(x_range=(10, 20))
    )
    assert chart.y_axis.high < 2.5


@pytest.mark.parametrize(
    ("xs", "ys"), [([1, 2, 3], [1.0, 2.0]), ([3, 2, 1], [1.0, 2.0, 3.0])], ids=["length", "order"]
)
def test_curves_that_cannot_be_drawn_are_refused_by_name(xs, ys):
    with pytest.raises(ValueError, match="'broken'"):
        draw([Curve("broken", xs, ys)], 40, 10)


def test_plain_text_has_no_grid_and_no_trailing_blanks():
    shown = text(Curve("a", [0, 9], [0.0, 9.0]), width=50, height=12)
    assert "┈" not in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_sparklines_span_their_range_and_mark_what_is_not_finite():
    assert draw_sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert draw_sparkline([3, 3, 3], 5) == "▁▁▁  "
    assert draw_sparkline([1.0, NAN, 2.0], 3) == f"▁{CROSS}█"
    assert draw_sparkline([], 3) == "   "
    assert draw_sparkline([NAN], 3) == f"{CROSS}  "
    assert draw_sparkline([1, 2], 0) == ""
    assert len(draw_sparkline([1e308, -1e308] * 50, 7)) == 7
