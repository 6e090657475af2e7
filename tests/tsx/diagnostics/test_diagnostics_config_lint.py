from __future__ import annotations

import subprocess
import sys

import pytest

from registry.events import Severity
from tests.faults.embedded import make_config, write_series
from tests.faults.plant import list_plants
from tsx.config import decode
from tsx.diagnostics.config_lint import DataFacts, lint

pytestmark = pytest.mark.trainer

FACTS = DataFacts(train_windows=10_000, has_val=True, has_ood=True, is_demo=True)


def found(facts=FACTS, **changes):
    raw = {}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        raw.setdefault(section, {})[name] = value
    return lint(decode(raw), facts, time=12.5)


KINDS = {"optim.warmup_steps": "lr", "train.log_every": "interval-never-fires"}
KINDS |= {"train.checkpoint_every": "interval-never-fires"}
CASES = [
    # warm-up
    ({"optim__warmup_steps": 10_000, "train__steps": 80}, "optim.warmup_steps"),
    ({"optim__warmup_steps": 200}, "optim.warmup_steps"),
    # intervals that never fire
    ({"train__log_every": 201}, "train.log_every"),
    ({"eval__every": 500}, "eval.every"),
    ({"train__checkpoint_every": 201}, "train.checkpoint_every"),
    # settings that another one makes useless
    ({"data__path": "x", "data__source": "demo"}, "data.source"),
    ({"data__ood_path": "x", "data__ood_include": ["finance/*"]}, "data.ood_include"),
    ({"data__scaling": "none", "data__scaling_scope": "context"}, "data.scaling_scope"),
    ({"optim__schedule": "constant", "optim__min_lr_ratio": 0.1}, "optim.min_lr_ratio"),
    (
        {"model__aux_loss_weight": 0, "model__aux_reduction": "concatenated"},
        "model.aux_reduction",
    ),
    ({"model__top_k": 8}, "model.aux_loss_weight"),
    ({"train__fixed_batches": 201}, "train.fixed_batches"),
    ({"eval__every": 0, "eval__max_batches": 4}, "eval.max_batches"),
    ({"eval__every": 0, "train__checkpoint_every": 50}, "eval.every"),
    # given twice
    ({"data__include": ["energy/*", "energy/*"]}, "data.include"),
    ({"data__include": ["a/*", "b/*"], "data__exclude": ["b/*"]}, "data.exclude"),
    # sizes that do not fit
    ({"train__fixed_batches": 1, "train__grad_accum_steps": 4}, "train.grad_accum_steps"),
    ({"model__horizons": [1, 1024]}, "model.horizons"),
    ({"data__stride": 1024}, "data.stride"),
    ({"train__batch_size": 20_000}, "train.batch_size"),
]


@pytest.mark.parametrize(
    ("changes", "key"), CASES, ids=[f"{key}-{i}" for i, (_, key) in enumerate(CASES)]
)
def test_each_oddity_is_found_alone(changes, key):
    findings = found(**changes)
    assert [finding.module for finding in findings] == [key]
    (finding,) = findings
    kind = "interval-never-fires" if changes.get("eval__every") == 500 else KINDS.get(key)
    assert finding.kind == (kind or "config-lint")
    assert finding.evidence["mechanism"]
    assert finding.severity in {Severity.INFO, Severity.WARNING}
    assert finding.time == 12.5
    assert finding.cause
    assert finding.fix
    assert finding.evidence


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__steps": 1, "train__log_every": 1, "eval__every": 1, "optim__warmup_steps": 1},
        {"train__log_every": 200, "eval__every": 200, "train__checkpoint_every": 200},
        {"optim__warmup_steps": 199},
        {"model__horizons": [1, 512]},
        {"train__fixed_batches": 4, "train__grad_accum_steps": 4},
        {"train__steps": 100_000, "optim__warmup_steps": 10_000},
        {"eval__every": 0},
    ],
)
def test_healthy_configs_raise_nothing(changes):
    assert found(**changes) == []


def test_warmup_says_what_is_reached():
    (finding,) = found(optim__warmup_steps=10_000, train__steps=80)
    assert finding.evidence["reached_lr"] == pytest.approx(8e-6)
    assert finding.severity is Severity.WARNING


def test_ood_series_in_the_training_set():
    facts = DataFacts(leaks=("finance/exchange_rate",))
    (finding,) = found(facts, data__ood_include=["finance/*"])
    assert (finding.module, finding.phase) == ("data.ood_include", "data")
    assert finding.evidence["data_sets"] == ["finance/exchange_rate"]
    (finding,) = found(facts, data__ood_path="elsewhere")
    assert finding.module == "data.ood_path"


def test_evaluation_without_series_to_evaluate_on():
    (finding,) = found(DataFacts(has_val=False))
    assert finding.module == "eval.every"
    assert found(DataFacts(has_val=False), eval__every=0) == []
    (finding,) = found(DataFacts(has_ood=False), eval__ood_max_batches=9)
    assert finding.module == "eval.ood_max_batches"


def test_demo_settings_without_the_demo_corpus():
    (finding,) = found(DataFacts(is_demo=False), data__demo_series=9)
    assert finding.module == "data.demo_series"
    assert found(DataFacts(is_demo=None), data__demo_series=9) == []


def test_patches_shorten_the_reach_of_a_head():
    assert found(model__patch_len=16, model__horizons=[497]) == []
    (finding,) = found(model__patch_len=16, model__horizons=[498])
    assert finding.evidence["reach"] == 497


@pytest.mark.parametrize(
    "plant",
    [plant for plant in list_plants() if plant.kind == "config-lint"],
    ids=lambda plant: plant.name,
)
def test_a_planted_config_is_found_in_a_run(plant, tmp_path):
    """Each planted config, as the trainer reads it on the planted data."""
    config = make_config(write_series(tmp_path), plant.config)
    facts = DataFacts(has_val=config.data.val_split > 0, has_ood=False)
    (finding,) = [f for f in lint(config, facts) if f.severity is not Severity.INFO]
    assert finding.kind == plant.kind
    assert finding.severity == plant.severity
    assert finding.evidence["mechanism"] == plant.mechanism


def test_lint_needs_neither_torch_nor_numpy():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "import tsx.diagnostics.config_lint"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
