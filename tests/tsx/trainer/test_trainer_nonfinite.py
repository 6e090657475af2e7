from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from registry.events import Metrics, Severity, Status
from tsx.data.stream import BatchStream
from tsx.data.windows import Batch
from tsx.trainer import step as steps
from tsx.trainer.checkpoint import CheckpointFolder

pytestmark = pytest.mark.trainer


@pytest.fixture
def bad_batch(monkeypatch):
    """Plant a NaN in the training batch of some positions, the first being 0."""

    def plant(*positions, value=np.nan):
        next_batch = BatchStream.next_batch

        def poisoned(self):
            position = self.state_dict()["position"]
            batch = next_batch(self)
            if position not in positions:
                return batch
            input_BC = batch.input_BC.copy()
            input_BC[0, 3] = value
            return Batch(input_BC, batch.target_BC, batch.target_mask_BC, batch.input_mask_BC)

        monkeypatch.setattr(BatchStream, "next_batch", poisoned)

    return plant


@pytest.fixture
def bad_gradient(monkeypatch):
    """Plant an infinity in one gradient of some steps; their loss stays finite."""

    def plant(*planted, name="heads.heads.0.weight"):
        accumulate = steps.accumulate_gradients
        calls = []

        def poisoned(model, *rest, **named):
            loss = accumulate(model, *rest, **named)
            calls.append(1)
            if len(calls) in planted:
                model.get_parameter(name).grad[0] = math.inf
            return loss

        monkeypatch.setattr(steps, "accumulate_gradients", poisoned)

    return plant


def nonfinite(ran):
    kinds = ("non-finite", "nan-origin")  # the second where the step shows it again
    return [finding for finding in ran.sink.findings if finding.kind in kinds]


def test_halt_is_the_default_and_keeps_the_weights_clean(lab, bad_batch):
    bad_batch(3)
    ran = lab.run(train__checkpoint_every=1, train__log_every=5)
    assert ran.outcome.status is Status.DIVERGED
    assert ran.outcome.step == 3
    assert ran.outcome.reason.startswith("not finite at step 4: loss NaN, gradient norm NaN")
    last = ran.sink.of(Metrics)[-2]  # the very last is the peak memory
    assert last.step == 4
    assert math.isnan(last.values["train/loss"])
    (finding,) = nonfinite(ran)
    assert (finding.step, finding.severity, finding.phase) == (4, Severity.ERROR, "data")
    assert (finding.kind, finding.evidence["mechanism"]) == ("nan-origin", "bad-batch")
    assert finding.evidence["nonfinite_inputs"] == 1
    assert finding.evidence["loss"] == "NaN"
    resumed = lab.run(
        resume=True,
        train__checkpoint_every=1,
        train__log_every=5,
        diagnostics__on_nonfinite="skip",
    )
    assert resumed.outcome.status is Status.COMPLETED
    assert resumed.sink.resumed[0].from_step == 3


def test_halt_names_the_parameter_whose_gradient_is_bad(lab, bad_gradient):
    bad_gradient(2)
    ran = lab.run(train__grad_accum_steps=2)
    assert (ran.outcome.status, ran.outcome.step) == (Status.DIVERGED, 1)
    (finding,) = nonfinite(ran)
    assert finding.phase == "backward"
    assert finding.module == "heads.heads.0.weight"
    assert finding.evidence["nonfinite_gradients"] == {"heads.heads.0.weight": 16}
    assert math.isfinite(finding.evidence["loss"])
    assert finding.evidence["grad_norm"] == "Infinity"


def test_skip_leaves_out_the_update_and_counts(lab, bad_batch):
    bad_batch(2)
    ran = lab.run(diagnostics__on_nonfinite="skip", train__checkpoint_every=6)
    assert (ran.outcome.status, ran.outcome.step) == (Status.COMPLETED, 6)
    losses = ran.sink.curve("train/loss")
    assert [step for step, loss in losses.items() if math.isnan(loss)] == [3]
    assert ran.sink.curve("train/skipped_steps") == {3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0}
    assert [f.severity for f in nonfinite(ran)] == [Severity.WARNING]
    state = CheckpointFolder(ran.folder).read_state(6)
    assert (state.skipped_steps, state.stream["position"]) == (1, 6)


def test_where_training_goes_on_the_first_such_step_is_explained(lab, bad_batch):
    bad_batch(2, 4)
    ran = lab.run(diagnostics__on_nonfinite="skip")
    first, second = nonfinite(ran)
    assert (first.step, first.kind, first.evidence["mechanism"]) == (3, "nan-origin", "bad-batch")
    assert first.evidence["previous_batch"] == "passes"
    assert first.severity is second.severity is Severity.WARNING
    assert (second.step, second.kind) == (5, "non-finite")
    clean = lab.run("clean", diagnostics__on_nonfinite="skip", diagnostics__watch=False)
    assert ran.sink.curve("train/loss")[6] == clean.sink.curve("train/loss")[6]


def test_skip_moves_no_weight_and_no_moment(lab, bad_batch):
    bad_batch(1)
    clean = lab.run("one", train__steps=1, train__checkpoint_every=1, optim__warmup_steps=0)
    skipped = lab.run(
        "two",
        train__steps=2,
        train__checkpoint_every=2,
        optim__warmup_steps=0,
        diagnostics__on_nonfinite="skip",
    )
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [
            CheckpointFolder(ran.folder).get_path(ran.outcome.step) / name
            for ran in (clean, skipped)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_skip_forgets_the_bad_gradient(lab, bad_batch):
    bad_batch(2)
    ran = lab.run(diagnostics__on_nonfinite="skip", train__grad_accum_steps=2)
    losses = ran.sink.curve("train/loss")
    assert [step for step, loss in losses.items() if math.isnan(loss)] == [2]


def test_continue_goes_on_and_says_so_without_a_flood(lab, bad_batch):
    bad_batch(1)
    ran = lab.run(diagnostics__on_nonfinite="continue", train__steps=10)
    assert (ran.outcome.status, ran.outcome.step) == (Status.COMPLETED, 10)
    losses = ran.sink.curve("train/loss")
    assert [step for step, loss in losses.items() if math.isnan(loss)] == list(range(2, 11))
    findings = nonfinite(ran)
    assert [f.step for f in findings] == [2, 3, 5, 9, 10]
    assert [f.count for f in findings] == [1, 1, 2, 4, 1]
    assert [f.phase for f in findings] == ["data", *["optimizer"] * 4]


def test_a_diverged_validation_is_never_the_best(lab, bad_batch):
    bad_batch(3)
    ran = lab.run(
        diagnostics__on_nonfinite="continue",
        train__checkpoint_every=2,
        eval__every=2,
        optim__lr=1e-2,
    )
    assert math.isnan(ran.sink.curve("val/pred")[6])
    saved = [file for file in ran.sink.artifacts if file.kind == "checkpoint"]
    assert [file.metadata["best"] for file in saved] == [True, False, False]
    assert CheckpointFolder(ran.folder).list_steps() == [2, 6]
    assert CheckpointFolder(ran.folder).read_state(6).val_pred is None


def test_healthy_run_raises_nothing(lab):
    assert lab.run(eval__every=2).sink.findings == []


def test_overflowing_norm_of_finite_gradients_halts(lab, monkeypatch):
    accumulate = steps.accumulate_gradients

    def huge(model, *rest, **named):
        loss = accumulate(model, *rest, **named)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 3e38)
        return loss

    monkeypatch.setattr(steps, "accumulate_gradients", huge)
    ran = lab.run()
    assert ran.outcome.status is Status.DIVERGED
    (finding,) = nonfinite(ran)
    assert finding.cause == "every gradient is finite, their total norm overflows"
