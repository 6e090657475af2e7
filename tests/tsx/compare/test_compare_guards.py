"""What must be said before runs are compared."""

import pytest

from tsx.compare.guards import differs_in_tokens, is_per_token, list_warnings


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


def test_other_tokens_are_said_with_what_to_compare_instead(make_detail):
    details = [make_detail(), make_detail(set_keys={"model.patch_len": 16})]
    assert differs_in_tokens(details)
    (warning,) = list_warnings(details)
    assert "model.patch_len 1 | 16" in warning
    assert "val/mse_h*" in warning


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
        ("val/pred", True),
        ("ood/mae", True),
        ("train/toks_per_sec", True),
        ("val/mse_h8", False),
        ("train/points_per_sec", False),
        ("train/mfu", False),
        ("router/layer0/aux", False),
    ],
)
def test_values_per_token_are_known(key, answer):
    assert is_per_token(key) is answer
