"""Batches that come again on purpose, and checksums."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.faults.watched import WatchedLines
from tsx.diagnostics.data.checksums import measure_checksum

pytestmark = pytest.mark.trainer


def list_found(batches, *, score=None, **declared):
    """Return mechanism and severity of what comes again."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = WatchedLines()
    run.watch(model, optimizer, **declared)
    for step, (x, y) in enumerate(batches, 1):
        optimizer.zero_grad()
        run.compute(score or (lambda x, y: F.mse_loss(model(x), y)), x, y).backward()
        optimizer.step()
        run.log({"loss": 1.0}, step=step)
    run.close()
    found = [finding for finding in run.findings if finding.kind == "repeated-data"]
    return [(finding.evidence["mechanism"], finding.severity.value) for finding in found]


def rows(size=32):
    x = torch.randn(size, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :1]


def test_the_very_same_tensor_is_meant():
    assert list_found([rows()] * 12) == []


def test_a_loader_with_one_batch_may_begin_again():
    data = TensorDataset(*rows())
    whole = (batch for _ in range(12) for batch in DataLoader(data, batch_size=32))
    assert list_found(whole) == []


def test_equal_copies_without_a_known_source_are_a_remark():
    copies = ([part.clone() for part in rows()] for _ in range(12))
    assert list_found(copies) == [("iterator-restarted", "info")]


def test_a_fixed_batch_that_is_declared_is_silent():
    copies = ([part.clone() for part in rows()] for _ in range(12))
    assert list_found(copies, fixed_batch=True) == []


def test_several_updates_on_one_step_s_data_in_new_order_are_silent():
    def minibatches():
        for _ in range(4):
            x, y = torch.randn(32, 6), torch.randn(32, 1)
            for _ in range(3):
                order = torch.randperm(32)
                yield from ((x[order[i : i + 8]], y[order[i : i + 8]]) for i in range(0, 32, 8))

    assert list_found(minibatches()) == []


@pytest.mark.parametrize("is_forked", [False, True])
def test_noise_of_a_seed_in_the_loss_is_told_unless_the_generator_is_kept_apart(is_forked):
    projection = nn.Linear(6, 1)

    def score(x, y):
        with torch.random.fork_rng(devices=[]) if is_forked else nullcontext():
            torch.manual_seed(0)
            noise = torch.randn_like(x)
        return F.mse_loss(projection(x + noise), y)

    batches = [(torch.randn(8, 6), torch.randn(8, 1)) for _ in range(12)]
    found = [mechanism for mechanism, _ in list_found(batches, score=score)]
    assert found == ([] if is_forked else ["reseeded"])


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64),
        *(torch.int64, torch.uint8, torch.bool),
    ],
)
def test_a_checksum_tells_tensors_apart(dtype):
    x = (100 * torch.rand(40, 50)).to(dtype)
    other = x.clone()
    other.view(-1)[0] = not x.view(-1)[0] if dtype is torch.bool else x.view(-1)[0] + 3
    assert measure_checksum(x) == measure_checksum(x.clone())
    assert measure_checksum(x) == measure_checksum(x.t().contiguous().t())
    assert measure_checksum(x) != measure_checksum(other)


@pytest.mark.parametrize(
    "odd", [torch.zeros(0), torch.eye(3).to_sparse(), torch.empty(3, device="meta")]
)
def test_what_has_no_plain_bits_has_no_checksum(odd):
    assert measure_checksum(odd) is None
