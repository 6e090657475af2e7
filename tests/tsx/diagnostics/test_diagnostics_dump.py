"""What is kept of a step comes back as it was, or is refused."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from tsx.diagnostics.nonfinite.dump import (
    BATCH,
    FACTS,
    WEIGHTS,
    DumpDamagedError,
    DumpFacts,
    DumpFolder,
    list_weights,
    load_dump,
)
from tsx.diagnostics.nonfinite.packing import LeftOut, Packer, unpack
from tsx.diagnostics.tracing.replay import Rewinder
from tsx.errors import ConfigError

pytestmark = pytest.mark.trainer


class Tied(torch.nn.Module):
    """An embedding that is its own head, and statistics that run."""

    def __init__(self, width=4):
        super().__init__()
        self.embedding = torch.nn.Embedding(7, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.head = torch.nn.Linear(width, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, token_B):
        hidden_BD = torch.nn.functional.dropout(self.norm(self.embedding(token_B)))
        return self.head(hidden_BD).logsumexp(-1).mean()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def kept(model, tmp_path):
    """Return (model, folder of a dump, its loss): a forward pass was kept."""
    token_B = torch.arange(5)
    model(token_B)
    moment = Rewinder(model).take()
    loss = float(model(token_B).detach())
    packer = Packer()
    facts = DumpFacts(step=3, source="loop", args=[packer.pack(token_B, "args.0")])
    path, size = DumpFolder(tmp_path).write(facts, packer, moment, list_weights(model))
    assert (path, size > 0) == ("dumps/step-00000003", True)
    return model, tmp_path / path, loss


def test_the_call_gives_the_same_loss_again(kept):
    _, path, loss = kept
    other, dump = Tied(), load_dump(path)
    dump.restore(other)
    again = [random.random(), np.random.random()]
    dump.restore(other)
    assert [random.random(), np.random.random()] == again  # the generators go back too
    dump.restore(other)
    assert float(other(*dump.args).detach()) == loss
    assert other.head.weight is other.embedding.weight


def test_weights_of_another_shape_or_name_are_refused(kept):
    _, path, _ = kept
    dump = load_dump(path)
    with pytest.raises(ConfigError, match=r"embedding.weight is \[7, 4\], expected \[7, 8\]"):
        dump.restore(Tied(8))
    with pytest.raises(ConfigError, match="weight is not there"):
        dump.check_fits(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", [FACTS, BATCH, WEIGHTS])
@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100, b"{}"])
def test_a_damaged_file_is_named(kept, name, content):
    model, path, _ = kept
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    with pytest.raises(DumpDamagedError, match=name):
        load_dump(path).restore(model)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9},
        {"args": [{"tensor": "nowhere"}]},
        {"args": [{"value": {}}]},
        {"args": ["x"]},
        {"python": [3, ["x"], None]},
        {"python": [1]},
        {"numpy": ["MT19937", [1], 2]},
        {"cuda_devices": 2},
        {"step": "x"},
    ],
)
def test_facts_that_do_not_hold_are_refused(kept, change):
    model, path, _ = kept
    facts = json.loads((path / FACTS).read_text()) | change
    (path / FACTS).write_text(json.dumps(facts))
    with pytest.raises(DumpDamagedError):
        load_dump(path).restore(model)


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("tsx.diagnostics.nonfinite.dump.shutil.disk_usage", lambda path: usage)
    moment, folder = Rewinder(model).take(), DumpFolder(tmp_path)
    with pytest.raises(OSError, match="no room"):
        folder.write(DumpFacts(step=1, source="loop"), Packer(), moment, list_weights(model))
    assert folder.list_steps() == []
    assert not list(tmp_path.rglob("*.safetensors"))


def test_arguments_come_back_and_others_are_named():
    packer = Packer(max_bytes=100)
    given = {
        "x": torch.ones(2),
        "rest": [1, 2.5, math.inf, None, True, "a", (torch.zeros(1),)],
        "large": torch.zeros(1000),
        "object": object(),
        "keys": {1: 2},
        "text": "\ud800",
        "whole": 2**70,
        "sparse": torch.eye(2).to_sparse(),
    }
    node = json.loads(json.dumps(packer.pack(given, "args.0")))
    found = unpack(node, packer.tensors)
    assert torch.equal(found["x"], given["x"])
    assert found["rest"][:6] == given["rest"][:6]
    assert isinstance(found["rest"][6], tuple)
    for name in ("large", "object", "keys", "text", "whole", "sparse"):
        assert isinstance(found[name], LeftOut), name
        assert any(line.startswith(f"args.0.{name}: ") for line in packer.left_out)


def test_what_is_nested_without_end_is_left_out():
    nest = []
    nest.append(nest)
    packer = Packer()
    json.dumps(packer.pack(nest, "args.0"))
    assert len(packer.left_out) == 1
