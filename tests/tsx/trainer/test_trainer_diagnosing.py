"""Detectors in a run of a recipe: they see it, they change nothing, and they may fail."""

from __future__ import annotations

import pytest

from registry.events import Severity
from tsx.diagnostics import roster
from tsx.diagnostics.detector import Detector

pytestmark = pytest.mark.trainer


class Witness(Detector):
    """Notes what it is shown."""

    name = "witness"
    seen: list[str]

    def before_call(self, call):
        self.seen.append("call")
        assert set(call.name_tensors())

    def saw_module(self, name, module, args, out):
        self.seen.append(f"module {name}")

    def before_step(self, look):
        self.seen.append("before")
        assert len(look.names) == len(list(self.scene.model.parameters()))
        return {"ignored": 1.0}

    def end_step(self, optimizer, step):
        self.seen.append(f"end {step}")

    def saw_loss(self, loss, step):
        self.seen.append(f"loss {step}")

    def saw_values(self, values, step):
        self.seen.append(f"values {step}")
        assert "train/loss" in values

    def close(self, *, is_whole):
        self.seen.append(f"close {is_whole}")
        self.scene.report("witness", "seen", "all was seen", "nothing", severity=Severity.INFO)


class Broken(Detector):
    name = "broken"
    paused = 0

    def pause(self):
        type(self).paused += 1

    def after_call(self, call):
        raise ZeroDivisionError("inside")


@pytest.fixture
def hosted(monkeypatch):
    """Host one more detector in each run."""

    def host(kind):
        monkeypatch.setattr(roster, "DETECTORS", (*roster.DETECTORS, kind))

    return host


def test_a_detector_sees_a_run(lab, hosted):
    Witness.seen = seen = []
    hosted(Witness)
    ran = lab.run(train__steps=3, train__grad_accum_steps=2)
    assert seen.count("call") == 6
    assert "module blocks.0" in seen
    assert [event for event in seen if event.startswith(("end", "loss", "close"))] == [
        *("loss 1", "end 1", "loss 2", "end 2", "loss 3", "end 3", "close True")
    ]
    assert {"values 1", "values 2", "values 3"} <= set(seen)
    (finding,) = [f for f in ran.sink.findings if f.kind == "witness"]
    assert finding.evidence == {"mechanism": "seen"}
    assert not ran.sink.curve("watch/ignored")


def test_a_run_is_the_same_with_and_without_them(lab):
    with_them = lab.run(train__steps=5)
    without = lab.run(train__steps=5, diagnostics__watch=False)
    for key in ("train/loss", "train/aux", "train/grad_norm"):
        assert with_them.sink.curve(key) == without.sink.curve(key)


def test_one_that_fails_is_off_and_training_goes_on(lab, hosted):
    hosted(Broken)
    ran = lab.run(train__steps=3)
    (finding,) = [f for f in ran.sink.findings if f.kind == "detector-failed"]
    assert finding.evidence["error"] == "ZeroDivisionError: inside"
    assert finding.evidence["topic"] == "broken"
    assert ran.outcome.status == "completed"
    assert Broken.paused == 1
