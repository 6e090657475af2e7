"""Watched models and computed losses: every fault is planted beside a healthy twin."""

from __future__ import annotations

import inspect
import math
import warnings

import pytest

import tsx
from registry.events import Finding, Metrics, RunPrepared

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.trainer


@pytest.fixture
def run():
    """Return a run whose events are kept in `run.sent` as well."""
    run = tsx.init(name="watch", quiet=True)
    run.sent = []
    emit = run._sink.emit

    def keep(event):
        run.sent.append(event)
        emit(event)

    run._emit = run._sink.emit = keep
    return run


@pytest.fixture
def list_findings(run):
    def listed():
        return [event for event in run.sent if isinstance(event, Finding)]

    return listed


@pytest.fixture
def make_model():
    def make(**parts):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        torch.nn.init.zeros_(model[2].bias)
        return model

    return make


def train(model, optimizer, steps, run=None, spoil=None):
    """Take steps on noise; `spoil(step)` may break something between backward and step."""
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        if spoil is not None:
            spoil(step)
        optimizer.step()
        if run is not None:
            run.log({"loss": 1.0})


def values_of(run, key):
    return [
        (event.step, event.values[key])
        for event in run.sent
        if isinstance(event, Metrics) and key in event.values
    ]


def test_watch_of_the_module_takes_what_the_run_s_takes(monkeypatch):
    run = inspect.signature(tsx.recording.run.Run.watch).parameters
    module = inspect.signature(tsx.watch).parameters
    assert list(module.values()) == [*run.values()][1:]
    heard = []
    monkeypatch.setattr(tsx.api, "get_run", lambda caller: Heard(heard))
    given = {name: object() for name in module}
    tsx.watch(**given)
    assert heard == [given]


class Heard:
    """A run that keeps what it is told to watch."""

    def __init__(self, heard):
        self.heard = heard

    def watch(self, model, optimizer, **more):
        self.heard.append({"model": model, "optimizer": optimizer, **more})


def test_norm_and_update_are_those_of_the_step(run, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer, every=1)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 1)
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    moved = [(p.detach() - old).norm() for p, old in zip(model.parameters(), before, strict=True)]
    norms = [old.norm() for old in before]
    # The bias that was zero at the start is left out of the ratio.
    ratio = math.hypot(*moved[:3]) / math.hypot(*norms[:3])
    run.log({"loss": 1.0}, step=5)
    assert values_of(run, "watch/grad_norm") == [(5, pytest.approx(grads.norm().item(), rel=1e-5))]
    assert values_of(run, "watch/update_ratio") == [(5, pytest.approx(ratio, rel=1e-5))]


def test_the_run_knows_the_model(run, make_model, read):
    model = make_model()
    run.watch(model)
    run.watch(torch.nn.Linear(2, 2, bias=False))
    run.finish()
    prepared = [event for event in run.sent if isinstance(event, RunPrepared)]
    assert [event.params_total for event in prepared] == [49, 53]
    found = read()
    assert (found.run.device, found.run.precision) == ("cpu", "fp32")
    assert found.environment["params_total"] == 53


def test_hooks_go_with_the_run(run, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer, every=1)
    run.finish()
    count = len(run.sent)
    train(model, optimizer, 1)
    assert len(run.sent) == count
    from torch.optim import optimizer as hooks

    assert not hooks._global_optimizer_pre_hooks
    assert not hooks._global_optimizer_post_hooks


def test_a_model_given_twice_is_watched_once(run, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer, every=1)
    run.watch(model, optimizer, every=1)
    run.watch(model)
    train(model, optimizer, 2, run)
    assert len(values_of(run, "watch/grad_norm")) == 2
    assert values_of(run, "watch/2/grad_norm") == []


def test_several_optimizers_have_keys_of_their_own(run, make_model):
    model = make_model()
    one = torch.optim.SGD(model[0].parameters(), lr=0.1)
    two = torch.optim.Adam(model[2].parameters(), lr=0.1)
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    run.watch(model, every=1)
    model(torch.randn(16, 4)).square().mean().backward()
    for optimizer in (one, two, other):
        optimizer.step()
    run.log({})
    keys = set(run.sent[-1].values)
    assert keys == {
        *("watch/grad_norm", "watch/update_ratio"),
        *("watch/2/grad_norm", "watch/2/update_ratio"),
    }


def test_an_optimizer_that_was_not_meant_is_passed_over(run, make_model):
    model = make_model()
    one, two = (torch.optim.SGD(model[place].parameters(), lr=0.1) for place in (0, 2))
    run.watch(model, two, every=1)
    model(torch.randn(16, 4)).square().mean().backward()
    one.step()
    run.log({})
    assert run.sent[-1].values == {}
    two.step()
    run.log({})
    assert "watch/grad_norm" in run.sent[-1].values


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_gradient_that_is_not_finite_is_named_with_its_step(bad, run, make_model, list_findings):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.watch(model, optimizer, every=1, on_nonfinite="continue")

    def spoil(step):
        if step == 3 and bad is not None:
            model[0].weight.grad[0, 0] = bad

    train(model, optimizer, 3, run, spoil)
    found = list_findings()
    if bad is None:
        assert found == []
        return
    (finding,) = found
    assert (finding.kind, finding.severity, finding.step) == ("non-finite", "error", 3)
    assert (finding.phase, finding.module) == ("backward", "0.weight")
    assert finding.evidence["nonfinite_gradients"] == {"0.weight": 1}
    assert "optim." not in finding.fix


def test_a_parameter_that_broke_is_named(run, make_model, list_findings):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.watch(model, optimizer, every=1, on_nonfinite="continue")

    def spoil(step):
        if step == 2:
            with torch.no_grad():
                model[2].weight[0, 1] = math.nan
            model[2].weight.grad.fill_(math.nan)

    train(model, optimizer, 2, run, spoil)
    (finding,) = list_findings()
    assert (finding.step, finding.phase, finding.module) == (2, "optimizer", "2.weight")


def test_a_loss_that_is_not_finite_is_told_once_until_it_is_finite_again(run, list_findings):
    results = [1.0, torch.tensor(math.nan), (math.nan, 1), {"loss": math.inf}, 0.5, math.inf]
    for result in results:
        assert run.compute(lambda value: value, result) is result
        run.log({})
    assert [(finding.kind, finding.step) for finding in list_findings()] == [
        ("non-finite", 2),
        ("non-finite", 6),
    ]


def test_a_bad_loss_is_one_finding_and_makes_the_watch_look_at_the_very_step(
    run, make_model, list_findings
):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.watch(model, optimizer, every=1000, on_nonfinite="continue")
    train(model, optimizer, 1, run)
    loss = run.compute(lambda: model(torch.full((2, 4), math.nan)).mean())
    loss.backward()
    optimizer.step()
    run.log({})
    (finding,) = list_findings()
    assert (finding.kind, finding.step) == ("nan-origin", 2)
    assert "watch/grad_norm" in run.sent[-1].values


@pytest.mark.parametrize("result", [None, "text", [], {}, object(), torch.zeros(3)])
def test_a_result_without_a_loss_is_handed_through(result, run, list_findings):
    assert run.compute(lambda: result) is result
    assert list_findings() == []


def test_compute_remembers_the_last_call_and_notes_the_step_of_an_error(run):
    def broken(x, *, y):
        raise KeyError("mine")

    run.log({}, step=6)
    with pytest.raises(KeyError, match="mine") as caught:
        run.compute(broken, 1, y=2)
    assert caught.value.__notes__ == ["tsx: raised in run.compute, at step 7"]
    assert run.last_call == (broken, (1,), {"y": 2}, 7)


def test_what_is_no_model_stops_nothing(run, list_findings):
    run.watch("a model")
    run.watch(torch.nn.Linear(2, 2), every=0)
    assert {finding.kind for finding in list_findings()} == {"detector-failed"}


def test_a_detector_that_fails_is_off_and_the_others_go_on(run, make_model, list_findings):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer, every=1)

    from tsx.diagnostics.detector import Detector

    class Broken(Detector):
        name = "broken"

        def before_step(self, look):
            raise ZeroDivisionError("inside")

    engine = run._watching._watches[0].engine
    engine.panel.host(Broken(engine.scene))
    train(model, optimizer, 2, run)
    (finding,) = list_findings()
    assert (finding.kind, finding.module) == ("detector-failed", "broken")
    assert finding.evidence == {"error": "ZeroDivisionError: inside"}
    assert len(values_of(run, "watch/grad_norm")) == 2


def test_steps_without_any_gradient_are_told(run, make_model, list_findings):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer, every=1)
    for _ in range(5):
        optimizer.step()
    (finding,) = list_findings()
    assert (finding.kind, finding.evidence["mechanism"]) == ("frozen-param", "no-gradient")


def test_accumulated_gradients_are_seen_once_a_step(run, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer, every=1)
    for _ in range(3):
        model(torch.randn(16, 4)).square().mean().backward()
        run.log({"loss": 1.0})
    optimizer.step()
    run.log({"loss": 1.0})
    assert [step for step, _ in values_of(run, "watch/grad_norm")] == [4]


def test_scaled_gradients_are_told_apart(run, make_model, list_findings):
    model = make_model()
    x = torch.randn(16, 4)
    model(x).square().mean().backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    run.watch(model, every=1)
    # A fused optimizer is handed scaled gradients and the scale; another one unscaled ones.
    for fused in (False, True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for factor in (1.0, math.inf):
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            run.log({})
    expected = [(1, pytest.approx(norm, rel=1e-4))]
    assert values_of(run, "watch/grad_norm") == expected
    (step, scaled), (_, overflow) = values_of(run, "watch/2/grad_norm")
    assert (step, scaled) == (3, pytest.approx(norm, rel=1e-4))
    assert not math.isfinite(overflow)
    assert list_findings() == []


def test_half_precision_norms_do_not_overflow(run, list_findings):
    model = torch.nn.Linear(100, 100).to(torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run.watch(model, optimizer, every=1)
    for p in model.parameters():
        p.grad = torch.full_like(p, 6e4)
    optimizer.step()
    run.log({})
    ((_, norm),) = values_of(run, "watch/grad_norm")
    assert norm == pytest.approx(6e4 * math.sqrt(10_100), rel=1e-2)
    assert list_findings() == []


def test_a_compiled_model_is_watched_under_its_own_names(run, make_model, list_findings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on import of its compiler
        model = make_model()
        compiled = torch.compile(model, backend="eager")
        optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
        run.watch(compiled, optimizer, every=1, on_nonfinite="continue")
        run.watch(model)

        def spoil(step):
            model[0].weight.grad[0, 0] = math.nan

        train(compiled, optimizer, 1, run, spoil)
    (finding,) = list_findings()
    assert finding.module == "0.weight"


def test_large_models_are_sampled(run, monkeypatch):
    monkeypatch.setattr("tsx.diagnostics.loop.updates.SAMPLE", 100)
    model = torch.nn.Linear(50, 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run.watch(model, optimizer, every=1)
    model.weight.grad = 0.5 * model.weight.detach().clone()
    optimizer.step()
    run.log({})
    assert values_of(run, "watch/update_ratio") == [(1, pytest.approx(0.5, rel=1e-5))]


def test_looks_are_spaced_by_what_they_cost(make_model):
    from tsx.diagnostics.pace import Pace

    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    pace = Pace(optimizer, "watch", None, 0.0)
    assert pace.is_due(0.0)
    pace.note(9.0, 0.0)  # the first look is slow and does not count
    assert pace.is_due(0.0)
    pace.note(0.001, 0.0)  # 1 ms: the next one a second later
    assert not pace.is_due(0.999)
    assert pace.is_due(1.001)
    pace.note(0.0001, 1.0)
    assert not pace.is_due(1.099)
    assert pace.is_due(1.101)
    pace.note(9.0, 1.2)
    pace.is_urged = True
    assert pace.is_due(1.2)
    assert not pace.is_due(1.2)
    device = Pace(optimizer, "watch", None, 1.0)
    device.note(0.0, 0.0)
    device.note(0.0001, 0.0)
    assert not device.is_due(0.99)
    assert not Pace(optimizer, "", 1, 0.0, is_ours=False).is_due(0.0)


def test_values_on_a_device_are_not_waited_for(run, monkeypatch):
    """A CPU stands in for the device: nothing is read before its time."""
    clock = [0.0]
    monkeypatch.setattr("tsx.recording.values.is_late", lambda tensor: True)
    run._lines.late._clock = lambda: clock[0]
    value = torch.tensor(0.5)
    run.log({"a": value, "b": torch.tensor(2.0), "host": 1.0, "n": torch.tensor(3)})
    value.fill_(9.0)  # what comes later does not change what was logged
    run.log({"host": 2.0})
    assert values_of(run, "a") == []
    assert values_of(run, "host") == [(1, 1.0), (2, 2.0)]
    clock[0] = 1.5
    run.log({"host": 3.0})
    assert values_of(run, "a") == [(1, 0.5)]
    assert values_of(run, "b") == [(1, 2.0)]
    assert values_of(run, "n") == [(1, 3.0)]
    run.log({"a": torch.tensor(7.0)})
    run.finish()
    assert values_of(run, "a") == [(1, 0.5), (4, 7.0)]


def test_gradients_on_a_device_are_judged_when_they_arrive(
    run, make_model, monkeypatch, list_findings
):
    monkeypatch.setattr("tsx.recording.values.is_late", lambda tensor: True)
    monkeypatch.setattr("tsx.recording.lines.is_late", lambda tensor: True)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run.watch(model, optimizer, every=1, on_nonfinite="continue")

    def spoil(step):
        if step == 2:
            model[2].weight.grad.fill_(math.nan)

    train(model, optimizer, 3, run, spoil)
    assert list_findings() == []
    run.finish()
    (finding,) = list_findings()
    assert (finding.kind, finding.step, finding.module) == ("non-finite", 2, "2.weight")
    assert [step for step, _ in values_of(run, "watch/grad_norm")] == [1, 2, 3]


def test_a_bounded_number_of_copies_waits(monkeypatch):
    from tsx.recording import late_values

    monkeypatch.setattr(late_values, "MAX_WAITING", 3)
    late, taken = late_values.LateValues(clock=lambda: 0.0), []
    for number in range(4):
        late.add(torch.tensor([float(number)]), taken.append)
    assert taken == [[0.0], [1.0], [2.0], [3.0]]
    assert not late.waiting


def test_a_cuda_copy_is_read_once_its_event_says_so(monkeypatch):
    from contextlib import nullcontext

    from tsx.recording import late_values

    class Event:
        arrived, waited = False, 0

        def record(self):
            """Stands behind the copy in the stream."""

        def query(self):
            return Event.arrived

        def synchronize(self):
            Event.waited += 1

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    late, taken = late_values.LateValues(), []
    for number in (1.0, 2.0):
        late.waiting.append(late_values._send(torch.tensor([number]), taken.append))
    late.read()
    assert (taken, Event.waited) == ([], 0)
    Event.arrived = True
    late.read()
    assert taken == [[1.0], [2.0]]
    late.waiting.append(late_values._send(torch.tensor([3.0]), taken.append))
    Event.arrived = False
    late.read(wait=True)
    assert taken[-1] == [3.0]


def test_a_dict_that_is_filled_again_is_shown_as_it_was_logged(run, make_model):
    from tsx.diagnostics.detector import Detector

    seen = []

    class Reader(Detector):
        name = "reader"

        def saw_values(self, values, step):
            seen.append((step, values["loss"]))

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer)
    engine = run._watching._watches[0].engine
    engine.panel.host(Reader(engine.scene))
    values = {}
    for step in range(1, 4):
        values["loss"] = float(step)  # before the step of the optimizer, which shows the line
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        run.log(values, step=step)
    run.finish()
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0)]
