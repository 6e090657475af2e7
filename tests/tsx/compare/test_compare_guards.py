"""What must be said before runs are compared."""

import dataclasses

import pytest

from tsx.compare.guards import is_per_origin, is_per_token, list_warnings, list_withheld
from tsx.config import decode

KEYS = [
    "train/loss",
    "train/toks_per_sec",
    "train/mfu",
    "val/loss",
    "val/pred",
    "val/aux",
    "val/mse_h8",
    "ood/mae",
]


def test_runs_of_one_task_need_no_warning(make_detail):
    assert list_warnings([make_detail(), make_detail(set_keys={"optim.lr": 1.0}, seed=3)]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_source": "time300b"}, "source demo | time300b"),
        ({"environment": {"data_fingerprint": "beef"}}, "fingerprint f00d | beef"),
        ({"set_keys": {"data.scaling": "max"}}, "data.scaling zero | max"),
        ({"set_keys": {"data.context_length": 4096}}, "data.context_length 512 | 4096"),
    ],
)
def test_other_data_is_said_in_one_line(make_detail, changes, said):
    warnings = list_warnings([make_detail(), make_detail(**changes)])
    assert len(warnings) == 1
    assert warnings[0].startswith("not the same data: ")
    assert said in warnings[0]


def test_a_run_that_never_saw_its_data_is_not_other_data(make_detail):
    unprepared = make_detail(data_source="", environment={"data_fingerprint": ""})
    assert list_warnings([make_detail(), unprepared]) == []


def test_smoke_against_full_names_the_smoke_run(make_detail):
    warnings = list_warnings([make_detail(), make_detail(name="tiny", smoke=True)])
    assert warnings == ["not the same size: tiny ran with --smoke, the others in full"]
    assert list_warnings([make_detail(smoke=True), make_detail(smoke=True)]) == []


@pytest.mark.parametrize(
    ("changes", "windows", "said"),
    [
        ({"train.batch_size": 64}, 1000, "64 | 128 of them"),
        ({"eval.max_batches": 0}, 1000, "64 | 1,000 of them"),
        ({"train.batch_size": 64, "eval.batch_size": 32}, 1000, ""),
        ({"train.batch_size": 64}, 50, ""),  # both score them all
        ({"train.batch_size": 64}, None, ""),
        ({"train.batch_size": 64}, "1000", ""),
    ],
)
def test_runs_that_score_other_windows_say_so(make_detail, changes, windows, said):
    facts = {"data": {"val": {"windows": windows}, "ood": None}}
    details = [
        make_detail(environment=facts),
        make_detail(environment=facts, set_keys=changes),
        make_detail(environment={}),
    ]
    warnings = list_warnings(details[:2])
    assert [said in warning for warning in warnings] == ([True] if said else [])
    assert list_warnings([details[0], details[2]]) == []


def test_other_tokens_are_said_with_what_to_compare_instead(make_detail):
    pointwise = make_detail(set_keys={"eval.origin_stride": 16})
    details = [pointwise, make_detail(set_keys={"model.patch_len": 16})]
    (warning,) = list_warnings(details)
    assert "model.patch_len 1 | 16" in warning
    assert "val/mse_h*" in warning
    assert list_withheld(details, KEYS) == [
        "train/loss",
        "train/toks_per_sec",
        "val/loss",
        "val/aux",
    ]


def test_other_tokens_at_other_origins_leave_no_error_to_compare(make_detail):
    details = [make_detail(), make_detail(set_keys={"model.patch_len": 16})]
    tokens, origins = list_warnings(details)
    assert "val/mse_h*" not in tokens
    assert "every 1 | 16 points" in origins
    assert origins.endswith("tsx run RECIPE --set eval.origin_stride=16")
    assert list_withheld(details, KEYS) == [key for key in KEYS if key != "train/mfu"]


def test_other_origins_of_one_model_are_another_task_too(make_detail):
    details = [make_detail(), make_detail(set_keys={"eval.origin_stride": 8})]
    (warning,) = list_warnings(details)
    assert warning.startswith("not the same origins: a forecast is scored every 1 | 8 points")
    assert list_withheld(details, KEYS) == ["val/loss", "val/pred", "val/mse_h8", "ood/mae"]


@pytest.mark.parametrize("patch_len", [1, 8])
def test_a_stride_that_says_what_the_default_does_is_no_difference(make_detail, patch_len):
    plain = {"model.patch_len": patch_len}
    details = [make_detail(set_keys=keys) for keys in (plain, plain | {"eval.origin_stride": 8})]
    assert bool(list_withheld(details, KEYS)) is (patch_len == 1)


@pytest.mark.parametrize(
    ("tasks", "fair"),
    [
        ([(1, None), (8, None)], 8),
        ([(1, 16), (8, None)], 16),
        ([(6, None), (8, None), (1, None)], 24),
        ([(1, 500), (32, None)], 32),  # the strides meet beyond the context, the patches do not
        ([(511, None), (512, None)], None),
    ],
)
def test_the_stride_it_names_is_one_that_every_run_takes(make_detail, tasks, fair):
    details = [
        make_detail(set_keys={"model.patch_len": patch_len, "eval.origin_stride": stride})
        for patch_len, stride in tasks
    ]
    said = list_warnings(details)[-1]
    assert said.startswith("not the same origins")
    named = said.partition("eval.origin_stride=")[2]
    assert named == (str(fair) if fair else "")
    for patch_len, _ in tasks if fair else []:
        context = 512 // patch_len * patch_len
        raw = {"model": {"patch_len": patch_len}, "data": {"context_length": context}}
        decode(raw | {"eval": {"origin_stride": int(named)}})


@pytest.mark.parametrize("broken", ["8", True, 0, -3, 1 << 40, 8.0, [8]])
def test_a_recorded_stride_that_is_none_is_not_used(make_detail, broken):
    details = [make_detail(set_keys={"eval.origin_stride": broken}), make_detail()]
    assert list_withheld(details, KEYS) == []
    odd = make_detail(set_keys={"eval.origin_stride": 8, "data.context_length": broken})
    assert "--set" not in list_warnings([odd, make_detail()])[-1]


def test_another_loss_is_said(make_detail):
    (warning,) = list_warnings([make_detail(), make_detail(set_keys={"model.huber_delta": 1.0})])
    assert warning == "not the same loss: model.huber_delta 2 | 1"


def test_an_empty_config_is_compared_without_failing(make_detail):
    bare = make_detail()
    bare.config.clear()
    assert any("data.scaling" in warning for warning in list_warnings([make_detail(), bare]))


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("train/loss", True),
        ("val/loss", True),
        ("ood/aux", True),
        ("train/toks_per_sec", True),
        ("val/pred", False),
        ("ood/mae", False),
        ("val/mse_h8", False),
        ("train/points_per_sec", False),
        ("train/mfu", False),
        ("router/layer0/aux", False),
    ],
)
def test_values_per_token_are_known(key, answer):
    assert is_per_token(key) is answer


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("val/loss", True),
        ("val/pred", True),
        ("ood/mae", True),
        ("val/mse_h8", True),
        ("ood/mae_h64", True),
        ("val/aux", False),
        ("train/loss", False),
        ("train/pred", False),
        ("router/entropy", False),
    ],
)
def test_values_over_scored_origins_are_known(key, answer):
    assert is_per_origin(key) is answer


def test_runs_without_a_metric_in_common_say_so(make_detail):
    details = [make_detail(metrics={"loss": [1.0]}), make_detail(metrics={"val_loss": [1.0]})]
    assert list_warnings(details)[0].startswith("no metric in common")
    assert not list_warnings([details[0], details[0]])


def test_runs_that_did_not_say_what_they_read_are_named(make_detail):
    silent = make_detail("bbbbbbbb", "mine", metrics={"loss": [1.0]}, data_source="")
    (warning,) = list_warnings([make_detail(metrics={"loss": [1.0]}), silent])
    assert warning.startswith("not known to be the same data: mine did not say what it is")


def test_other_programs_may_say_what_they_read_in_their_config(make_detail):
    def make(data):
        made = make_detail(metrics={"loss": [1.0]}, data_source="", environment={})
        return dataclasses.replace(made, config={"data": data}, environment={})

    assert not list_warnings([make("a.csv"), make("a.csv")])
    (warning,) = list_warnings([make("a.csv"), make("b.csv")])
    assert warning.startswith("not the same data: source a.csv | b.csv")
