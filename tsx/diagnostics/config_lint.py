"""Settings that contradict the run they are in, found before it starts.

Owns remarks on a config that is valid (`tsx.config` refuses what is not): a setting that does
nothing or is given twice, sizes that do not fit, series that are trained on and scored as
out-of-distribution; a rate that never arrives and an interval that never fires, which have kinds of
their own. Pure: config and facts in, findings out; no torch, no numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from msgspec.structs import fields

from registry.events import Finding, Severity
from tsx.config import RunConfig, Scaling, ScalingScope, Schedule, Source


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the lint needs to know of the corpus; None for a count that is not known."""

    train_windows: int | None = None
    has_val: bool = True
    has_ood: bool = True
    is_demo: bool | None = None
    leaks: tuple[str, ...] = ()  # OOD data sets that the config asks to train on all the same


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding about one key, before it has a time."""

    key: str  # "optim.warmup_steps"
    mechanism: str  # slug of the cause
    cause: str
    evidence: dict[str, Any]
    fix: str
    severity: Severity = Severity.WARNING
    phase: str = "config"
    kind: str = "config-lint"


def lint(config: RunConfig, facts: DataFacts, *, time: float = 0.0) -> list[Finding]:
    """Return what is odd about a config on this data, in the order of the checks below.

    Args:
        config: a valid config.
        facts: about the corpus it reads.
        time: UTC seconds, for the findings.
    """
    return [
        Finding(
            time=time,
            kind=remark.kind,
            severity=remark.severity,
            phase=remark.phase,
            module=remark.key,
            cause=remark.cause,
            evidence={"mechanism": remark.mechanism, **remark.evidence},
            fix=remark.fix,
        )
        for check in CHECKS
        for remark in check(config, facts)
    ]


def _check_warmup(config: RunConfig, _: DataFacts) -> Iterator[Remark]:
    warmup, steps = config.warmup_steps, config.train.steps
    if warmup >= steps > 1:
        reached = config.optim.lr * steps / warmup
        yield Remark(
            "optim.warmup_steps",
            "warm-up-longer-than-run",
            "the warm-up is as long as the run or longer: the learning rate never arrives",
            {"warmup_steps": warmup, "steps": steps, "lr": config.optim.lr, "reached_lr": reached},
            f"set optim.warmup_steps below {steps}; without it a tenth of the run is used",
            kind="lr",
        )


def _check_intervals(config: RunConfig, _: DataFacts) -> Iterator[Remark]:
    steps = config.train.steps
    missed = {
        "train.log_every": (config.train.log_every, "no training metrics are logged"),
        "eval.every": (config.eval.every, "validation runs before and after training only"),
        "train.checkpoint_every": (
            config.train.checkpoint_every,
            "the only checkpoint is the one at the end",
        ),
    }
    for key, (every, consequence) in missed.items():
        if every > steps > 0:
            yield Remark(
                key,
                "interval-longer-than-run",
                f"the interval is longer than the run and never fires: {consequence}",
                {key: every, "train.steps": steps},
                f"set {key} to {steps} or less",
                kind="interval-never-fires",
            )


def _check_shadowed(config: RunConfig, facts: DataFacts) -> Iterator[Remark]:
    """Find settings that another setting makes useless."""
    data, optim, train, model = config.data, config.optim, config.train, config.model
    if data.path is not None and data.source is not Source.AUTO:
        yield _useless("data.source", str(data.source), f"data.path={data.path} is what is read")
    if data.ood_path is not None and data.ood_include:
        yield _useless("data.ood_include", list(data.ood_include), "data.ood_path is what is read")
    if data.scaling is Scaling.NONE and data.scaling_scope is not ScalingScope.SERIES:
        yield _useless("data.scaling_scope", str(data.scaling_scope), "data.scaling=none")
    if facts.is_demo is False and _is_set(data, "demo_series"):
        yield _useless("data.demo_series", data.demo_series, "the demo corpus is not used")
    if optim.schedule is Schedule.CONSTANT and _is_set(optim, "min_lr_ratio"):
        yield _useless("optim.min_lr_ratio", optim.min_lr_ratio, "optim.schedule=constant")
    if model.aux_loss_weight == 0 and _is_set(model, "aux_reduction"):
        yield _useless("model.aux_reduction", str(model.aux_reduction), "model.aux_loss_weight=0")
    if model.top_k == model.num_experts and model.aux_loss_weight > 0:
        reason = f"top_k={model.top_k} of {model.num_experts} experts: every token goes to each"
        yield replace(
            _useless("model.aux_loss_weight", model.aux_loss_weight, reason), severity=Severity.INFO
        )
    read = train.steps * train.grad_accum_steps
    if train.fixed_batches > read > 0:
        yield _useless("train.fixed_batches", train.fixed_batches, f"the run reads {read} batches")


def _check_evaluation(config: RunConfig, facts: DataFacts) -> Iterator[Remark]:
    section = config.eval
    if section.every == 0:
        for key in ("max_batches", "ood_max_batches", "batch_size"):
            if _is_set(section, key):
                yield _useless(f"eval.{key}", getattr(section, key), "eval.every=0")
        if config.train.checkpoint_every > 0:
            yield Remark(
                "eval.every",
                "nothing-evaluated",
                "nothing is evaluated, so no checkpoint can be called the best; the last is kept",
                {"eval.every": 0, "train.checkpoint_every": config.train.checkpoint_every},
                "set eval.every to keep the best checkpoint too",
                Severity.INFO,
            )
        return
    if not facts.has_val:
        yield Remark(
            "eval.every",
            "no-validation-series",
            "there are no validation series to evaluate on",
            {"eval.every": section.every, "data.val_split": config.data.val_split},
            "raise data.val_split, or set eval.every=0",
        )
    if not facts.has_ood and _is_set(section, "ood_max_batches"):
        yield _useless("eval.ood_max_batches", section.ood_max_batches, "there is no OOD set")


def _check_repeated(config: RunConfig, _: DataFacts) -> Iterator[Remark]:
    """Find patterns that are given twice or taken back at once."""
    data = config.data
    for key in ("include", "exclude", "ood_include"):
        patterns: tuple[str, ...] = getattr(data, key)
        twice = sorted({pattern for pattern in patterns if patterns.count(pattern) > 1})
        if twice:
            yield Remark(
                f"data.{key}",
                "given-twice",
                "a pattern is given more than once",
                {"patterns": twice},
                f"give each pattern of data.{key} once",
            )
    both = sorted(set(data.include) & set(data.exclude))
    if both:
        yield Remark(
            "data.exclude",
            "included-and-excluded",
            "a pattern is both included and excluded; the exclusion wins",
            {"patterns": both},
            "take it out of data.include or data.exclude",
        )


def _check_amounts(config: RunConfig, facts: DataFacts) -> Iterator[Remark]:
    """Find sizes that do not fit each other or the data."""
    train, data = config.train, config.data
    step_windows = train.batch_size * train.grad_accum_steps
    if 0 < train.fixed_batches < train.grad_accum_steps:
        yield Remark(
            "train.grad_accum_steps",
            "same-batch-in-one-step",
            "one step reads the same fixed batches more than once: more cost, the same gradient",
            {"grad_accum_steps": train.grad_accum_steps, "fixed_batches": train.fixed_batches},
            f"set train.grad_accum_steps to {train.fixed_batches} or less",
        )
    elif train.steps and 0 < (facts.train_windows or 0) < step_windows and not train.fixed_batches:
        yield Remark(
            "train.batch_size",
            "step-larger-than-data",
            "one step reads more windows than there are: some are read more than once in a step",
            {"windows_per_step": step_windows, "train_windows": facts.train_windows},
            "lower train.batch_size or train.grad_accum_steps, or read more data",
            Severity.INFO,
        )
    reach = data.context_length - config.model.patch_len + 1  # points after the first token
    too_far = [h for h in config.model.horizons if h > reach]
    if too_far:
        yield Remark(
            "model.horizons",
            "horizon-longer-than-context",
            "part of a head looks further than a window reaches and is never trained",
            {"horizons": too_far, "reach": reach, "context_length": data.context_length},
            "raise data.context_length or drop the horizon",
        )
    if data.stride > data.context_length:
        yield Remark(
            "data.stride",
            "stride-longer-than-context",
            "windows leave gaps between them: some points are never read",
            {"stride": data.stride, "context_length": data.context_length},
            f"set data.stride to {data.context_length} or less",
        )


def _check_leak(config: RunConfig, facts: DataFacts) -> Iterator[Remark]:
    if facts.leaks:
        yield Remark(
            "data.ood_path" if config.data.ood_path else "data.ood_include",
            "trained-on-ood",
            "series of the OOD set were also in the training set; they are left out of training",
            {"data_sets": list(facts.leaks)},
            "exclude them from training with data.exclude",
            phase="data",
        )


CHECKS: tuple[Callable[[RunConfig, DataFacts], Iterator[Remark]], ...] = (
    _check_warmup,
    _check_intervals,
    _check_shadowed,
    _check_evaluation,
    _check_repeated,
    _check_amounts,
    _check_leak,
)


def _useless(key: str, value: object, reason: str) -> Remark:
    """Return the remark on a setting that changes nothing."""
    cause = f"{key} has no effect: {reason}"
    return Remark(key, "no-effect", cause, {key: value}, f"take {key} out of the recipe")


def _is_set(section: object, key: str) -> bool:
    """Return whether a key differs from its default; whether it was written is not known here."""
    default = next(field.default for field in fields(section) if field.name == key)  # type: ignore[arg-type]
    return bool(getattr(section, key) != default)
