"""From [data] to a corpus: source, selection, split, OOD apart, fingerprints, bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tsx.config import DataConfig, Source
from tsx.data import corpus as corpus_module
from tsx.data.corpus import open_corpus
from tsx.errors import DataError

pytestmark = pytest.mark.trainer

NAN = float("nan")


def waves(count, points, start=0):
    time = np.arange(points)
    return [np.sin(time / (3 + start + index)).tolist() for index in range(count)]


@pytest.fixture
def root(tmp_path, make_set):
    root = tmp_path / "corpus"
    make_set(root / "energy" / "load", waves(30, 50), shards=3)
    make_set(root / "finance" / "fx", waves(10, 40, start=40))
    make_set(root / "web" / "hits", waves(20, 30, start=80), dtype="float64")
    return root


def open_at(root, **keys):
    keys = {"context_length": 8, "stride": 8, "val_split": 0.1, **keys}
    return open_corpus(DataConfig(path=str(root), **keys), home=root.parent / "home")


def inputs(windows):
    """Return every window's input as a set of bytes."""
    batch = windows.get_batch(np.arange(len(windows)))
    return {row.tobytes() for row in batch.input_BC}


def test_whole_folder(root):
    corpus = open_at(root)
    assert corpus.source == str(root)
    assert not corpus.is_demo
    assert corpus.notice == f"data: {root}"
    assert corpus.train.domains == ("energy", "finance", "web")
    assert corpus.ood is None
    assert corpus.train.num_series + corpus.val.num_series == 60
    assert 1 <= corpus.val.num_series <= 15


def test_no_series_on_both_sides(root):
    corpus = open_at(root, val_split=0.4, ood_include=("finance",))
    sides = [inputs(corpus.train), inputs(corpus.val), inputs(corpus.ood)]
    whole = inputs(open_at(root, val_split=0.0).train)
    assert sides[0] | sides[1] | sides[2] == whole
    assert sum(len(side) for side in sides) == len(whole)


def test_split_knows_nothing_of_the_rest(root):
    alone = open_at(root, include=("energy",), val_split=0.4)
    beside = open_at(root, val_split=0.4)
    assert inputs(alone.val) <= inputs(beside.val)
    assert inputs(alone.train) <= inputs(beside.train)


def test_no_split(root):
    assert open_at(root, val_split=0.0).val is None


def test_include_and_exclude(root):
    assert open_at(root, include=("e*", "web/*")).train.domains == ("energy", "web")
    assert open_at(root, exclude=("energy", "*/fx")).train.domains == ("web",)


def test_left_out_data_set_is_not_even_opened(root):
    (root / "energy" / "load" / "meta.json").write_text("broken")
    assert open_at(root, exclude=("energy",)).train.domains == ("finance", "web")
    with pytest.raises(DataError, match="'energy/load'"):
        open_at(root)


@pytest.mark.parametrize("keys", [{"include": ("nature",)}, {"exclude": ("*",)}])
def test_selecting_nothing_lists_what_there_is(root, keys):
    with pytest.raises(DataError, match="energy/load, finance/fx, web/hits"):
        open_at(root, **keys)


def test_ood_by_glob(root):
    corpus = open_at(root, ood_include=("finance/*",))
    assert corpus.ood.domains == ("finance",)
    assert corpus.train.domains == ("energy", "web")
    assert corpus.overlap == ("finance/fx",)
    assert "finance/fx" in corpus.notice


@pytest.mark.parametrize(
    ("asked", "leaks"),
    [
        ({"ood_include": ("finance/*",)}, ()),
        ({"ood_include": ("finance/*",), "include": ("energy", "finance")}, ("finance/fx",)),
        ({"ood_path": "finance"}, ("finance/fx",)),
    ],
)
def test_dividing_a_folder_is_no_leak_but_asking_for_both_is(root, asked, leaks):
    if "ood_path" in asked:
        asked = {"ood_path": str(root / asked["ood_path"])}
    corpus = open_at(root, **asked)
    assert corpus.overlap == ("finance/fx",)
    assert corpus.leaks == leaks


def test_copy_of_an_ood_data_set_under_another_name_is_a_leak(root):
    shutil.copytree(root / "finance" / "fx", root / "web" / "copy")
    corpus = open_at(root, ood_include=("finance/*",))
    assert corpus.overlap == ("finance/fx", "web/copy")
    assert corpus.leaks == ("web/copy",)


def test_ood_that_was_not_selected_anyway_is_no_overlap(root):
    corpus = open_at(root, include=("energy",), ood_include=("finance",))
    assert corpus.ood.domains == ("finance",)
    assert corpus.overlap == ()


def test_ood_glob_without_match_names_both(root):
    shutil.rmtree(root / "finance")
    with pytest.raises(
        DataError, match=r"ood_include=\['finance/\*'\] selects none.*energy/load, web/hits"
    ):
        open_at(root, ood_include=("finance/*",))


@pytest.mark.parametrize("inside", ["finance", "finance/fx"])
def test_ood_path_inside_the_training_folder(root, inside):
    corpus = open_at(root, ood_path=str(root / inside))
    assert corpus.overlap == ("finance/fx",)
    assert corpus.train.domains == ("energy", "web")
    assert corpus.ood.num_series == 10


def test_ood_path_through_a_link(root):
    link = root.parent / "linked"
    link.symlink_to(root / "finance")
    assert open_at(root, ood_path=str(link)).overlap == ("finance/fx",)


def test_copy_of_the_ood_set_is_not_trained_on(root):
    copy = root.parent / "held" / "out"
    shutil.copytree(root / "finance" / "fx", copy)
    corpus = open_at(root, ood_path=str(copy))
    assert corpus.overlap == ("finance/fx",)
    assert not inputs(corpus.train) & inputs(corpus.ood)


def test_ood_elsewhere_leaves_training_alone(root, make_set):
    other = make_set(root.parent / "other" / "set", waves(3, 40, start=200))
    corpus = open_at(root, ood_path=str(other))
    assert corpus.overlap == ()
    assert corpus.ood.num_series == 3
    assert corpus.train.domains == ("energy", "finance", "web")


def test_everything_out_of_distribution(root):
    with pytest.raises(DataError, match="nothing to train on"):
        open_at(root, ood_include=("*",))


def test_copies_inside_the_training_folder_stay_on_one_side(root):
    shutil.copytree(root / "energy" / "load", root / "nature" / "again")
    corpus = open_at(root, val_split=0.4)
    assert not inputs(corpus.train) & inputs(corpus.val)


def test_fingerprints(root):
    corpus = open_at(root)
    assert open_at(root).fingerprint == corpus.fingerprint
    assert open_at(root, stride=1).fingerprint == corpus.fingerprint
    assert open_at(root, ood_include=("finance",)).fingerprint != corpus.fingerprint
    shard = root / "web" / "hits" / "data-1-of-1.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert open_at(root).fingerprint != corpus.fingerprint
    assert set(corpus.fingerprints["train"]) == {"energy/load", "finance/fx", "web/hits"}


def test_description_is_plain_json(root):
    corpus = open_at(root, ood_include=("finance",))
    described = json.loads(json.dumps(corpus.describe(), allow_nan=False))
    assert described["ood"]["domains"]["finance"]["series"] == 10
    assert described["train"]["windows"] == len(corpus.train)
    assert described["val"]["series"] == corpus.val.num_series
    assert described["overlap"] == ["finance/fx"]
    assert list(described["fingerprints"]["ood"]) == ["finance/fx"]


@pytest.mark.parametrize("ood", [(), ("web",)])
def test_nonfinite_shows_before_step_0(root, make_set, ood):
    make_set(root / "web" / "gaps", [[1.0, 2.0], [1.0, NAN, 3.0]])
    with pytest.raises(DataError, match="'web/gaps': series 1 is nan at point 1 of 3"):
        open_at(root, ood_include=ood)
    assert open_at(root, ood_include=ood, allow_nonfinite=True).train.num_series > 0


def test_nonfinite_in_a_large_corpus_shows_when_read(root, make_set, monkeypatch):
    make_set(root / "web" / "gaps", [[1.0, NAN, 3.0], [1.0, NAN, 3.0]])
    monkeypatch.setattr(corpus_module, "CHECKED_POINTS", 100)
    corpus = open_at(root, include=("web",), val_split=0.0)
    with pytest.raises(DataError, match="'web/gaps': series 0 is nan"):
        corpus.train.get_batch(np.arange(len(corpus.train)))


@pytest.mark.parametrize("series", [[[]], [[1.0]], [[1.0], [], [2.0]]])
def test_nothing_long_enough(tmp_path, make_set, series):
    folder = make_set(tmp_path / "corpus" / "a" / "b", series)
    with pytest.raises(DataError, match="no series of 2 points or more in a/b"):
        open_at(folder)


def test_a_patch_needs_a_point_to_follow(tmp_path, make_set):
    folder = make_set(tmp_path / "corpus" / "a" / "b", [[1.0] * 4, [2.0] * 5, [3.0] * 9])
    config = DataConfig(path=str(folder), context_length=8)
    assert open_corpus(config, home=tmp_path, patch_len=4).describe()["train"]["series"] == 1
    with pytest.raises(DataError, match="no series of 17 points or more"):
        open_corpus(config, home=tmp_path, patch_len=16)


def test_one_origin_stride_scores_the_same_windows_whatever_the_patch(tmp_path, make_set):
    series = [wave[: 3 + 2 * index] for index, wave in enumerate(waves(20, 60))]
    folder = make_set(tmp_path / "corpus" / "a" / "b", series)
    others = make_set(tmp_path / "others" / "c" / "d", series[:4])
    data = DataConfig(path=str(folder), ood_path=str(others), context_length=16, val_split=0.5)
    points, patches, plain = (
        open_corpus(data, home=tmp_path, patch_len=patch_len, origin_stride=stride)
        for patch_len, stride in ((1, 8), (8, None), (1, None))
    )
    for name in ("val", "ood"):
        one, other = getattr(points, name), getattr(patches, name)
        assert 0 < len(one) == len(other) < len(getattr(plain, name)), name
        got, expected = (windows.get_batch(np.arange(len(windows))) for windows in (one, other))
        assert np.array_equal(got.target_BC, expected.target_BC)
    assert len(points.train) == len(plain.train) > len(patches.train)


def test_single_series_has_no_validation(tmp_path, make_set):
    folder = make_set(tmp_path / "corpus" / "a" / "b", waves(1, 50))
    corpus = open_at(folder)
    assert corpus.val is None
    assert corpus.train.num_series == 1


def test_jsonl_as_path_as_member_and_as_ood(root):
    line = json.dumps({"sequence": waves(1, 30)[0]})
    (root / "web" / "log.jsonl").write_text(f"{line}\n{line}\n")
    (root.parent / "copy.jsonl").write_text(f"{line}\n{line}\n")
    alone = open_at(root / "web" / "log.jsonl")
    assert alone.describe()["train"]["domains"].keys() == {"web"}
    assert "web/log.jsonl" in open_at(root).fingerprints["train"]
    assert open_at(root, ood_path=str(root.parent / "copy.jsonl")).overlap == ("web/log.jsonl",)


@pytest.mark.parametrize("keys", [{"path": ""}, {"path": "x", "ood_path": ""}])
def test_empty_path(tmp_path, keys):
    with pytest.raises(DataError, match="is empty"):
        open_corpus(DataConfig(**keys), home=tmp_path)


def test_missing_path(tmp_path):
    with pytest.raises(DataError, match=r"no data at .*gone"):
        open_corpus(DataConfig(path=str(tmp_path / "gone")), home=tmp_path)


def test_auto_takes_time300b_where_it_is_on_disk(tmp_path, make_set):
    config = DataConfig(demo_series=1)
    before = open_corpus(config, home=tmp_path)
    place = tmp_path / "data" / "time300b"
    assert before.source == "demo"
    assert before.is_demo
    assert before.notice == f"data: demo corpus (Time-300B is not on disk at {place})"
    (place / "energy").mkdir(parents=True)
    assert open_corpus(config, home=tmp_path).is_demo
    make_set(place / "energy" / "load", waves(3, 50))
    after = open_corpus(config, home=tmp_path)
    assert after.source == "time300b"
    assert not after.is_demo
    assert after.notice == f"data: Time-300B at {place}"
    asked = open_corpus(DataConfig(source=Source.DEMO, demo_series=1), home=tmp_path)
    assert asked.notice == "data: demo corpus (data.source=demo)"


@pytest.mark.parametrize(
    ("ood", "flags"),
    [
        ((), "--partition-set train"),
        (("finance/*",), "--partition-set train,finance"),
        (("other/*", "finance/*"), "--partition-set train --partitions 'other/*,finance/*'"),
    ],
)
def test_time300b_asked_for_and_missing(tmp_path, ood, flags):
    with pytest.raises(DataError, match="Time-300B is not on disk at") as caught:
        open_corpus(DataConfig(source=Source.TIME300B, ood_include=ood), home=tmp_path)
    assert caught.value.next_command == f"tsx data download {flags}; or --data PATH"


def test_an_ood_part_of_time300b_that_is_missing_can_be_downloaded(tmp_path, make_set):
    make_set(tmp_path / "data" / "time300b" / "energy" / "load", waves(3, 50))
    config = DataConfig(source=Source.TIME300B, ood_include=("finance/*",))
    with pytest.raises(DataError, match="selects none") as caught:
        open_corpus(config, home=tmp_path)
    assert caught.value.next_command == "tsx data download --partitions 'finance/*'"


def test_demo_holds_finance_apart(tmp_path):
    corpus = open_corpus(DataConfig(demo_series=4, ood_include=("finance/*",)), home=tmp_path)
    assert corpus.ood.domains == ("finance",)
    assert "finance" not in corpus.train.domains
    assert "finance" not in corpus.val.domains


def test_real_series(real_corpus, tmp_path):
    config = DataConfig(path=str(real_corpus), ood_include=("finance",), context_length=512)
    corpus = open_corpus(config, home=tmp_path)
    assert corpus.train.num_series + corpus.val.num_series == 7 + 414
    assert corpus.train.num_points + corpus.val.num_points == 121_940 + 353_500
    assert corpus.ood.num_series == 8
    assert corpus.ood.num_points == 60_704
    values = np.fromfile(real_corpus / "energy/etth1/data-1-of-2.bin", "<f4")[:17420]
    expected = (values - values.mean()) / values.std()
    batch = corpus.train.get_batch(np.arange(34))
    np.testing.assert_allclose(batch.input_BC[0], expected[:512], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.target_BC[33], expected[16897:17409], rtol=1e-4, atol=1e-5)
    assert batch.target_mask_BC.all()
