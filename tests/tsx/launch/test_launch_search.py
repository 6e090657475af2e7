"""The search for the largest value that fits, against trials that are scripted."""

from __future__ import annotations

import math

import pytest

from recipes.search import Search
from registry.connection import find_url
from registry.events import Status
from registry.queries import Reader
from tsx.config import decode
from tsx.errors import ConfigError, Exit
from tsx.launch import search as searches
from tsx.launch.exit_reason import EXIT_OF_STATUS, Ending
from tsx.launch.plan import RunPlan
from tsx.launch.provenance import Provenance
from tsx.launch.search import (
    Bracket,
    Outcome,
    TrialBench,
    check_key,
    make_bracket,
    plan_search,
    run_search,
)
from tsx.launch.supervise import Supervisor

BATCH = "train.batch_size"
PROVENANCE = Provenance(cwd="/", host="box", versions={})


def end(status, reason=""):
    return Ending(status, reason, EXIT_OF_STATUS[status])


class Script:
    """Trials that fit up to a value; `at` says what else happens at some."""

    def __init__(self, key, most, at=None):
        self.key, self.most, self.at = key, most, at or {}
        self.tried, self.plans, self.told = [], [], []

    def try_out(self, plan):
        section, _, name = self.key.partition(".")
        value = getattr(getattr(plan.config, section), name)
        self.tried.append(value)
        self.plans.append(plan)
        answer = self.at.get(value, end(Status.COMPLETED if value <= self.most else Status.OOM))
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def begin_trial(self, trial):
        self.told.append((trial.number, trial.value))

    def end_trial(self, trial, ending):
        self.told[-1] += (ending.status,)


def plan_of(key=BATCH, start=8, limit=65_536, steps=6, kept=(), **sections):
    asked = Search(key, start, limit, steps)
    plan = RunPlan("aaaaaaaa", "probe", "probe", decode(sections), tags=("mine",))
    return asked, plan_search(asked, plan, kept)


def search(script, asked, first):
    return run_search(first, asked.key, make_bracket(asked, first), script, script)


@pytest.mark.parametrize("start", [1, 2, 3, 8, 32, 64, 70, 100])
@pytest.mark.parametrize("limit", [0, 1, 7, 64, 900])
def test_the_largest_value_is_found_in_few_trials(start, limit):
    limit = max(start, limit)
    for most in range(71):
        bracket = Bracket(start, limit)
        tried = []
        while (value := bracket.find_next()) is not None:
            assert 1 <= value <= limit
            left = bracket.count_left()
            tried.append(value)
            bracket.tell(value, fits=value <= most)
            after = bracket.count_left()
            assert left is None or after < left
        assert bracket.fits == (min(most, limit) or None)
        assert len(set(tried)) == len(tried) <= 2 * math.log2(limit) + 2
        assert bracket.count_left() in (None, 0)


@pytest.mark.parametrize("step", [1, 3, 24])
def test_values_keep_their_distance_from_the_start(step):
    for most in range(0, 2000, 7):
        bracket = Bracket(384, 1500, step=step, floor=384 % step or step)
        while (value := bracket.find_next()) is not None:
            assert (value - 384) % step == 0
            assert 0 < value <= 1500
            bracket.tell(value, fits=value <= most)
        grid = [v for v in range(384 % step or step, 1501) if (v - 384) % step == 0 and v <= most]
        assert bracket.fits == (grid[-1] if grid else None)


def test_it_doubles_then_halves_the_gap():
    asked, first = plan_of()
    script = Script(BATCH, 24)
    assert search(script, asked, first) == Outcome(Exit.OK)
    assert script.tried == [8, 16, 32, 24, 28, 26, 25]
    assert script.told[2] == (3, 32, Status.OOM)


def test_a_limit_ends_the_doubling():
    asked, first = plan_of(limit=20)
    script = Script(BATCH, 1000)
    assert search(script, asked, first) == Outcome(Exit.OK)
    assert script.tried == [8, 16, 20]


def test_a_start_that_does_not_fit_is_halved_to_one():
    asked, first = plan_of(start=128)
    script = Script(BATCH, 3)
    assert search(script, asked, first) == Outcome(Exit.OK)
    assert script.tried == [128, 64, 32, 16, 8, 4, 2, 3]
    script = Script(BATCH, 0)
    assert search(script, asked, first) == Outcome(Exit.OUT_OF_MEMORY, "nothing fits")
    assert script.tried == [128, 64, 32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize(
    ("status", "code"), [(Status.FAILED, 1), (Status.DIVERGED, 4), (Status.KILLED, 137)]
)
def test_any_other_end_of_a_trial_ends_the_search(status, code):
    asked, first = plan_of()
    script = Script(BATCH, 100, {32: end(status)})
    outcome = search(script, asked, first)
    assert outcome == Outcome(code, f"the trial of {BATCH}=32 {status}")
    assert script.tried == [8, 16, 32]


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt()])
def test_a_stop_ends_the_search(stop):
    asked, first = plan_of()
    script = Script(BATCH, 100, {16: stop})
    assert search(script, asked, first) == Outcome(Exit.INTERRUPTED, "interrupted")
    script = Script(BATCH, 100, {16: end(Status.INTERRUPTED, "SIGINT")})
    assert search(script, asked, first).exit_code == Exit.INTERRUPTED
    assert script.tried == [8, 16]


def test_trials_are_short_runs_of_one_search():
    asked, first = plan_of(train={"steps": 200, "checkpoint_every": 50, "log_every": 10})
    script = Script(BATCH, 9)
    search(script, asked, first)
    assert [plan.name for plan in script.plans][:3] == ["probe-b8", "probe-b16", "probe-b12"]
    assert {plan.parent for plan in script.plans} == {first.parent}
    assert first.parent.startswith("search-")
    assert len({plan.run_id for plan in script.plans}) == len(script.plans)
    for plan in script.plans:
        config = plan.config
        assert plan.tags == ("mine", "search:train.batch_size")
        assert (config.train.steps, config.train.log_every) == (6, 6)
        assert (config.train.checkpoint_every, config.eval.every) == (0, 0)


def test_what_was_set_by_hand_is_kept():
    _, first = plan_of(kept={"eval.every", "train.steps"}, train={"steps": 40}, eval={"every": 5})
    config = first.config
    assert (config.eval.every, config.train.steps, config.train.log_every) == (5, 40, 6)


@pytest.mark.parametrize("most", [383, 384, 500, 1000, 23, 24])
def test_a_width_stays_divisible_by_the_heads(most):
    asked, first = plan_of("model.hidden_size", start=384, limit=3000)
    script = Script("model.hidden_size", most)
    search(script, asked, first)
    assert all(value % 24 == 0 for value in script.tried)
    fits = [value for value in script.tried if value <= most]
    assert max(fits, default=0) == most // 24 * 24
    assert script.plans[0].name == "probe-h384"


def test_the_smallest_value_is_one_that_a_run_can_have():
    asked, first = plan_of("model.num_experts", start=8, limit=64)
    script = Script("model.num_experts", 0)
    search(script, asked, first)
    assert script.tried == [8, 4, 2]  # top_k is 2


def test_a_value_that_cannot_double_up_to_the_limit_names_one_that_can():
    asked, first = plan_of("model.top_k", start=2)
    with pytest.raises(ConfigError, match="top_k=16 exceeds num_experts=8") as caught:
        make_bracket(asked, first)
    assert caught.value.next_command == "--limit 8"
    with pytest.raises(ConfigError, match="hidden_size=100 is not divisible"):
        plan_of("model.hidden_size", start=100)
    asked, first = plan_of("model.num_heads", start=192, limit=4000)
    with pytest.raises(ConfigError, match=r"num_heads=192 cannot grow.*") as caught:
        make_bracket(asked, first)
    assert caught.value.next_command == "--limit 192"


@pytest.mark.parametrize(
    "key", ["optim.lr", "train.steps", "model.horizons", "train.device", "perf.compile", "x", ""]
)
def test_only_positive_whole_numbers_grow(key):
    with pytest.raises(ConfigError, match="is no positive whole number"):
        check_key(key, "--grow ")
    for good in (BATCH, "model.hidden_size", "model.d_ff", "data.context_length"):
        check_key(good, "--grow ")


def test_the_nearest_key_is_offered():
    with pytest.raises(ConfigError, match=r"did you mean 'train\.batch_size'"):
        check_key("train.batchsize", "--grow ")


class FakeSupervisor:
    """Notes what is run and what is left out."""

    def __init__(self):
        self.ran, self.left_out = [], []

    def run_all(self, plans, provenance):
        self.ran += plans
        return [end(Status.COMPLETED)]

    def leave_out(self, plan, provenance, ending):
        self.left_out.append((plan, ending))


@pytest.mark.parametrize(
    ("predicted", "budget", "on_host", "is_tried"),
    [
        (8.9, None, True, True),
        (9.1, None, True, False),
        (9.1, None, False, True),
        (99.0, 4.0, True, True),
        (99.0, 9.5, True, False),
    ],
)
def test_a_host_is_not_driven_into_swap(predicted, budget, on_host, is_tried):
    supervisor = FakeSupervisor()
    bench = TrialBench(
        supervisor,
        PROVENANCE,
        predict=lambda config: predicted,
        on_host=on_host,
        read_free=lambda: 10.0,
    )
    _, first = plan_of(perf={} if budget is None else {"memory_budget_gib": budget})
    ending = bench.try_out(first)
    assert (supervisor.ran == [first]) is is_tried
    if not is_tried:
        plan, recorded = supervisor.left_out[0]
        assert plan.tags[-1] == "not-tried"
        assert recorded == ending
        assert ending.status is not Status.OOM
        assert ending.exit_code == Exit.OUT_OF_MEMORY
        assert ending.reason.startswith(f"not tried: {predicted:.1f} GiB by prediction")
        assert "90% of the 10.0 GiB" in ending.reason


def test_a_run_that_is_left_out_is_in_the_registry(tmp_path):
    home = tmp_path / "home"
    supervisor = Supervisor(home, find_url(home), observer=None)
    _, first = plan_of()
    supervisor.leave_out(first, PROVENANCE, Ending(Status.FAILED, "not tried: why", 5))
    with Reader.open(find_url(home)) as reader:
        (run,) = reader.list_runs(parent=first.parent)
    assert (run.name, run.status, run.reason) == ("probe-b8", "failed", "not tried: why")
    assert run.step == 0


def test_free_memory_is_some_of_the_machines():
    import psutil

    free = searches.read_free_gib()
    assert 0 < free <= psutil.virtual_memory().total / 2**30
