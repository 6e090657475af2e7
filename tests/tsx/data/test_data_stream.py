"""The permutation is a bijection; the stream drops nothing, repeats nothing and resumes exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tsx.data.shuffle import hash_name, mix, permute
from tsx.data.stream import BatchStream, evaluation_indices
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


class Echo:
    """Windows whose batch is the numbers that were asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_batch(self, indices):
        return indices.tolist()


def order(size, *, seed=0, epoch=0):
    return permute(np.arange(size), np.full(size, epoch), size=size, seed=seed)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 99, 100, 101, 1000, 4096, 100_003])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_permutation_is_a_bijection(size, seed):
    for epoch in (0, 1, 10**6):
        assert np.array_equal(np.sort(order(size, seed=seed, epoch=epoch)), np.arange(size))


def test_permutation_of_a_huge_set_needs_no_memory():
    size = 2**50 + 7
    position = np.array([0, 1, 2**40, size - 1])
    found = permute(position, np.zeros(4, np.int64), size=size, seed=5)
    assert found.min() >= 0
    assert found.max() < size
    assert len(set(found.tolist())) == 4


def test_orders_differ_by_seed_and_epoch_and_are_not_the_identity():
    orders = [order(1000), order(1000, seed=1), order(1000, epoch=1), np.arange(1000)]
    for index, one in enumerate(orders):
        for other in orders[index + 1 :]:
            assert (one == other).sum() < 12  # one is expected


def test_permutation_looks_random():
    """Each place goes everywhere alike, and neighbours part."""
    size, epochs = 16, 4000
    table = np.array([order(size, epoch=epoch) for epoch in range(epochs)])
    counts = np.array([np.bincount(table[:, place], minlength=size) for place in range(size)])
    chi_square = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
    assert chi_square < 330  # 225 degrees of freedom: mean 225, five standard deviations
    large = order(10_000).astype(float)
    assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000.0), large)[0, 1]) < 0.05


def test_order_is_fixed_for_ever():
    """Checkpoints of earlier versions rely on it."""
    assert order(10, seed=7, epoch=3).tolist() == [5, 6, 0, 2, 4, 9, 1, 7, 3, 8]
    assert mix(np.array([0, 1], np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]
    assert hash_name("energy/etth1") == 10086366816045434644


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (3, 8), (1, 5), (64, 64), (7, 1)])
def test_every_epoch_has_every_window_once(size, batch_size):
    stream = BatchStream(Echo(size), batch_size=batch_size, seed=3)
    flat = [index for _ in range(5 * size) for index in stream.next_batch()]
    assert len(flat) == 5 * size * batch_size
    for start in range(0, len(flat) - size + 1, size):
        assert sorted(flat[start : start + size]) == list(range(size))


@pytest.mark.parametrize("fixed_batches", [0, 3])
@pytest.mark.parametrize("stop", [0, 1, 7, 13])
def test_resumed_stream_goes_on_exactly(stop, fixed_batches):
    def make():
        return BatchStream(Echo(29), batch_size=4, seed=9, fixed_batches=fixed_batches)

    whole = make()
    expected = [whole.next_batch() for _ in range(20)]
    first = make()
    begun = [first.next_batch() for _ in range(stop)]
    state = json.loads(json.dumps(first.state_dict()))
    assert len(json.dumps(state)) < 200
    second = make()
    second.load_state_dict(state)
    assert begun + [second.next_batch() for _ in range(20 - stop)] == expected


def test_fixed_batches_repeat_the_first():
    fixed = BatchStream(Echo(50), batch_size=4, seed=1, fixed_batches=2)
    free = BatchStream(Echo(50), batch_size=4, seed=1)
    first = [free.next_batch() for _ in range(2)]
    assert [fixed.next_batch() for _ in range(6)] == first * 3


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"num_windows": 51}, {"batch_size": 8}, {"fixed_batches": 1}],
)
def test_state_of_another_stream_is_refused(change):
    stream = BatchStream(Echo(50), batch_size=4, seed=1)
    with pytest.raises(DataError, match=f"has {next(iter(change))}="):
        stream.load_state_dict({**stream.state_dict(), **change})


@pytest.mark.parametrize("position", [-1, 1.5, "3", None, True])
def test_state_without_a_position_is_refused(position):
    stream = BatchStream(Echo(50), batch_size=4, seed=1)
    with pytest.raises(DataError, match="expected a count of batches"):
        stream.load_state_dict({**stream.state_dict(), "position": position})


def test_empty_set_is_refused():
    with pytest.raises(DataError, match="no window"):
        BatchStream(Echo(0), batch_size=4, seed=1)


@pytest.mark.parametrize("size", [1, 5, 31, 32, 33, 1000])
@pytest.mark.parametrize("max_batches", [0, 1, 2, 10_000])
def test_evaluation_takes_each_window_at_most_once(size, max_batches):
    batches = list(evaluation_indices(size, 32, max_batches))
    flat = np.concatenate(batches).tolist()
    assert flat == sorted(set(flat))
    assert min(flat) >= 0
    assert max(flat) < size
    assert len(flat) == (min(size, 32 * max_batches) if max_batches else size)
    assert all(len(batch) == 32 for batch in batches[:-1])


def test_few_evaluation_batches_reach_over_the_whole_set():
    flat = np.concatenate(list(evaluation_indices(100_000, 32, 2)))
    assert np.diff(flat).max() - np.diff(flat).min() <= 1
    assert flat[0] < 2000
    assert flat[-1] > 98_000
