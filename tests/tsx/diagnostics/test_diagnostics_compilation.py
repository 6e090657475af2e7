"""What torch says of its compilations, read without compiling anything."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from registry.events import Severity
from tsx.diagnostics.detector import Declared, Scene
from tsx.diagnostics.reports import Reports
from tsx.diagnostics.resources.compilation import Compilation
from tsx.diagnostics.resources.compiled_lines import Frame, find_assignment, find_use

pytestmark = pytest.mark.trainer

LIMIT = (
    "torch._dynamo hit config.%s (%s)\n   function: %s\n   last reason: %s\nTo log all "
    "recompilation reasons, use TORCH_LOGS"
)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(2))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if x.shape[0] != len(self.table):
            self.table = torch.zeros(x.shape[0])  # assigned here
        return x * self.calls  # used here


class Voice:
    step = 3

    def __init__(self):
        self.held = {}


@pytest.fixture
def watch():
    """Return a detector of a model, and the findings that it reports."""
    made = []

    def make(model):
        found = []
        reports = Reports(found.append)
        scene = Scene(model, Declared(), Voice(), reports)
        detector = Compilation(scene)
        made.append(detector)
        return detector, reports, found

    yield make
    for detector in made:
        detector.close(is_whole=True)


def find_own_line(text):
    with open(__file__, encoding="utf-8") as file:
        return next(n for n, line in enumerate(file, 1) if line.rstrip().endswith(text))


def test_a_limit_that_torch_logs_is_told_once(watch):
    detector, reports, found = watch(Table())
    line = Table.forward.__code__.co_firstlineno
    logger = logging.getLogger("torch._dynamo.convert_frame")
    for _ in range(3):
        reason = "0/7: tensor 'x' size mismatch at index 0. expected 3, actual 4"
        name = f"'forward' ({__file__}:{line})"
        values = ("recompile_limit", 8, name, reason)
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, LIMIT, values, None)
        detector._limits.emit(record)
    torch._dynamo.config  # noqa: B018  the compiler is loaded
    detector.end_step(None, 4)
    reports.flush()
    (finding,) = found
    assert finding.kind == "recompile-limit"
    assert finding.evidence["limit"] == 8
    assert finding.evidence["mechanism"] == "shape"
    assert "expected 3, actual 4" in finding.evidence["reason"]


def test_what_else_torch_logs_is_left_alone(watch):
    detector, reports, found = watch(Table())
    logging.getLogger("torch._dynamo.convert_frame").handle(
        logging.LogRecord("torch", logging.WARNING, "", 0, "%d percent of %s", (3, "it"), None)
    )
    detector.end_step(None, 1)
    reports.flush()
    assert found == []


def test_graphs_that_cuda_leaves_out_are_an_info_on_a_cpu(watch, monkeypatch):
    monkeypatch.setitem(torch._dynamo.utils.counters["inductor"], "cudagraph_skips", 3)
    detector, reports, found = watch(Table())  # what was there before is another program's
    monkeypatch.setitem(torch._dynamo.utils.counters["inductor"], "cudagraph_skips", 5)
    detector.close(is_whole=True)
    reports.flush()
    (finding,) = found
    assert (finding.kind, finding.severity) == ("cudagraph", Severity.INFO)
    assert finding.evidence == {"mechanism": "no-device", "skipped": 2}


def test_the_line_that_gives_another_buffer_is_found():
    assert find_assignment(Table(), "table").endswith(f":{find_own_line('# assigned here')}")
    assert find_assignment(Table(), "nothing") == ""
    assert find_assignment(nn.BatchNorm1d(2), "running_mean") == ""


def test_the_line_that_uses_a_counter_is_found_not_its_increment():
    frame = Frame(__file__, Table.forward.__code__.co_firstlineno, "forward")
    found = find_use(frame, "self.calls == 1  # self.calls += 1  # test.py:3 in forward")
    assert found.endswith(f":{find_own_line('# used here')}")
    assert find_use(frame, "x == 1 # model.py:7 in forward") == "model.py:7"
    assert find_use(frame, "no line") == ""


def test_the_compiler_is_not_loaded_for_it():
    program = (
        "import sys, torch\n"
        "from tsx.diagnostics.resources.compilation import Compilation\n"
        "from tsx.diagnostics.detector import Declared, Scene\n"
        "from tsx.diagnostics.reports import Reports\n"
        "voice = type('Voice', (), {'step': 0, 'held': {}})()\n"
        "scene = Scene(torch.nn.Linear(1, 1), Declared(), voice, Reports(print))\n"
        "detector = Compilation(scene)\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "detector.begin_look(1); detector.end_step(None, 1); detector.close(is_whole=True)\n"
        "assert ('torch._dynamo' in sys.modules) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
