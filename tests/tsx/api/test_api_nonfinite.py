"""What becomes of a step that is not finite: the policy of a loop, and what is kept of the step."""

from __future__ import annotations

import json
import math

import pytest
import torch

from registry.events import Finding
from tsx import api, errors
from tsx.cli.main import main
from tsx.diagnostics.nonfinite.dump import load_dump
from tsx.recording.lines import RunLines
from tsx.recording.watching import Watching

pytestmark = pytest.mark.trainer


@pytest.fixture
def run():
    """Begin a run of a program."""
    return api.init(name="loop", quiet=True)


class Loop:
    """A linear model under SGD with momentum, and a batch that can be spoilt."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.batch = {"x": torch.randn(6, 4), "y": torch.randn(6, 1)}
        self.spoil_gradient = False

    def compute_loss(self, batch, scale):
        return scale * torch.nn.functional.mse_loss(self.model(batch["x"]), batch["y"])

    def step(self, run, step):
        self.optimizer.zero_grad()
        loss = run.compute(self.compute_loss, self.batch, 2.0)
        loss.backward()
        if self.spoil_gradient:
            self.model[0].weight.grad[0, 0] = math.inf
        self.optimizer.step()
        run.log({"loss": loss}, step=step)

    @property
    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


@pytest.fixture
def loop():
    return Loop()


def is_same(one, other):
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def find_nonfinite(detail):
    return [f for f in detail.findings if f.kind in ("nan-origin", "non-finite")]


def test_a_loss_that_is_not_finite_halts_before_a_parameter_moves(run, loop, read):
    run.watch(loop.model, loop.optimizer, every=1)
    loop.step(run, 1)
    before = loop.weights
    loop.batch["x"][2, 1] = math.nan
    with pytest.raises(errors.Diverged, match="not finite at step 2: loss nan") as caught, run:
        loop.step(run, 2)
    assert caught.value.exit_code == 4
    assert "on_nonfinite" in caught.value.__notes__[0]
    assert is_same(before, loop.weights)
    detail = read()
    assert (detail.run.status, detail.run.reason) == ("diverged", caught.value.message)
    (finding,) = find_nonfinite(detail)
    assert (finding.kind, finding.step) == ("nan-origin", 2)


def test_gradients_that_are_not_finite_halt_in_the_optimizer(run, loop, read):
    run.watch(loop.model, loop.optimizer, every=1)
    loop.step(run, 1)
    loop.step(run, 2)
    before, loop.spoil_gradient = loop.weights, True
    with pytest.raises(errors.Diverged, match="step 3: gradients; "), run:
        loop.step(run, 3)
    assert is_same(before, loop.weights)
    (finding,) = find_nonfinite(read())
    assert (finding.step, finding.severity, finding.phase) == (3, "error", "backward")


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_skip_leaves_updates_out_and_counts_them(run, loop, read, fault):
    run.watch(loop.model, loop.optimizer, every=1, on_nonfinite="skip")
    loop.step(run, 1)
    before, good = loop.weights, loop.batch["x"].clone()
    if fault == "loss":
        loop.batch["x"][0] = math.inf
    loop.spoil_gradient = fault == "gradient"
    for step in range(2, 6):
        loop.step(run, step)
        assert is_same(before, loop.weights)
    loop.batch["x"], loop.spoil_gradient = good, False
    loop.step(run, 6)
    assert not is_same(before, loop.weights)
    run.finish()
    detail = read()
    assert detail.run.status == "completed"
    (finding,) = find_nonfinite(detail)
    assert finding.count == 4
    assert detail.metrics["watch/skipped_steps"].last == 4


def test_continue_changes_nothing(run, loop, read):
    run.watch(loop.model, loop.optimizer, every=1, on_nonfinite="continue")
    loop.batch["x"][0] = math.nan
    loop.step(run, 1)
    assert all(bool(w.isnan().any()) for w in loop.weights[:2])


def test_without_a_watched_model_a_loss_is_told_and_nothing_halts(run, read):
    assert math.isnan(run.compute(lambda: math.nan))
    run.finish()
    assert [f.kind for f in read().findings] == ["non-finite"]


def test_a_validation_loss_halts_nothing(run, loop):
    run.watch(loop.model, loop.optimizer)
    loop.batch["x"][0] = math.nan
    with torch.no_grad():
        assert run.compute(loop.compute_loss, loop.batch, 1.0).isnan()


def test_scaled_gradients_are_the_scalers_to_leave_out(run, loop):
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1, fused=True)
    run.watch(loop.model, loop.optimizer, every=1)
    before, loop.spoil_gradient = loop.weights, True
    loop.optimizer.grad_scale = torch.tensor(2.0**16)  # as GradScaler.step hands them over
    loop.optimizer.found_inf = torch.tensor(1.0)
    loop.step(run, 1)
    assert is_same(before, loop.weights)


def test_another_word_for_the_policy_is_told_and_the_model_is_not_watched(run, loop, read):
    run.watch(loop.model, loop.optimizer, on_nonfinite="stop")
    loop.step(run, 1)
    run.finish()
    (finding,) = [f for f in read().findings if f.kind == "detector-failed"]
    assert "stop" in finding.cause


def test_a_loss_that_arrives_late_halts_at_the_next_call(loop, monkeypatch):
    class Sink:
        events: list = []  # noqa: RUF012

        def emit(self, event):
            self.events.append(event)

        def close(self):
            pass

    lines = RunLines(Sink(), 0, lambda text: None)
    watching = Watching(lines, lambda text: None)
    watching.watch(loop.model, loop.optimizer, every=1, on_nonfinite="halt")
    monkeypatch.setattr("tsx.recording.watching.read_number", lambda value: value)
    waiting = []
    monkeypatch.setattr(lines, "read_late", lambda tensor, take: waiting.append((tensor, take)))
    watching.compute(lambda: torch.full((), math.nan, requires_grad=True) * 1)
    for tensor, take in waiting:
        take(tensor.tolist())
    with pytest.raises(errors.Diverged, match="step 1"):
        watching.compute(lambda: pytest.fail("the next call is not made"))
    assert any(isinstance(event, Finding) for event in Sink.events)
    watching.close()


def test_the_call_is_kept_and_gives_the_same_loss_again(run, loop, read, capsys):
    run.watch(loop.model, loop.optimizer, every=1)
    loop.step(run, 1)
    loop.batch["y"][3] = math.nan
    with pytest.raises(errors.Diverged), run:
        loop.step(run, 2)
    (finding,) = find_nonfinite(read())
    (kept,) = [file for file in read().artifacts if file.kind == "batch"]
    assert (kept.path, kept.step) == (finding.evidence["dump"], 2)
    dump = load_dump(run.folder / kept.path)
    fresh = Loop()
    for param in fresh.model.parameters():
        torch.nn.init.zeros_(param)
    dump.restore(fresh.model)
    assert is_same(fresh.weights, loop.weights)
    assert fresh.compute_loss(*dump.args, **dump.kwargs).isnan()
    assert dump.args[1] == 2.0

    capsys.readouterr()
    assert main(["replay", "loop"]) == 0
    shown = capsys.readouterr().out
    assert "args.0.y" in shown
    assert f"load_dump('{run.folder / kept.path}')" in shown
    assert "loss = compute_loss(*dump.args, **dump.kwargs)" in shown
    assert main(["replay", "loop", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert {t["name"]: t["not_finite"] for t in plain["tensors"]} == {"args.0.x": 0, "args.0.y": 1}
    assert main(["replay", "loop", "--set", "train.precision=fp32"]) == 2
    assert "its code" in capsys.readouterr().err


def test_a_disk_that_takes_nothing_costs_the_dump_alone(run, loop, read, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tsx.diagnostics.nonfinite.dump.save_file", refuse)
    run.watch(loop.model, loop.optimizer, every=1, on_nonfinite="skip")
    loop.batch["y"][3] = math.nan
    loop.step(run, 1)
    run.finish()
    kinds = {f.kind for f in read().findings}
    assert {"nan-origin", "dump-unwritten"} <= kinds
    assert not list((run.folder / "dumps").iterdir())
