"""Outlines of curves: few true points that show all that a chart of the whole would show."""

from __future__ import annotations

import math
import random

import pytest

from registry.connection import open_engine
from registry.events import Metrics, RunResumed
from registry.journal import JournalWriter
from registry.queries import Reader
from registry.store import ingest

SPECIAL = (math.nan, math.inf, -math.inf)


@pytest.fixture
def engine(url):
    made = open_engine(url, readonly=False)
    yield made
    made.dispose()


@pytest.fixture
def reader(url):
    with Reader.open(url) as made:
        yield made


def append(folder, event):
    """Add a line to a run's journal."""
    writer = JournalWriter(folder / "events.jsonl")
    writer.append(event)
    writer.close()


def draw_values(source, count):
    """Return values of which every tenth is not finite and many are equal."""
    ties = [float(number) for number in range(5)]
    return [
        source.choice(SPECIAL)
        if source.random() < 0.1
        else source.choice([*ties, source.gauss(0, 9)])
        for _ in range(count)
    ]


def pairs_of(series):
    """Return the points of a curve as comparable text: NaN equals itself."""
    return [repr(pair) for pair in zip(series.steps, series.values, series.times, strict=True)]


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shuffled"])
@pytest.mark.parametrize("seed", range(3))
def test_an_outline_is_of_true_points_and_keeps_every_extreme(
    engine, write_run, reader, seed, ordered
):
    source = random.Random(seed)
    steps = [source.randrange(3000) for _ in range(3000)]
    if ordered:
        steps.sort()
    points = zip(steps, draw_values(source, 3000), strict=True)
    events = [Metrics(time=1000.0 + step, step=step, values={"x": v}) for step, v in points]
    ingest(engine, write_run(steps=0, events=events, ended=False))
    whole = reader.get_series("aaaa0000", "x")
    for width in (1, 2, 7, 40, 187):
        outline = reader.get_outline("aaaa0000", "x", width)
        assert set(pairs_of(outline)) <= set(pairs_of(whole))
        assert list(outline.steps) == sorted(outline.steps)
        assert len(outline) < max(32 * width, 24 * width + 150)
        assert (outline.steps[0], outline.steps[-1]) == (whole.steps[0], whole.steps[-1])
        for pick in (min, max):
            shown = pick(value for value in outline.values if math.isfinite(value))
            assert shown == pick(value for value in whole.values if math.isfinite(value))


def test_every_column_of_a_chart_has_its_extremes_within_a_column(engine, write_run, reader):
    """What a chart draws of the outline: nothing is farther than a column from its place."""
    source = random.Random(5)
    num_points, width = 20_000, 100
    values = [source.gauss(0.0, 1.0) for _ in range(num_points)]
    bad = sorted(source.sample(range(num_points), 30))
    for place in bad:
        values[place] = source.choice(SPECIAL)
    events = [Metrics(time=1.0, step=step, values={"x": v}) for step, v in enumerate(values, 1)]
    ingest(engine, write_run(steps=0, events=events, ended=False))
    outline = reader.get_outline("aaaa0000", "x", width)
    assert len(outline) < 16 * width + 200
    columns = {}
    for step, value in zip(outline.steps, outline.values, strict=True):
        columns.setdefault((step - 1) * width // num_points, []).append(value)
    for column in range(width):
        near = [v for c in (column - 1, column, column + 1) for v in columns.get(c, [])]
        here = values[column * num_points // width : (column + 1) * num_points // width]
        finite = [value for value in here if math.isfinite(value)]
        assert min(v for v in near if math.isfinite(v)) <= min(finite)
        assert max(v for v in near if math.isfinite(v)) >= max(finite)
        if len(finite) < len(here):
            assert not all(map(math.isfinite, near))


@pytest.mark.parametrize(
    ("place", "spike"),
    [
        *((0, 1e9), (0, math.nan), (15, -1e9), (16, math.inf), (2500, -math.inf), (2500, 1e9)),
        *((4095, math.nan), (4096, 1e9), (4998, -1e9), (4999, math.nan)),
    ],
)
def test_no_spike_is_lost(engine, write_run, reader, spike, place):
    values = [1.0] * 5000
    values[place] = spike
    events = [Metrics(time=1.0, step=step, values={"x": v}) for step, v in enumerate(values, 1)]
    ingest(engine, write_run(steps=0, events=events, ended=False))
    outline = reader.get_outline("aaaa0000", "x", 10)
    assert len(outline) < 270
    assert repr(spike) in map(repr, outline.values)
    assert outline.steps[list(map(repr, outline.values)).index(repr(spike))] == place + 1


@pytest.mark.parametrize("width", [-5, 0, 1, 63, 10**30])
def test_an_outline_of_any_width(engine, write_run, reader, width):
    ingest(engine, write_run(steps=1000))
    outline = reader.get_outline("aaaa0000", "train/loss", width)
    assert (outline.steps[0], outline.steps[-1], max(outline.values)) == (1, 1000, 1.0)
    if width >= 63:
        assert outline == reader.get_series("aaaa0000", "train/loss")


def test_an_outline_of_nothing(engine, write_run, reader):
    ingest(engine, write_run())
    for run_id, key in (("aaaa0000", "absent"), ("absent", "train/loss"), ("", "\x1b[31m\x00")):
        assert len(reader.get_outline(run_id, key, 100)) == 0


def test_an_outline_is_carried_on_by_what_is_new(engine, write_run, reader):
    folder = write_run(steps=1000, ended=False)
    ingest(engine, folder)
    outline, cursor = reader.get_outline_since("aaaa0000", "train/loss", 4, None)
    assert 8 < len(outline) < 200
    append(folder, Metrics(time=1.0, step=1001, values={"train/loss": 5.0}))
    ingest(engine, folder)
    new, ahead = reader.get_outline_since("aaaa0000", "train/loss", 4, cursor)
    assert (list(new.steps), ahead.rewinds) == ([1001], 0)
    assert len(reader.get_outline_since("aaaa0000", "train/loss", 4, ahead)[0]) == 0
    append(folder, RunResumed(time=2.0, from_step=900, steps=1000))
    ingest(engine, folder)
    again, last = reader.get_outline_since("aaaa0000", "train/loss", 4, ahead)
    assert last.rewinds == 1
    assert (again.steps[0], again.steps[-1]) == (1, 900)
    assert len(again) < 200
    assert len(reader.get_series_since("aaaa0000", "train/loss", last)[0]) == 0


def test_a_chart_of_a_long_curve_reads_few_rows(engine, write_run, url):
    ingest(engine, write_run(steps=20_000))
    read = 0

    with Reader.open(url) as reader:
        with reader._link.snapshot() as connection:
            driver = connection.connection.driver_connection

        def count():
            nonlocal read
            read += 1
            return 0

        driver.set_progress_handler(count, 1000)  # once per thousand instructions of SQLite
        reader.get_outline("aaaa0000", "train/loss", 20)
        few, read = read, 0
        reader.get_series("aaaa0000", "train/loss")
    assert few < 10 < read / 4
