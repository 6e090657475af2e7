"""What the curves of a recorded run tell: planted faults, and healthy runs that tell nothing."""

import math
import random

import pytest

from registry.events import Finding, Severity, Status
from registry.series import load_since
from tsx.curves.findings import list_curve_findings
from tsx.curves.recorded import Recorded


def falling(seed=0, points=300, noise=0.05, low=0.5):
    draw = random.Random(seed).gauss
    return [
        (low + 3 * math.exp(-5 * at / points)) * math.exp(draw(0, noise)) for at in range(points)
    ]


def kinds(found):
    return [finding.kind for finding in found]


def test_the_first_key_to_be_nan_is_named_with_those_that_followed(find):
    loss = falling()
    loss[200:] = [math.nan] * 100
    norm = [1.0] * 199 + [math.inf] * 101
    val = [(step, math.nan if step > 200 else 1.0) for step in range(50, 301, 50)]
    (found,) = find({"train/loss": loss, "train/grad_norm": norm, "val/loss": val})
    assert (found.kind, found.severity, found.step) == ("nan-onset", "error", 201)
    assert found.phase == "curve"
    assert found.evidence["metric"] == "train/loss"
    assert found.evidence["first"] == ["train/grad_norm", "train/loss"]
    assert found.evidence["followed"] == {"val/loss": 250}
    assert found.evidence["last_finite_step"] == 200
    assert found.count == 100
    assert found.time == pytest.approx(1_700_000_000 + 2 + 201)


def test_a_loss_that_is_finite_again_is_a_warning(find):
    loss = falling()
    loss[100] = math.inf
    (found,) = find({"loss": loss})
    assert (found.kind, found.severity, found.step) == ("nan-onset", "warning", 101)
    assert "again" in found.cause


def test_a_norm_that_a_scaler_makes_infinite_is_nothing(find):
    assert find({"loss": falling(), "grad_norm": [math.inf, math.inf] + [1.0] * 298}) == []


def test_a_spike_is_told_once_at_the_highest(find):
    loss = falling()
    loss[100] *= 4
    loss[200] *= 9
    (found,) = find({"train/loss": loss})
    assert (found.kind, found.severity, found.step, found.count) == (
        *("loss-spike", "warning"),
        *(201, 2),
    )
    assert found.evidence["steps"] == [101, 201]
    assert found.evidence["recovered_step"] == 202


def test_a_spike_at_a_restart_of_the_schedule_that_comes_back_is_an_info(find):
    loss, rates = falling(), [1e-3 * (1 - (at % 100) / 101) for at in range(300)]
    loss[200] *= 3
    (found,) = find({"train/loss": loss, "train/lr": rates})
    assert (found.kind, found.severity) == ("loss-spike", "info")
    rates = [1e-3] * 200 + [1e-1] * 100
    (found,) = find({"train/loss": loss, "train/lr": rates}, "aaaa0002")
    assert (found.kind, found.severity) == ("loss-spike", "warning")
    assert found.evidence["lr_after"] == 0.1


def test_a_loss_that_stands_is_a_plateau(find):
    draw = random.Random(0).gauss
    (found,) = find({"loss": [1.386 + 0.02 * draw(0, 1) for _ in range(200)]})
    assert (found.kind, found.severity, found.step) == ("plateau", "warning", 200)


def test_a_loss_that_fell_at_once_and_stands_then_has_learned(find):
    assert find({"loss": [4.0, 3.0, 2.0, 1.5, 1.2] + [1.0] * 300}) == []


def test_weights_that_were_trained_before_may_stand(find, tmp_path):
    config = {"train": {"init_from": str(tmp_path)}}
    (found,) = find({"train/loss": [1.0] * 100}, config=config)
    assert (found.kind, found.severity) == ("plateau", "info")


def test_a_rate_that_never_arrives(find):
    rates = [1e-3 * at / 10_000 for at in range(1, 81)]
    (found,) = find({"train/loss": falling(points=80), "train/lr": rates})
    assert (found.kind, found.step) == ("lr", 80)
    assert found.evidence["share"] == pytest.approx(0.008)


@pytest.mark.parametrize(
    ("status", "steps", "reached"),
    [
        (Status.INTERRUPTED, 1000, 0.1),  # on its way: a tenth of the run, a tenth of the rate
        (Status.COMPLETED, 80, 0.9),
    ],
)
def test_a_rate_on_its_way_is_nothing(find, status, steps, reached):
    rates = [1e-3 * reached * at / 80 for at in range(1, 81)]
    curves = {"train/loss": falling(points=80), "train/lr": rates}
    assert find(curves, status=status, steps=steps) == []


def test_a_rate_of_anybodys_config_is_known(find):
    curves = {"loss": falling(), "lr": [1e-6] * 300}
    (found,) = find(curves, raw_config={"optimizer": {"lr": 3e-4}})
    assert found.kind == "lr"
    assert find(curves, "aaaa0002", raw_config={"optimizer": {"lr": "3e-4"}}) == []
    assert find(curves, "aaaa0003", raw_config={"optimizer": {"lr": 10**400}}) == []


@pytest.mark.parametrize(
    ("start", "reduction", "told"),
    [
        (1.0, "per_layer", None),
        (1.3, "per_layer", None),
        (144.0, "per_layer", "num_layers squared"),
        (12.0, "per_layer", "num_layers"),
        (2.0, "concatenated", None),
        (24.0, "concatenated", "num_layers"),
    ],
)
def test_aux_is_held_against_a_flat_router(find, start, reduction, told):
    config = {"model": {"num_layers": 12, "aux_reduction": reduction}}
    aux = [start * (1 + 0.001 * (at % 7)) for at in range(300)]
    found = find({"train/loss": falling(), "train/aux": aux}, config=config)
    if told is None:
        assert found == []
    else:
        assert kinds(found) == ["aux-scale"]
        assert found[0].cause.endswith(f"which is {told}")
        assert "balanced" not in found[0].cause


def test_aux_of_an_unknown_model_tells_nothing(find):
    assert find({"loss": falling(), "aux_loss": [144.0] * 300}, raw_config={"layers": 12}) == []


def test_steps_that_get_slower(find):
    draw = random.Random(0).gauss
    speed = [1000 * (1.0 if at < 180 else 0.5) + 20 * draw(0, 1) for at in range(300)]
    times = [1e6 / value for value in speed]
    (found,) = find({"loss": falling(), "train/toks_per_sec": speed, "train/step_time_ms": times})
    assert (found.kind, found.severity) == ("throughput", "warning")
    assert abs(found.step - 181) <= 2
    assert found.evidence["slower_pct"] == pytest.approx(50, abs=3)


def test_a_step_time_alone_tells_it_too(find):
    (found,) = find({"loss": falling(), "step_time_ms": [10.0 + at / 10 for at in range(300)]})
    assert found.kind == "throughput"
    assert found.evidence["before"] < found.evidence["after"]


def test_checkpoints_and_a_slow_start_are_no_slowdown(find):
    speed = [100.0 if at < 5 else 400.0 if at % 50 == 0 else 1000.0 for at in range(300)]
    assert find({"loss": falling(), "samples/sec": speed}) == []


def test_a_slowdown_across_a_resume_is_an_info(find):
    """Another machine, perhaps."""
    curves = {"loss": falling(points=150), "it/s": [10.0] * 150}
    later = {"loss": [(at, 0.5) for at in range(151, 301)]}
    later["it/s"] = [(at, 5.0) for at in range(151, 301)]
    (found,) = find(curves, resume=(150, later))
    assert (found.kind, found.severity) == ("throughput", "info")


def test_one_fault_is_one_finding(find):
    loss = falling()
    loss[200:] = [math.nan] * 100
    recorded = Finding(time=1.0, kind="nan-origin", severity=Severity.ERROR, step=201)
    assert find({"train/loss": loss}, events=[recorded]) == []
    elsewhere = Finding(time=1.0, kind="nan-origin", severity=Severity.ERROR, step=20)
    assert kinds(find({"train/loss": loss}, "aaaa0002", events=[elsewhere])) == ["nan-onset"]


def test_a_fault_of_the_whole_run_is_explained_at_any_step_and_not_by_an_info(find):
    rates = [1e-3 * at / 10_000 for at in range(1, 81)]
    curves = {"train/loss": falling(points=80), "train/lr": rates}
    told = Finding(time=1.0, kind="lr", severity=Severity.WARNING, cause="the warm-up is too long")
    info = Finding(time=1.0, kind="lr", severity=Severity.INFO, cause="weight decay on norms")
    assert find(curves, events=[told]) == []
    assert kinds(find(curves, "aaaa0002", events=[info])) == ["lr"]


def test_a_loss_that_stands_under_a_rate_that_never_arrives_is_told_once(find):
    curves = {"train/loss": [1.0] * 80, "train/lr": [1e-7] * 80}
    assert kinds(find(curves)) == ["lr"]


def test_a_run_without_curves_tells_nothing(find):
    assert find({"sys/cpu_pct": [1.0]}) == []
    assert find({"accuracy": [math.nan] * 50}, "aaaa0002") == []


@pytest.mark.parametrize("seed", range(12))
def test_healthy_runs_tell_nothing(find, seed):
    rng = random.Random(seed)
    points, gap = rng.choice([3, 20, 100, 700]), rng.choice([1, 10])
    warm = max(points // 10, 1)
    steps = sorted(rng.sample(range(1, 2 * points * gap + 1, gap), points))  # with gaps
    loss = falling(seed, points, rng.choice([0.01, 0.1, 0.25]))
    rates = [1e-3 * min(1.0, (at + 1) / warm) for at in range(points)]
    speed = [1000 * math.exp(rng.gauss(0, 0.1)) for _ in range(points)]
    curves = {"train/loss": loss, "train/lr": rates, "train/toks_per_sec": speed}
    curves["val/loss"] = loss[::-1][:1]
    assert find({key: [*zip(steps, held, strict=False)] for key, held in curves.items()}) == []


def test_a_resumed_run_tells_nothing(find):
    loss = falling()
    later = {"loss": [(at, loss[at - 1]) for at in range(101, 301)]}
    assert find({"loss": loss[:180]}, resume=(100, later)) == []


def test_only_steep_stretches_of_a_long_curve_are_read(record, reader, monkeypatch):
    loss = falling(points=6000, noise=0.1)
    for at in (700, 3003, 5990):
        loss[at] *= 7
    record("aaaa0001", {"loss": loss})
    whole = Recorded(reader, reader.get_detail("aaaa0001")).find_spikes("loss")
    monkeypatch.setattr("tsx.curves.recorded._WHOLE", 1000)
    read = []

    def counted(*args):
        read.append(load_since(*args))
        return read[-1]

    monkeypatch.setattr("tsx.curves.recorded.load_since", counted)
    parts = Recorded(reader, reader.get_detail("aaaa0001")).find_spikes("loss")
    assert [spike.step for spike in parts] == [701, 3004, 5991]
    assert [(s.step, s.value, s.level) for s in parts] == [
        (s.step, s.value, s.level) for s in whole
    ]
    assert sum(map(len, read)) < 2500


def test_a_long_curve_that_is_steep_all_over_is_read_whole(record, reader, monkeypatch):
    monkeypatch.setattr("tsx.curves.recorded._WHOLE", 1000)
    loss = [2.0 if at // 64 % 5 else 2.0 + (at % 64 == 9) * 40 for at in range(4000)]
    record("aaaa0001", {"loss": loss})
    spikes = Recorded(reader, reader.get_detail("aaaa0001")).find_spikes("loss")
    assert [spike.step for spike in spikes] == [10 + at for at in range(0, 4000, 320)]
    (found,) = list_curve_findings(reader, reader.get_detail("aaaa0001"))
    assert (found.step, found.count) == (10, 13)
