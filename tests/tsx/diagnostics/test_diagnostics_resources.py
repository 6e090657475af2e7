"""Time and memory that are lost: what the plants do not show."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from registry.events import Severity
from tsx.diagnostics.detector import Call, Declared, Scene
from tsx.diagnostics.reports import Reports
from tsx.diagnostics.resources.memory import KeptGraphs, OutOfMemory, read_wanted
from tsx.diagnostics.resources.pauses import WINDOW, Pauses
from tsx.diagnostics.resources.reads import Reads
from tsx.diagnostics.resources.waste import find_rebuilding, read_valid_share

pytestmark = pytest.mark.trainer


class Voice:
    step = 0

    def __init__(self):
        self.held = {}


@pytest.fixture
def scene():
    """Return the scene of a tiny model; its reports are in `scene.found`."""
    found = []
    model = nn.Linear(2, 1)
    made = Scene(model, Declared(), Voice(), Reports(found.append))
    return made, found


def make_call(*args, index=1, looked=True):
    return Call(index, index, lambda *a: None, args, {}, is_looked=looked)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def pass_steps(detector, clock, pauses, *, call_s=0.01):
    detector._places["loader.py:3"] = 1  # where a sample was taken
    for index, pause in enumerate(pauses, 1):
        clock.now += pause
        call = make_call(index=index)
        call.entered_s = clock.now
        detector.before_call(call)
        call.began_s, clock.now = clock.now, clock.now + call_s
        call.ended_s = clock.now
        detector.after_call(call)
        clock.now += 2 * call_s
        detector.end_step(None, index)


def test_a_step_that_waits_is_told_and_one_that_does_not_is_not(scene):
    made, found = scene
    clock = Clock()
    pass_steps(Pauses(made, clock), clock, [0.03] * 30)  # as long as the step itself
    made.reports.flush()
    assert found == []
    pass_steps(Pauses(made, clock), clock, [0.3] * 6)
    made.reports.flush()
    (finding,) = found
    assert finding.evidence["mechanism"] == "data-bound"
    assert finding.evidence["share_of_the_time"] == pytest.approx(0.909, abs=0.01)


def test_an_evaluation_now_and_then_is_no_wait(scene):
    made, found = scene
    clock = Clock()
    pass_steps(Pauses(made, clock), clock, [5.0 if n % 10 == 0 else 0.001 for n in range(100)])
    made.reports.flush()
    assert found == []


def test_pauses_that_grow_are_told_once(scene):
    made, found = scene
    clock = Clock()
    pass_steps(Pauses(made, clock), clock, [0.004 + 1e-4 * n for n in range(4 * WINDOW)])
    made.reports.flush()
    (finding,) = found
    assert finding.evidence["mechanism"] == "slower-over-time"
    assert finding.evidence["now_ms"] > 2 * finding.evidence["at_first_ms"]


def test_methods_are_put_back(scene):
    made, _ = scene
    before = torch.Tensor.item, DataLoader.__iter__
    reads = Reads(made)
    reads.begin_look(1)
    assert torch.ones(1).item() == 1.0
    assert torch.Tensor.item is not before[0]
    reads.end_step(None, 1)
    assert (torch.Tensor.item, DataLoader.__iter__) == before
    assert "item" not in vars(torch.Tensor)
    reads.begin_look(2)
    reads.close(is_whole=False)
    assert (torch.Tensor.item, DataLoader.__iter__) == before


@pytest.mark.parametrize(("batch_size", "told"), [(2, True), (8, False)])
def test_a_loader_of_one_batch_may_begin_each_step(scene, batch_size, told):
    made, found = scene
    reads, loader = Reads(made), DataLoader(torch.arange(8), batch_size=batch_size)
    for step in range(1, 6):
        reads.begin_look(step)
        next(iter(loader))
        reads.before_call(make_call(index=step))
        reads.end_step(None, step)
    made.reports.flush()
    assert bool(found) == told


def test_graphs_of_one_loss_that_stays_alive_are_no_growth(scene):
    made, found = scene
    detector = KeptGraphs(made)
    for step in range(1, 10):
        detector.begin_look(step)
        detector.before_call(make_call(index=step))
        loss = made.model(torch.ones(3, 2)).sum()  # noqa: F841  alive until the next one
    made.reports.flush()
    assert found == []


@pytest.mark.parametrize(("scan_s", "told"), [(0.001, True), (10.0, False)])
def test_a_sum_of_losses_grows_as_one_graph_unless_too_long_to_look_for(scene, scan_s, told):
    made, found = scene
    gc.collect()
    times = itertools.count(0.0, scan_s)
    detector, total = KeptGraphs(made, lambda: next(times)), 0.0
    for step in range(1, 10):
        detector.begin_look(step)
        detector.before_call(make_call(index=step))
        total = total + made.model(torch.ones(3, 2)).sum()
    made.reports.flush()
    assert [finding.evidence["mechanism"] for finding in found] == ["graph-kept"] * told


def test_the_batch_that_fits_is_told_of_a_device(scene):
    made, found = scene
    text = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB "
        "of which 5.00 GiB is free."
    )
    OutOfMemory(made).raised(make_call(torch.ones(32, 2)), torch.OutOfMemoryError(text))
    made.reports.flush()
    (finding,) = found
    assert (finding.kind, finding.severity) == ("oom", Severity.ERROR)
    assert finding.evidence["mechanism"] == "batch-too-large"
    assert finding.evidence["wanted_gib"] == 20.0
    assert (finding.evidence["batch"], finding.evidence["batch_that_fits"]) == (32, 8)


def test_another_error_is_none_of_memory(scene):
    made, found = scene
    OutOfMemory(made).raised(make_call(), RuntimeError("shape '[2]' is invalid"))
    OutOfMemory(made).raised(make_call(), ValueError("alloc"))
    made.reports.flush()
    assert found == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("tried to allocate 8745790485919232 bytes. Error code 12", 8745790485919232),
        ("Tried to allocate 1.50 MiB", 1.5 * 2**20),
        ("std::bad_alloc", 0.0),
    ],
)
def test_what_an_allocator_was_asked_for_is_read(text, wanted):
    assert read_wanted(text) == wanted


def test_only_a_mask_of_padding_has_a_valid_share():
    right = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert read_valid_share(right) == 0.5
    assert read_valid_share(right.bool().flip(1)) == 0.5
    assert read_valid_share(right.float()[..., None]) == 0.5
    for other in (
        torch.eye(4),
        torch.rand(3, 4),
        torch.ones(3, 4),
        torch.ones(4),
        torch.zeros(0, 4),
        torch.tensor([[1.0, float("nan")], [1.0, 0.0]]),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.ones(2, 2, device="meta"),
    ):
        assert read_valid_share(other) is None


def test_a_line_that_rebuilds_nothing_is_not_found():
    assert find_rebuilding(nn.BatchNorm1d(2), "running_mean") == ""
