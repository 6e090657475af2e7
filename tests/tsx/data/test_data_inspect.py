"""An inspection counts what training would meet, and goes on past what cannot be read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tsx.config import DataConfig, RunConfig, TrainConfig
from tsx.data.corpus import open_corpus
from tsx.data.inspect import inspect_path
from tsx.data.preview import count_shift, preview_batch
from tsx.data.stream import BatchStream
from tsx.data.windows import Batch
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


@pytest.fixture
def inspect(tmp_path):
    """Return a function that inspects this test's corpus."""

    def look(**keys):
        watched = []
        found = inspect_path(
            tmp_path / "corpus",
            DataConfig(**{"context_length": 8, "stride": 4, **keys}),
            home=tmp_path / "home",
            watch=lambda share, name: watched.append((share, name)),
        )
        shares = [share for share, _ in watched]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1
        return found

    return look


def waves(count, points):
    return [np.sin(np.arange(points) / (3 + index)).tolist() for index in range(count)]


@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 8), (8, 30), (100, 100), (1, 1)])
def test_windows_and_padding_are_those_of_a_run(tmp_path, make_set, inspect, context, stride):
    lengths = [1, 2, 5, 8, 9, 10, 13, 40]
    make_set(tmp_path / "corpus" / "a" / "b", [waves(1, length)[0] for length in lengths])
    (report,) = inspect(context_length=context, stride=stride).datasets
    config = DataConfig(
        path=str(tmp_path / "corpus"), context_length=context, stride=stride, val_split=0.0
    )
    windows = open_corpus(config, home=tmp_path / "home").train
    batch = windows.get_batch(np.arange(len(windows)))
    assert report.windows == len(windows)
    assert report.padding_share == pytest.approx(1 - batch.target_mask_BC.mean())
    assert (report.too_short, report.shortest, report.longest) == (1, 1, 40)
    used = set()
    for origin in windows.list_origins(np.arange(len(windows))):
        end = min(origin.start + context + 1, lengths[origin.series])
        used |= {(origin.series, point) for point in range(origin.start, end)}
    assert report.unused_points == sum(lengths) - 1 - len(used)


def test_one_report_for_each_data_set_of_any_format(tmp_path, make_set, inspect):
    make_set(tmp_path / "corpus" / "energy" / "load", waves(3, 20))
    (tmp_path / "corpus" / "web").mkdir()
    (tmp_path / "corpus" / "web" / "hits.jsonl").write_text("[1, 2, 3]\n[4]\n")
    found = inspect()
    assert [(r.name, r.domain, r.series, r.points) for r in found.datasets] == [
        ("energy/load", "energy", 3, 60),
        ("web/hits.jsonl", "web", 2, 4),
    ]
    assert found.faults == ()
    assert [report.name for report in inspect(include=("web",)).datasets] == ["web/hits.jsonl"]


def test_a_broken_data_set_does_not_hide_the_others(tmp_path, make_set, inspect):
    make_set(tmp_path / "corpus" / "a" / "good", waves(3, 20))
    broken = make_set(tmp_path / "corpus" / "a" / "broken", waves(3, 20))
    with (broken / "data-1-of-1.bin").open("r+b") as shard:
        shard.truncate(100)
    (tmp_path / "corpus" / "a" / "table.csv").write_text("a,b\n1,2\n3,x\n")
    found = inspect()
    assert [report.name for report in found.datasets] == ["a/good"]
    assert [fault.dataset for fault in found.faults] == ["a/broken", "a/table.csv"]
    assert "truncated: 100 bytes, expected 240" in found.faults[0].message
    assert "'x' in row 3" in found.faults[1].message


def test_points_that_are_not_finite_are_a_fault_unless_allowed(tmp_path, inspect):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.csv").write_text("day,x\nm,1\nt,\nw,2\n")
    (fault,) = inspect().faults
    assert "series 0 'x' is nan at point 1 of 3" in fault.message
    assert "--allow-nonfinite" in fault.next_command
    allowed = inspect(allow_nonfinite=True)
    assert allowed.faults == ()
    assert (allowed.datasets[0].nonfinite, allowed.datasets[0].nonfinite_series) == (1, 1)


def test_oddities_are_named_and_drawn_first(tmp_path, inspect):
    (tmp_path / "corpus").mkdir()
    series = [[float(i % 5) for i in range(50)] for _ in range(40)]
    series[7] = [3.0] * 50
    series[11][4] = -1e30
    (tmp_path / "corpus" / "a.json").write_text(json.dumps(series))
    (report,) = inspect().datasets
    assert (report.constant, report.constant_named) == (1, ("series 7",))
    assert (report.huge, report.largest) == (1, 1e30)
    assert {sample.label for sample in report.samples} >= {"series 7", "series 11"}
    assert all(len(sample.means) == 50 for sample in report.samples)


def test_samples_are_means_of_equal_parts(tmp_path, inspect):
    (tmp_path / "corpus").mkdir()
    values = np.repeat(np.arange(60.0), 100)
    values[250] = np.nan
    np.save(tmp_path / "corpus" / "a.npy", values)
    (sample,) = inspect(allow_nonfinite=True).datasets[0].samples
    expected = np.arange(60.0)
    expected[2] = np.nan
    np.testing.assert_array_equal(sample.means, expected)


def test_nothing_to_train_on_is_a_fault(tmp_path, make_set, inspect):
    make_set(tmp_path / "corpus" / "a" / "b", [[1], [2]])
    (fault,) = inspect().faults
    assert "no series of 2 points or more" in fault.message


def test_no_series_at_all(tmp_path, inspect):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.json").write_text("[]")
    found = inspect()
    assert (found.datasets[0].series, found.datasets[0].samples) == (0, ())
    assert found.faults


def test_nothing_there_is_an_error(inspect):
    with pytest.raises(DataError, match="no such file or folder"):
        inspect()


def test_a_preview_is_the_batch_of_the_run(tmp_path, make_set):
    make_set(tmp_path / "corpus" / "a" / "b", waves(30, 50))
    config = RunConfig(
        data=DataConfig(path=str(tmp_path / "corpus"), context_length=8, stride=4),
        train=TrainConfig(batch_size=5, seed=3),
    )
    preview = preview_batch(config, 2, home=tmp_path / "home")
    windows = open_corpus(config.data, home=tmp_path / "home").train
    stream = BatchStream(windows, batch_size=5, seed=3)
    batch = [stream.next_batch() for _ in range(3)][2]
    assert np.array_equal(preview.batch.input_BC, batch.input_BC)
    assert np.array_equal(preview.batch.target_BC, batch.target_BC)
    assert (preview.num_compared, preview.num_unequal) == (5 * 7, 0)
    assert [(o.series, o.start) for o in preview.origins] == [
        (o.series, o.start) for o in windows.list_origins(stream.get_indices(2))
    ]


def test_a_wrong_shift_is_seen():
    points = np.arange(10, dtype=np.float32)[None]
    known = np.ones((1, 8), bool)
    right = Batch(points[:, :8], points[:, 1:9], known, known)
    assert count_shift(right) == (7, 0)
    by_two = Batch(points[:, :8], points[:, 2:10], known, known)
    assert count_shift(by_two) == (7, 7)
    hidden = known.copy()
    hidden[0, 3] = False
    assert count_shift(Batch(points[:, :8], points[:, 1:9], hidden, known)) == (6, 1)
