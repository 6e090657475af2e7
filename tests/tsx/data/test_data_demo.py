"""The demo corpus: made once, the same every time, safe to make twice at once."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from tsx.config import DataConfig
from tsx.data import demo as demo_module
from tsx.data.catalog import list_entries
from tsx.data.corpus import open_corpus
from tsx.data.demo import ensure_demo
from tsx.data.series import MapPool, open_dataset
from tsx.errors import DataError

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    ensure_demo(home, 8)
    return home


def open_all(home, num_series=8):
    pool = MapPool()
    return {
        entry.name: open_dataset(entry.name, entry.path, pool)
        for entry in list_entries(ensure_demo(home, num_series))
    }


def read(dataset, series):
    return np.concatenate(list(dataset.iter_chunks(series)))


def test_domains_lengths_and_values(home):
    datasets = open_all(home)
    domains = {dataset.domain for dataset in datasets.values()}
    assert domains >= {"energy", "finance", "nature", "sales", "synthetic", "web"}
    for name, dataset in datasets.items():
        dataset.check_finite()
        assert dataset.num_series == 8, name
        assert 300 <= dataset.length_S.min() <= dataset.length_S.max() <= 6000, name
        assert all(read(dataset, series).std() > 0 for series in range(8)), name
    assert (read(datasets["web/visits"], 0) % 1 == 0).all()
    assert (read(datasets["sales/intermittent"], 0) == 0).mean() > 0.4


def test_layout_has_shards_and_moments(home):
    folder = ensure_demo(home, 64)
    assert len(list((folder / "energy" / "load").glob("data-*-of-*.bin"))) > 1
    assert '"mean"' in (folder / "nature" / "temperature" / "meta.json").read_text()
    assert not list(folder.parent.glob(".partial*"))


def test_volatility_clusters(home):
    """Squared returns of prices remember each other; returns do not."""
    datasets = open_all(home)
    dataset = datasets["finance/prices"]
    longest = int(dataset.length_S.argmax())
    returns = np.diff(np.log(read(dataset, longest)))
    squares = returns**2
    assert np.corrcoef(squares[:-1], squares[1:])[0, 1] > 0.1
    assert abs(np.corrcoef(returns[:-1], returns[1:])[0, 1]) < 0.1


def test_demand_has_a_day(home):
    load = read(open_all(home)["energy/load"], 0)
    assert np.corrcoef(load[:-24], load[24:])[0, 1] > np.corrcoef(load[:-17], load[17:])[0, 1]


def test_same_again_and_series_do_not_depend_on_their_number(home, tmp_path):
    first, again, more = open_all(home), open_all(tmp_path), open_all(tmp_path, 40)
    assert {name: one.fingerprint for name, one in first.items()} == {
        name: one.fingerprint for name, one in again.items()
    }
    for name, dataset in first.items():
        for series in (0, 7):
            assert np.array_equal(read(dataset, series), read(more[name], series)), name


def test_generated_once(home, monkeypatch):
    monkeypatch.setattr(demo_module, "_generate", None)
    assert ensure_demo(home, 8).name == f"v{demo_module.VERSION}-8"


def test_another_version_is_another_folder(tmp_path, monkeypatch):
    one = ensure_demo(tmp_path, 1)
    monkeypatch.setattr(demo_module, "VERSION", 99)
    two = ensure_demo(tmp_path, 1)
    assert one != two
    assert one.is_dir()
    assert two.is_dir()


def _make(home, results):
    results.put(open_corpus(DataConfig(demo_series=2), home=home).fingerprint)


def test_two_processes_at_once_get_one_corpus(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_make, args=(tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert found[0] == found[1]
    assert [path.name for path in (tmp_path / "data" / "demo").glob("[!.]*")] == ["v1-2"]


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(folder, num_series):
        (folder / "energy").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_module, "_generate", fail)
    with pytest.raises(DataError, match=r"cannot write the demo corpus.*No space left") as caught:
        ensure_demo(tmp_path, 4)
    assert "TSX_HOME" in caught.value.next_command
    assert [path.name for path in (tmp_path / "data" / "demo").iterdir()] == [".lock"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="cannot write the demo corpus"):
        ensure_demo(tmp_path, 4)


def test_damaged_demo_names_the_way_back(tmp_path):
    folder = ensure_demo(tmp_path, 2)
    next((folder / "web" / "visits").glob("*.bin")).unlink()
    with pytest.raises(DataError, match=r"web/visits.*missing") as caught:
        open_corpus(DataConfig(demo_series=2), home=tmp_path)
    assert caught.value.next_command == f"rm -r {folder}"
