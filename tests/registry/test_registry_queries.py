"""What readers get."""

from __future__ import annotations

import sqlite3

import pytest

from registry.connection import get_default_url, open_engine
from registry.errors import StoreCorrupt, UnknownRun
from registry.events import Histogram, Metrics, RunResumed
from registry.journal import JournalWriter
from registry.queries import Cursor, Reader
from registry.recover import rebuild
from registry.store import ingest


@pytest.fixture
def engine(url):
    made = open_engine(url, readonly=False)
    yield made
    made.dispose()


@pytest.fixture
def fill(engine, write_run):
    """Return a function that writes a run and folds it."""

    def make(*args, **kwargs):
        folder = write_run(*args, **kwargs)
        ingest(engine, folder)
        return folder

    return make


@pytest.fixture
def reader(url):
    with Reader.open(url) as made:
        yield made


def ids(found):
    return [run.id for run in found]


def test_a_registry_that_does_not_exist_is_empty(tmp_path):
    url = get_default_url(tmp_path / "nowhere")
    with Reader.open(url) as reader:
        assert reader.list_runs() == []
        assert reader.list_keys("x") == []
        assert len(reader.get_series("x", "y")) == 0
        with pytest.raises(UnknownRun, match="none"):
            reader.get_run("@last")
        with pytest.raises(UnknownRun):
            reader.get_detail("x")
    assert not (tmp_path / "nowhere").exists()


def test_a_registry_that_appears_is_picked_up(url, reader, write_run):
    before = reader.data_version()
    assert reader.data_version() == before
    engine = open_engine(url, readonly=False)
    ingest(engine, write_run())
    assert reader.data_version() != before
    assert ids(reader.list_runs()) == ["aaaa0000"]
    engine.dispose()


def test_data_version_moves_with_every_write_and_only_then(fill, url, reader):
    fill("aaaa0000")
    with Reader.open(url) as other:
        first = other.data_version()
        assert other.data_version() == first
        other.list_runs()
        assert other.data_version() == first
        fill("bbbb0000")
        second = other.data_version()
        assert second != first
        assert other.data_version() == second


def test_a_rebuilt_registry_is_noticed(fill, reader, home, url):
    fill("aaaa0000")
    before = reader.data_version()
    assert ids(reader.list_runs()) == ["aaaa0000"]
    rebuild(home, url)
    assert reader.data_version() != before
    assert reader.list_runs()[0].metrics["train/lr"] == 1e-3


def test_newest_first_whole_unless_limited(fill, reader):
    for number in range(30):
        fill(f"aaaa{number:04d}", created=1000.0 + number % 10, steps=1)
    found = reader.list_runs()
    assert len(found) == 30
    assert [run.created for run in found] == sorted((run.created for run in found), reverse=True)
    assert ids(reader.list_runs(limit=3)) == ids(found)[:3]
    assert reader.list_runs(limit=0) == []
    assert ids(found)[:3] == ["aaaa0029", "aaaa0019", "aaaa0009"]


def test_pages_join_to_the_whole_list(fill, reader):
    for number in range(7):
        fill(f"aaaa{number:04d}", created=1000.0 + number, steps=1, tags=("t",) if number else ())
    whole = ids(reader.list_runs())
    pages = [ids(reader.list_runs(limit=3, offset=offset)) for offset in (0, 3, 6, 9)]
    assert pages == [whole[:3], whole[3:6], whole[6:], []]
    assert ids(reader.list_runs(offset=5)) == whole[5:]
    assert ids(reader.list_runs(offset=-1, limit=2)) == whole[:2]
    assert ids(reader.list_runs(tag="t", limit=2, offset=4)) == whole[4:6]


def test_only_the_values_that_are_asked_for(fill, reader):
    fill()
    assert reader.list_runs(keys=("train/lr", "absent"))[0].metrics == {"train/lr": 1e-3}
    assert reader.list_runs(keys=())[0].metrics == {}


def test_runs_are_counted_by_status(fill, reader):
    assert reader.count_runs() == {}
    fill("aaaa0000")
    fill("bbbb0000")
    fill("cccc0000", ended=False)
    assert reader.count_runs() == {"completed": 2, "running": 1}


def test_histograms_are_listed_by_key(fill, reader):
    events = [
        Histogram(time=1001.0, step=1, key="weights", edges=(0.0, 0.5, 1.0), counts=(3, 4)),
        Histogram(time=1002.5, step=2, key="weights", edges=(), counts=(), nonfinite_count=9),
        Histogram(time=1003.0, step=2, key="\x1b[31m", edges=(0.0, 1.0), counts=(2**70,)),
    ]
    fill(events=events)
    first, second = reader.list_histograms("aaaa0000", "weights")
    assert (first.step, first.edges, first.counts) == (1, (0.0, 0.5, 1.0), (3, 4))
    assert (second.edges, second.nonfinite_count, second.time) == ((), 9, 1002.5)
    newest = reader.get_detail("aaaa0000").histograms
    assert list(newest) == ["\x1b[31m", "weights"]
    assert newest["weights"] == second
    assert newest["\x1b[31m"].counts == (2**70,)
    assert reader.list_histograms("aaaa0000", "train/loss") == []
    assert reader.list_histograms("absent", "weights") == []


def test_filters(fill, reader):
    fill("aaaa0000", created=1.0, name="x", project="z", recipe="r", tags=("t", "u"), parent="p")
    fill("bbbb0000", created=2.0, name="y", tags=("u",), ended=False)
    assert ids(reader.list_runs(status="running")) == ["bbbb0000"]
    assert ids(reader.list_runs(name="x")) == ["aaaa0000"]
    assert ids(reader.list_runs(project="z")) == ["aaaa0000"]
    assert ids(reader.list_runs(recipe="r")) == ["aaaa0000"]
    assert ids(reader.list_runs(parent="p")) == ["aaaa0000"]
    assert ids(reader.list_runs(tag="u")) == ["bbbb0000", "aaaa0000"]
    assert ids(reader.list_runs(tag="t", status="running")) == []
    assert reader.list_runs(tag="t")[0].tags == ("t", "u")


def test_the_number_of_queries_does_not_grow_with_runs(fill, url):
    for number in range(20):
        fill(f"aaaa{number:04d}")
    with Reader.open(url) as reader:
        reader.list_runs()
        statements = []
        with reader._link.snapshot() as connection:
            connection.connection.driver_connection.set_trace_callback(statements.append)
        reader.list_runs()
    assert 0 < len([text for text in statements if text.startswith("SELECT")]) <= 5


def test_references_in_order(fill, reader):
    fill("aaaa1111", created=1.0, name="one")
    fill("aabb2222", created=2.0, name="aaaa1111")  # an id wins over a name
    fill("ccdd3333", created=3.0, name="one")
    fill("eeff4444", created=4.0, name="aa")  # no unique prefix: the name answers
    fill("gghh5555", created=5.0, name="@-2")
    expected = {
        "aaaa1111": "aaaa1111",
        "aab": "aabb2222",
        "one": "ccdd3333",
        "aa": "eeff4444",
        "@last": "gghh5555",
        "@-1": "gghh5555",
        "@-3": "ccdd3333",
        "@-2": "gghh5555",
    }
    assert {text: reader.get_run(text).id for text in expected} == expected


@pytest.mark.parametrize(
    "text",
    ["", "%", "_", "@-0", "@-99", "@-99999999999999", "'; DROP TABLE runs", "x" * 100_000],
    ids=lambda text: repr(text[:20]),
)
def test_references_to_nothing(fill, reader, text):
    fill("aaaa1111")
    with pytest.raises(UnknownRun) as caught:
        reader.get_run(text)
    assert caught.value.reference == text
    assert caught.value.nearest
    assert len(caught.value.message) < 1000


def test_nearest_names(fill, reader):
    fill("aaaa1111", name="patch-probe")
    fill("bbbb2222", name="sanity")
    with pytest.raises(UnknownRun, match="patch-prob3") as caught:
        reader.get_run("patch-prob3")
    assert caught.value.nearest == ("patch-probe",)
    with pytest.raises(UnknownRun):
        reader.get_detail("absent")


def test_an_ambiguous_prefix(fill, reader):
    for number in range(5):
        fill(f"aaaa000{number}")
    with pytest.raises(UnknownRun, match="5 runs begin") as caught:
        reader.get_run("aaaa")
    assert len(caught.value.nearest) == 3


def test_a_name_that_is_no_text(fill, reader):
    fill("aaaa1111", name="bad\udcff")
    assert reader.get_run("bad\udcff").id == "aaaa1111"
    with pytest.raises(UnknownRun):
        reader.get_run("worse\udcff")


@pytest.mark.parametrize("text", ["patch-prob3", "nothing like it", "aaaa"])
def test_what_is_nearest_is_said_once(fill, reader, text):
    fill("aaaa1111", name="patch-probe")
    fill("aaaa2222", name="sanity")
    with pytest.raises(UnknownRun) as caught:
        reader.get_run(text)
    assert caught.value.nearest
    assert not any(near in caught.value.message for near in caught.value.nearest)


def test_a_series_is_in_step_order(fill, reader):
    events = [Metrics(time=1.0, step=step, values={"x": float(step)}) for step in (5, 1, 3, 1)]
    fill(events=events)
    assert list(reader.get_series("aaaa0000", "x").steps) == [1, 1, 3, 5]
    assert reader.get_series("aaaa0000", "x").steps.typecode == "q"
    assert reader.get_series("aaaa0000", "x").times.typecode == "d"
    assert reader.list_keys("aaaa0000") == ["train/loss", "train/lr", "x"]


def test_only_what_is_new(fill, reader, engine):
    folder = fill(ended=False)
    known, cursor = reader.get_series_since("aaaa0000", "train/loss", None)
    assert list(known.steps) == [1, 2, 3]
    nothing, same = reader.get_series_since("aaaa0000", "train/loss", cursor)
    assert (len(nothing), same) == (0, cursor)
    writer = JournalWriter(folder / "events.jsonl")
    for step in (4, 5):
        writer.append(Metrics(time=1.0, step=step, values={"train/loss": 0.0}))
    ingest(engine, folder)
    new, cursor = reader.get_series_since("aaaa0000", "train/loss", cursor)
    assert list(new.steps) == [4, 5]

    writer.append(RunResumed(time=1.0, from_step=2, steps=9))
    writer.append(Metrics(time=1.0, step=3, values={"train/loss": 7.0}))
    writer.close()
    ingest(engine, folder)
    whole, after = reader.get_series_since("aaaa0000", "train/loss", cursor)
    assert after.rewinds == cursor.rewinds + 1
    assert list(whole.values) == [1.0, 0.5, 7.0]


def test_an_unknown_curve_is_empty(fill, reader):
    fill()
    series, cursor = reader.get_series_since("aaaa0000", "absent", None)
    assert (len(series), cursor) == (0, Cursor(0, 0))


def test_a_reader_sees_one_state(fill, url, reader, engine, write_run):
    fill("aaaa0000")
    with reader._link.snapshot():
        ingest(engine, write_run("bbbb0000"))
    assert len(reader.list_runs()) == 2


def test_damage_met_while_reading(fill, url, home):
    fill(events=[Metrics(time=1.0, step=s, values={"x": 1.0}) for s in range(3000)])
    with sqlite3.connect(home / "registry.db", isolation_level=None) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'metrics'"
        ).fetchone()[0]
    connection.close()
    data = bytearray((home / "registry.db").read_bytes())
    data[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    (home / "registry.db").write_bytes(data)
    with Reader.open(url) as reader:
        assert len(reader.list_runs()) == 1
        with pytest.raises(StoreCorrupt, match="rebuild"):
            reader.get_series("aaaa0000", "x")
        assert len(reader.list_runs()) == 1  # what is whole can still be read
