"""What a user says of a run is in its journal and, at once, in the database."""

from __future__ import annotations

import json
import os
import threading

import pytest

from registry.connection import open_engine
from registry.edit import append_event, edit_run
from registry.errors import StoreUnavailable, UnknownRun
from registry.events import Edited, Metrics
from registry.queries import Reader
from registry.recover import rebuild, recover
from registry.store import Recorder, ingest

RUN = "aaaa0000"


def add_tag(home, url, tag):
    def change(words):
        return Edited(time=1.0, tags=(*words.tags, tag))

    return edit_run(home, url, RUN, change)


def read(url):
    with Reader.open(url) as reader:
        return reader.get_run(RUN)


@pytest.fixture
def folder(write_run, home, url):
    """Record one run, in the database too, and return its folder."""
    folder = write_run(RUN, tags=("old",), note="first")
    recover(home, url)
    return folder


def test_an_edit_shows_at_once_and_a_rebuild_keeps_it(folder, home, url):
    assert add_tag(home, url, "new")
    assert edit_run(home, url, RUN, lambda words: Edited(time=2.0, name="two", note="n"))
    row = read(url)
    assert (row.name, row.note, row.tags) == ("two", "n", ("old", "new"))
    rebuild(home, url)
    assert read(url) == row


def test_the_change_gets_the_words_of_now(folder, home, url):
    seen = []
    assert not edit_run(home, url, RUN, seen.append)
    append_event(folder, Edited(time=2.0, name="said elsewhere"))
    assert not edit_run(home, url, RUN, seen.append)
    assert [words.name for words in seen] == [f"run-{RUN}", "said elsewhere"]
    assert seen[0].tags == ("old",)
    assert seen[0].note == "first"


def test_nothing_to_change_writes_nothing(folder, home, url):
    before = (folder / "events.jsonl").read_bytes()
    assert not edit_run(home, url, RUN, lambda words: None)
    assert (folder / "events.jsonl").read_bytes() == before


def test_edits_at_the_same_time_lose_none(folder, home, url):
    tags = [f"t{number}" for number in range(8)]
    threads = [threading.Thread(target=add_tag, args=(home, url, tag)) for tag in tags]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read(url).tags) == sorted(["old", *tags])


def test_a_run_that_another_writer_records_goes_on(write_run, home, url):
    folder = write_run(RUN, steps=1, ended=False)
    recorder = Recorder(folder, url)
    engine = open_engine(url, readonly=False)
    ingest(engine, folder)
    engine.dispose()
    for step in range(2, 40):
        recorder.emit(Metrics(time=1000.0 + step, step=step, values={"train/loss": 1.0}))
        if step in (5, 20):
            assert add_tag(home, url, f"at-{step}")
    recorder.close()
    recover(home, url)
    with Reader.open(url) as reader:
        assert reader.get_run(RUN).tags == ("at-5", "at-20")
        assert list(reader.get_series(RUN, "train/loss").steps) == list(range(1, 40))
    rebuild(home, url)
    assert read(url).tags == ("at-5", "at-20")


def test_an_unknown_run_is_named(folder, home, url):
    with pytest.raises(UnknownRun):
        edit_run(home, url, "bbbb0000", lambda words: None)


def test_a_run_of_another_host_names_the_host(write_run, home, url):
    folder = write_run(RUN, host="elsewhere")
    recover(home, url)
    folder.rename(folder.with_name("gone"))
    with pytest.raises(StoreUnavailable, match="on elsewhere") as caught:
        add_tag(home, url, "new")
    assert "elsewhere" in caught.value.next_command


def test_a_folder_that_is_gone_is_named(folder, home, url):
    (folder / "events.jsonl").unlink()
    with pytest.raises(StoreUnavailable, match=str(folder)):
        add_tag(home, url, "new")
    assert not (folder / "events.jsonl").exists()


def test_a_folder_outside_home_is_found_through_the_registry(
    folder, home, url, monkeypatch, tmp_path
):
    monkeypatch.setenv("TSX_REGISTRY", url)
    assert edit_run(tmp_path / "other-home", url, RUN, lambda words: Edited(time=1.0, name="x"))
    assert json.loads((folder / "events.jsonl").read_bytes().splitlines()[-1])["name"] == "x"


def test_an_edit_the_disk_refuses_changes_nothing(folder, home, url, monkeypatch):
    def refuse(fd, data):
        raise OSError(28, "No space left on device")

    before = (folder / "events.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(StoreUnavailable, match="No space left"):
            add_tag(home, url, "new")
    assert (folder / "events.jsonl").read_bytes() == before
    assert read(url).tags == ("old",)
