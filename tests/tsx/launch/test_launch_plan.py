"""Plans: ids, seeds, sweeps, and their way to another process."""

from __future__ import annotations

import pytest

from tsx.config import decode
from tsx.errors import ConfigError
from tsx.launch.plan import (
    RunPlan,
    as_sweep,
    decode_plans,
    encode_plans,
    new_run_id,
    with_seeds,
)


def make_plan(seed: int = 7) -> RunPlan:
    config = decode({"train": {"seed": seed}, "model": {"horizons": [1, 8]}})
    return RunPlan("abc12345", "probe", "sanity", config, tags=("a", "b"), command=("tsx", "run"))


def test_ids_are_eight_lower_case_characters_that_never_read_as_a_number() -> None:
    ids = {new_run_id() for _ in range(500)}
    assert len(ids) == 500
    assert all(len(one) == 8 and one[0].isalpha() and one.islower() for one in ids)
    assert all(one.isalnum() and one.isascii() for one in ids)


def test_three_seeds_are_s_s1_s2_with_ids_and_names_of_their_own() -> None:
    plans = with_seeds(make_plan(seed=7), 3)
    assert [plan.config.train.seed for plan in plans] == [7, 8, 9]
    assert [plan.name for plan in plans] == ["probe-s7", "probe-s8", "probe-s9"]
    assert len({plan.run_id for plan in plans}) == 3


def test_seeds_beyond_the_largest_are_refused() -> None:
    with pytest.raises(ConfigError, match="beyond the largest seed"):
        with_seeds(make_plan(seed=2**63 - 2), 3)


def test_one_seed_changes_nothing() -> None:
    plan = make_plan()
    assert with_seeds(plan, 1) == [plan]


def test_a_single_run_has_no_parent_and_several_share_one() -> None:
    assert as_sweep([make_plan()])[0].parent == ""
    parents = {plan.parent for plan in as_sweep(with_seeds(make_plan(), 3))}
    assert len(parents) == 1
    assert parents.pop().startswith("sweep-")


def test_plans_survive_the_way_to_another_process() -> None:
    plans = as_sweep(with_seeds(make_plan(), 2))
    assert decode_plans(encode_plans(plans)) == plans
