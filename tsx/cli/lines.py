"""Events as the lines the diaries are written in. Pure: event in, text out.

step=10 loss=3.6159 pred=0.5888 aux=1.0512 lr=1.00e-06 toks/s=23,243 mfu=5.59%
timing data=0.14ms model=630.73ms step=630.87ms data%=0.0    (with perf.log_metrics)
val step=50 pred=0.3011 aux=1.0021 mae=0.4410 mse=0.5023
run model=NVIDIA H100 80GB HBM3 precision=bf16 peak_vram_gb=59.75
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from registry.events import Artifact, Event, Finding, Metrics, RunPrepared, RunResumed

TRAIN_FIELDS = (
    ("loss", "train/loss", ".4f"),
    ("pred", "train/pred", ".4f"),
    ("aux", "train/aux", ".4f"),
    ("lr", "train/lr", ".2e"),
    ("toks/s", "train/toks_per_sec", ",.0f"),
)
# Of one step line, with perf.log_metrics: label, key, format, unit. NVML's only where NVML is.
PERF_FIELDS = (
    ("tflops", "train/tflops", ".2f", ""),
    ("mfu", "train/mfu", ".2f", "%"),
    ("step_ms", "train/step_time_ms", ".2f", ""),
    ("kernels/step", "train/kernel_launches_per_step", ",.0f", ""),
    ("sm_util", "train/sm_util_pct", ".1f", "%"),
    ("hbm_util", "train/hbm_util_pct", ".1f", "%"),
    ("mem_ctrl_util", "train/mem_ctrl_util_pct", ".1f", "%"),
)
MFU_ALONE = tuple(field for field in PERF_FIELDS if field[0] == "mfu")
EVAL_FIELDS = ("pred", "aux", "mae", "mse")


def list_lines(event: Event, *, perf: bool = False) -> list[str]:
    """Return the lines that stand for one event; most events have none or one.

    Args:
        event: what a run recorded.
        perf: with TFLOP/s, step times and what else the config's perf.log_metrics asks for.
    """
    match event:
        case RunPrepared():
            return list(_prepared(event))
        case RunResumed():
            return [f"resumed step={event.from_step} of {event.steps}"]
        case Metrics():
            return list(_metrics(event, perf=perf))
        case _:
            return []


def closing_line(prepared: RunPrepared, peak_gib: float | None) -> str:
    """Return the diaries' last line: device, precision and peak memory in GiB, host's on a CPU."""
    peak = "n/a" if peak_gib is None else f"{peak_gib:.2f}"
    host = "" if prepared.device.startswith("cuda") else " (host memory)"
    return (
        f"run model={prepared.device_name} precision={prepared.precision} peak_vram_gb={peak}{host}"
    )


def finding_line(finding: Finding) -> str:
    """Return a finding on one line: severity, kind, place, cause and what to do."""
    place = ", ".join(part for part in (finding.module, finding.where) if part)
    parts = [f"{finding.severity}: {finding.kind}"]
    if place:
        parts.append(f"at {place}")
    text = " ".join(parts) + f": {finding.cause}"
    return f"{text} ({finding.fix})" if finding.fix else text


def checkpoint_line(artifact: Artifact) -> str:
    """Return one line for a checkpoint that was written."""
    best = " (best)" if artifact.metadata.get("best") else ""
    return f"checkpoint step={artifact.step} {artifact.path}{best}"


def _prepared(event: RunPrepared) -> Iterator[str]:
    yield f"data source={event.data_source} {_splits(event)}".rstrip()
    yield (
        f"params total={_human(event.params_total)} ({event.params_total:,}) "
        f"active={_human(event.params_active)} ({event.params_active:,})"
    )
    yield f"device model={event.device_name} precision={event.precision}"
    peak = f"{event.peak_tflops:.4g} TFLOP/s ({event.peak_source})" if event.peak_tflops else "?"
    expected = f" expected={duration(event.expected_s)}" if event.expected_s else ""
    yield f"flops/token={_human(event.flops_per_token)} peak={peak}{expected}"


def _splits(event: RunPrepared) -> str:
    """Return windows per split: `train=1,234 val=20 ood=7`, as far as they are known."""
    parts = []
    for split in ("train", "val", "ood"):
        facts = event.data.get(split)
        if isinstance(facts, dict) and isinstance(facts.get("windows"), int):
            parts.append(f"{split}={facts['windows']:,}")
    return f"windows {' '.join(parts)}" if parts else ""


def _metrics(event: Metrics, *, perf: bool) -> Iterator[str]:
    values = event.values
    if "train/loss" in values:
        parts = [f"step={event.step}"]
        parts += [
            f"{label}={number(values[key], form)}"
            for label, key, form in TRAIN_FIELDS
            if key in values
        ]
        parts += [
            f"{label}={number(values[key], form)}{unit}"
            for label, key, form, unit in (PERF_FIELDS if perf else MFU_ALONE)
            if key in values
        ]
        yield " ".join(parts)
        if perf and "train/step_time_ms" in values:
            yield _timing(values["train/step_time_ms"], values.get("train/data_time_ms", 0.0))
    for split in ("val", "ood"):
        if f"{split}/pred" in values:
            fields = (
                f"{name}={number(values[f'{split}/{name}'], '.4f')}"
                for name in EVAL_FIELDS
                if f"{split}/{name}" in values
            )
            yield f"{split} step={event.step} {' '.join(fields)}"


def _timing(step_ms: float, data_ms: float) -> str:
    """Return where the time of a step goes: waiting for data, and all the rest."""
    share = 100.0 * data_ms / step_ms if step_ms > 0 else math.nan
    times = f"data={data_ms:.2f}ms model={step_ms - data_ms:.2f}ms step={step_ms:.2f}ms"
    return f"timing {times} data%={number(share, '.1f')}"


def number(value: float, form: str) -> str:
    """Return a number in the given format; non-finite ones as the diaries have them."""
    if math.isfinite(value):
        return format(value, form)
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def duration(seconds: float) -> str:
    """Return seconds as "42s", "3m05s" or "2h07m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _human(count: float) -> str:
    """Return a count with a unit: 113.35M, 49.65M, 2.42B."""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.2f}{unit}"
    return f"{count:.0f}"
