"""The poller: reads only what is new, and survives whatever the registry does."""

import math
import threading
from array import array

import pytest

from registry.views import Series
from tsx.dashboard import poller as poller_module
from tsx.dashboard.messages import PAGE_RUNS, RUN_KEYS, Focus
from tsx.dashboard.poller import MAX_CURVES, RECOVER_EVERY_S, Poller


@pytest.fixture
def posted():
    return []


@pytest.fixture
def poller(filled, posted):
    return Poller(lambda: filled, posted.append)


def test_the_newest_run_is_read_when_nothing_is_selected(poller, posted):
    poller.look(0.0)
    (snapshot,) = posted
    assert snapshot.run_id == "a1b2c3d4"
    assert len(snapshot.runs) == 6
    assert "train/loss" in snapshot.curves
    assert "train/lr" not in snapshot.curves
    assert snapshot.detail is None
    assert snapshot.trouble == ""


def test_nothing_is_read_or_posted_while_nothing_changes(poller, posted, filled):
    for now in range(5):
        poller.look(float(now))
    assert len(posted) == 1
    assert filled.calls["list_runs"] == 1
    assert filled.calls["data_version"] == 5


def test_only_new_points_are_read(poller, posted, filled):
    poller.look(0.0)
    before = filled.calls["points"]
    filled.extend("a1b2c3d4", "train/loss", [125, 126], [0.5, math.nan])
    poller.look(1.0)
    assert filled.calls["points"] - before == 2
    curve = posted[-1].curves["train/loss"]
    assert list(curve.steps) == list(range(1, 127))
    assert curve.values[124] == 0.5
    assert math.isnan(curve.values[125])
    assert len(posted[0].curves["train/loss"]) == 124


def test_points_that_come_late_are_put_in_step_order(poller, posted, filled):
    poller.look(0.0)
    filled.extend("a1b2c3d4", "val/loss", [50], [9.0])
    poller.look(1.0)
    assert list(posted[-1].curves["val/loss"].steps) == [25, 50, 50, 75, 100]


def test_a_resume_cuts_the_curve(poller, posted, filled):
    poller.look(0.0)
    held = filled.curves["a1b2c3d4"]["train/loss"]
    filled.curves["a1b2c3d4"]["train/loss"] = type(held)(
        held.key, held.steps[:50], held.values[:50], held.times[:50]
    )
    filled.rewinds["a1b2c3d4"] = 1
    filled.version += 1
    poller.look(1.0)
    assert list(posted[-1].curves["train/loss"].steps) == list(range(1, 51))


def test_a_curve_that_was_watched_for_long_is_outlined_anew(poller, posted, filled, monkeypatch):
    monkeypatch.setattr(poller_module, "_MAX_HELD", 124)
    poller.look(0.0)
    filled.extend("a1b2c3d4", "train/loss", [125], [0.5])
    poller.look(1.0)
    before = filled.calls["points"]
    filled.extend("a1b2c3d4", "train/loss", [126], [0.5])
    poller.look(2.0)
    assert filled.calls["points"] - before == 126
    assert list(posted[-1].curves["train/loss"].steps) == list(range(1, 127))


def test_a_page_of_the_runs_is_read_with_the_values_that_are_shown(crowded, posted):
    poller = Poller(lambda: crowded, posted.append)
    poller.look(0.0)
    assert (posted[-1].num_runs, posted[-1].num_running) == (3000, 1)
    assert len(posted[-1].runs) == PAGE_RUNS
    assert set().union(*(run.metrics for run in posted[-1].runs)) <= set(RUN_KEYS)
    poller.set_focus(Focus("old01500", first=1400))
    poller.look(1.0)
    assert posted[-1].first == 1400
    assert posted[-1].runs[0].id == crowded.runs[1400].id
    assert posted[-1].run_id == "old01500"


def test_of_ten_thousand_keys_the_first_are_drawn(filled, posted):
    held = filled.curves["a1b2c3d4"]
    short = Series("k", array("q", [1]), array("d", [1.0]), array("d", [1.0]))
    held |= {f"\x1b[31mk{number}": short for number in range(10_000)}
    poller = Poller(lambda: filled, posted.append)
    poller.set_focus(Focus("a1b2c3d4", full=True))
    poller.look(0.0)
    assert len(posted[-1].curves) == MAX_CURVES
    assert "train/loss" in posted[-1].curves


def test_a_run_is_opened_that_is_not_on_the_page(crowded, posted):
    poller = Poller(lambda: crowded, posted.append)
    poller.set_focus(Focus("zz91ab3c", full=True, first=2000))
    poller.look(0.0)
    assert posted[-1].run_id == "zz91ab3c"
    assert posted[-1].find_run("zz91ab3c").name == "nan-at-80"
    assert "train/lr" in posted[-1].curves


def test_a_focus_is_read_at_the_next_look(poller, posted):
    poller.look(0.0)
    poller.set_focus(Focus("zz91ab3c", full=True))
    poller.look(0.1)
    assert posted[-1].run_id == "zz91ab3c"
    assert posted[-1].detail.run.id == "zz91ab3c"
    assert "train/lr" in posted[-1].curves


def test_a_focus_on_a_run_that_is_gone_falls_back_to_the_newest(poller, posted):
    poller.set_focus(Focus("gone0000"))
    poller.look(0.0)
    assert posted[-1].run_id == "a1b2c3d4"


def test_an_empty_registry_is_a_snapshot_too(empty, posted):
    poller = Poller(lambda: empty, posted.append)
    poller.look(0.0)
    assert posted[-1].runs == ()
    empty.add("n0000001", "first", "running")
    poller.look(1.0)
    assert [run.id for run in posted[-1].runs] == ["n0000001"]


def test_trouble_keeps_the_last_content_and_ends_by_itself(poller, posted, filled):
    poller.look(0.0)
    filled.error = RuntimeError("database is locked by pid 7\nmore")
    poller.look(1.0)
    poller.look(2.0)
    assert len(posted) == 2
    assert posted[-1].trouble == "database is locked by pid 7"
    assert posted[-1].runs == posted[0].runs
    assert filled.calls["close"] >= 1
    filled.error = None
    poller.look(3.0)
    assert posted[-1].trouble == ""
    assert len(posted[-1].curves["train/loss"]) == 124


def test_a_registry_that_cannot_be_opened_is_tried_again(posted, filled):
    answers = iter([OSError("no such host"), ValueError(), filled])

    def open_reader():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    poller = Poller(open_reader, posted.append)
    for now in range(3):
        poller.look(float(now))
    assert [snapshot.trouble for snapshot in posted] == ["no such host", "ValueError", ""]


def test_dead_runs_are_ended_now_and_then(posted, filled):
    calls = []
    poller = Poller(lambda: filled, posted.append, recover=lambda: calls.append(1))
    for now in (0.0, 0.1, RECOVER_EVERY_S / 2, RECOVER_EVERY_S, RECOVER_EVERY_S + 0.1):
        poller.look(now)
    assert len(calls) == 2
    assert RECOVER_EVERY_S + 0.5 < 2.0


def test_trouble_with_ending_them_is_said_while_reading_goes_on(posted, filled):
    outcomes = iter([PermissionError("runs/ is not readable"), None])

    def recover():
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome

    poller = Poller(lambda: filled, posted.append, recover=recover)
    poller.look(0.0)
    assert posted[-1].trouble == "runs/ is not readable"
    assert len(posted[-1].runs) == 6
    poller.look(0.1)
    assert len(posted) == 1
    poller.look(RECOVER_EVERY_S + 1)
    assert posted[-1].trouble == ""


def test_a_file_that_vanishes_is_trouble_and_not_an_empty_registry(tmp_path, posted, filled, empty):
    file = tmp_path / "registry.db"
    poller = Poller(lambda: filled if file.exists() else empty, posted.append, file=file)
    poller.look(0.0)
    assert posted[-1].runs == ()
    assert posted[-1].trouble == ""
    file.touch()
    empty.error = RuntimeError("closed")  # the real reader notices the file by itself
    poller.look(1.0)
    poller.look(2.0)
    assert len(posted[-1].runs) == 6
    file.unlink()
    poller.look(3.0)
    assert "registry.db is gone" in posted[-1].trouble
    assert len(posted[-1].runs) == 6
    file.touch()
    poller.look(4.0)
    assert posted[-1].trouble == ""


def test_the_loop_ends_when_asked_and_closes_the_reader(filled, posted):
    seen = threading.Event()
    poller = Poller(lambda: filled, lambda snapshot: (posted.append(snapshot), seen.set()))
    thread = threading.Thread(target=poller.run)
    thread.start()
    assert seen.wait(10)
    poller.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert filled.calls["close"] == 1


def test_a_snapshot_never_changes_after_it_was_posted(poller, posted):
    poller.look(0.0)
    with pytest.raises(TypeError):
        posted[0].curves["train/loss"] = None
    with pytest.raises(AttributeError):
        posted[0].runs = ()
