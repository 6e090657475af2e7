"""What `log` records, and what it does with values and steps that are none."""

from __future__ import annotations

import math
import threading

import pytest

import tsx
from registry.events import Metrics
from tsx.errors import RunClosed
from tsx.recording.lines import MAX_TOLD


def test_every_value_is_found_again(read, read_curve):
    run = tsx.init(project="toy", name="first", config={"lr": 1e-3}, tags=["a"], note="why")
    for step in range(1, 4):
        run.log({"train/loss": 1.0 / step, "val": {"loss": 2}})
    tsx.log({"h": tsx.histogram([1.0, 2.0])}, step=7)
    run.finish()
    found = read()
    assert (found.run.project, found.run.name, found.run.note) == ("toy", "first", "why")
    assert (found.run.tags, found.config) == (("a",), {"lr": 1e-3})
    assert (found.run.status, found.run.step) == ("completed", 7)
    assert read_curve("train/loss") == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert read_curve("val/loss") == [(1, 2.0), (2, 2.0), (3, 2.0)]


def test_a_histogram_is_an_event_of_its_own():
    run = tsx.init(name="h")
    sent = []
    run._sink.emit = sent.append
    run.log({"w": tsx.histogram([0.0, 1.0, math.nan], bins=1), "x": 1})
    metrics, histogram = sent
    assert metrics.values == {"x": 1.0}
    assert (histogram.key, histogram.step, histogram.edges) == ("w", 1, (0.0, 1.0))
    assert (histogram.counts, histogram.nonfinite_count) == ((2,), 1)


def test_the_step_counts_on_from_the_last_one(read_curve):
    with tsx.init(name="steps") as run:
        run.log({"x": 1.0})
        run.log({"x": 2.0}, step=10)
        run.log({"x": 3.0})
        run.log({"x": 4.0}, step=11)
        assert run.step == 11
    assert read_curve("x") == [(1, 1.0), (10, 2.0), (11, 3.0), (11, 4.0)]


def test_a_step_that_goes_back_is_kept_and_told_once(read, read_curve, capsys):
    with tsx.init(name="back") as run:
        run.log({"x": 1.0}, step=10)
        run.log({"x": 2.0}, step=5)
        run.log({"x": 3.0})
        run.log({"x": 4.0}, step=2)
    assert read_curve("x") == [(2, 4.0), (5, 2.0), (6, 3.0), (10, 1.0)]
    (finding,) = read().findings
    assert (finding.kind, finding.severity) == ("log-step", "warning")
    assert capsys.readouterr().err.count("step 5 was logged after step 10; it is kept") == 1


@pytest.mark.parametrize("step", ["7", None.__class__, 2.5, 2**63, math.nan, [1]])
def test_a_step_that_is_none_loses_no_value(step, read, read_curve):
    with tsx.init(name="odd") as run:
        run.log({"x": 1.0}, step=4)
        run.log({"x": 2.0}, step=step)
    assert read_curve("x") == [(4, 1.0), (5, 2.0)]
    assert "is no whole number below 2**63; taken as 5" in read().findings[0].cause


def test_steps_end_where_a_registry_ends(read_curve):
    with tsx.init(name="far") as run:
        run.log({"x": 1.0}, step=2**63 - 1)
        run.log({"x": 2.0})
    assert read_curve("x") == [(2**63 - 1, 1.0), (2**63 - 1, 2.0)]


@pytest.mark.parametrize("step", [3.0, True])
def test_a_whole_number_of_another_type_is_a_step(step, read_curve):
    with tsx.init(name="whole") as run:
        run.log({"x": 1.0}, step=step)
    assert read_curve("x") == [(int(step), 1.0)]


def test_what_is_no_number_is_counted_and_told_once_a_key(read, capsys):
    with tsx.init(name="refused") as run:
        for _ in range(3):
            run.log({"good": 1.0, "bad\x1b[31m": "text"})
        run.log("nothing")
        assert run.dropped == 4
    err = capsys.readouterr().err
    assert err.count("'bad␛[31m' is a str, not a number; it is not recorded") == 1
    assert "left out 4 values that were no numbers" in err
    assert "\x1b" not in err
    found = read()
    assert {finding.kind for finding in found.findings} == {"log-value"}
    assert [finding.module for finding in found.findings] == ["bad\x1b[31m", "log"]
    assert found.metrics["good"].count == 3
    assert found.run.step == 4


def test_many_refused_keys_do_not_flood(read):
    with tsx.init(name="flood", quiet=True) as run:
        run.log({f"bad{number}": None for number in range(500)})
        assert run.dropped == 500
    assert len(read().findings) == MAX_TOLD


def test_ten_thousand_keys_and_odd_ones_are_recorded(read):
    values = {f"layer{number}/norm": number for number in range(10_000)}
    odd = {"": 1.0, "\x1b[2J": 2.0, "a\nb": 3.0, "\ud800": 4.0, "x" * 5000: 5.0}
    with tsx.init(name="keys") as run:
        run.log(values)
        run.log(odd)
    found = read()
    assert len(found.metrics) == 10_000 + len(odd)
    assert found.metrics["layer9999/norm"].last == 9999.0


def test_keys_that_are_no_text_become_text(read):
    with tsx.init(name="keys") as run:
        run.log({1: 2.0, ("a", 1): 3.0})
    assert {key: row.last for key, row in read().metrics.items()} == {"1": 2.0, "('a', 1)": 3.0}


def test_values_that_are_not_finite_are_kept(read_curve):
    with tsx.init(name="odd") as run:
        run.log({"x": math.inf})
        run.log({"x": math.nan})
    (first, inf), (second, nan) = read_curve("x")
    assert (first, inf, second) == (1, math.inf, 2)
    assert math.isnan(nan)


def test_a_finished_run_says_what_to_do():
    run = tsx.init(name="done")
    run.finish()
    with pytest.raises(RunClosed, match=rf"tsx\.init\(resume='{run.id}'\)"):
        run.log({"x": 1.0})
    with pytest.raises(RunClosed, match="is finished"):
        tsx.log({"x": 1.0})
    with pytest.raises(RuntimeError):
        run.compute(lambda: 1)
    run.finish()


def test_without_a_run_the_error_names_init():
    for name, arguments in (
        ("log", ({},)),
        ("finish", ()),
        ("watch", (None,)),
        ("compute", (abs,)),
    ):
        with pytest.raises(RunClosed, match=rf"tsx\.{name} without a run: call tsx\.init"):
            getattr(tsx, name)(*arguments)


def test_threads_share_a_run_and_lose_nothing(read_curve):
    run = tsx.init(name="threads")

    def work():
        for _ in range(200):
            run.log({"x": 1.0})

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish()
    assert [step for step, _ in read_curve("x")] == list(range(1, 1601))


def test_a_closed_stderr_stops_nothing(monkeypatch, read):
    monkeypatch.setattr("sys.stderr", None)
    with tsx.init(name="mute") as run:
        run.log({"x": "text", "y": 1.0})
    assert read().metrics["y"].count == 1


def test_the_hot_path_hands_over_exactly_what_it_was_given():
    run = tsx.init(name="hot")
    sent = []
    run._emit = run._sink.emit = sent.append
    values = {"a": 1.0, "b": 2.0}
    run.log(values)
    run.log({"a": 1, "b": True})
    assert [type(event) for event in sent] == [Metrics, Metrics]
    assert sent[0].values is values
    assert sent[1].values == {"a": 1.0, "b": 1.0}
    assert {type(value) for value in sent[1].values.values()} == {float}


def test_a_notebook_gets_a_card_without_markup_of_its_own():
    run = tsx.init(name="<b>\x1b[31m")
    run.log({"<script>": 0.5, **{f"k{number}": 1.0 for number in range(20)}})
    card = run._repr_html_()
    assert run.id in card
    assert "running" in card
    assert "step 1" in card
    assert "&lt;script&gt;" in card
    assert "0.5000" in card
    assert "and 9 more" in card
    assert "<script>" not in card
    assert "\x1b" not in card
    assert run.id in repr(run)
