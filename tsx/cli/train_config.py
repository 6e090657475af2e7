"""What is typed after `tsx train` -> values of a config, and what a person must be told of it.

Owns the rules that no single flag can say (epochs, patches, intervals, where the notes' folder
lies) and the contradictions. Ranges and types are the config's own affair.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum, auto
from pathlib import Path
from typing import Any, NamedTuple

from tsx.cli.train_flags import FLAGS, RETIRED
from tsx.errors import ConfigError

NOTES_FOLDER = "time300b_selected"  # where the notes' download goes; ours is $TSX_HOME's
NOTES_PATCH = 32
NOTES_STEPS = 100_000
# Of the notes; an interval longer than the run would never fire.
INTERVALS = {"train.log_every": 50, "train.checkpoint_every": 2000, "eval.every": 1000}
NOTES_BATCHES = 10  # of a validation

Values = dict[str, Any]  # "section.key" -> value
Typed = Mapping[str, Any]  # a flag's parameter name -> what was typed, None where nothing was


class Reading(NamedTuple):
    """A command line, read."""

    values: Values
    remarks: tuple[str, ...]  # one line each, of what is other than in the notes


class Told(NamedTuple):
    """What decides how the data flags are read."""

    home: Path
    pinned: AbstractSet[str]  # config keys that --set gives


class _Source(Enum):
    """What `data.path` and `data.source` come to."""

    PATH = auto()  # the path that was typed
    TIME300B = auto()  # the folder of $TSX_HOME, for the notes' one
    OTHER = auto()  # what --set or the defaults say


def read_line(typed: Typed, told: Told, *, is_resume: bool = False) -> Reading:
    """Return the config values of a command line.

    Args:
        typed: of the flags in the table.
        told: home, and what --set decides.
        is_resume: leave everything out that was not typed: the run's own config says it.

    Raises:
        ConfigError: a flag that there is not, one that stands alone or against another, a path
            that leads nowhere.
    """
    _refuse_retired(typed)
    _check_conflicts(typed, told)
    values = _read_table(typed, defaults=not is_resume)
    remarks: list[str] = []
    _set_steps(values, typed, is_resume=is_resume)
    _set_patch(values, typed, remarks)
    _set_data(values, typed, told, remarks)
    _tell_widths(typed, remarks, is_resume=is_resume)
    if typed.get("no_bf16") and not typed.get("no_amp"):
        remarks.append("--no-bf16: fp32, since there is no fp16 training here")
    if not is_resume:
        _set_intervals(values)
        _set_evaluation(values, told.pinned)
    if (values.get("train.grad_accum_steps") or 1) > 1:
        remarks.append("every interval counts optimizer steps, not micro-batches")
    return Reading(values, tuple(remarks))


def nest(values: Values) -> dict[str, dict[str, Any]]:
    """Return "section.key" values as sections of keys."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, _, key = path.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def _refuse_retired(typed: Typed) -> None:
    for retired in RETIRED:
        if typed.get(retired.parameter) is not None:
            raise ConfigError(
                f"{retired.name} is a flag of the notes that tsx has not: {retired.instead}",
                next_command="tsx train --help, or docs/moving.md",
            )


def _check_conflicts(typed: Typed, told: Told) -> None:
    """Refuse flags that mean nothing alone, and those that Time-MoE has one value of."""
    for name, needed in (
        ("patch_len", "patch"),
        ("patch_stride", "patch"),
        ("compile_mode", "compile"),
    ):
        if typed.get(name) is not None and not typed.get(needed):
            raise ConfigError(
                f"--{name.replace('_', '-')} {typed[name]} without --{needed} changes nothing",
                next_command=f"add --{needed}, or take it off",
            )
    length, stride = _patch_len(typed), typed.get("patch_stride")
    if stride is not None and stride != length:
        raise ConfigError(
            f"--patch-stride {stride} is not --patch-len {length}: patches do not overlap here, so "
            "that the next patch holds no point that the model has seen",
            next_command=f"--patch-stride {length}",
        )
    if typed.get("num_expert_layers") not in (None, 1):
        raise ConfigError(
            f"--num-expert-layers {typed['num_expert_layers']}: the notes stack so many mixtures "
            "behind one attention; Time-MoE has one in each layer",
            next_command="--num-expert-layers 1, and --n-decoder-layers for depth",
        )
    fp32 = next((name for name in ("no_amp", "no_bf16") if typed.get(name)), None)
    if fp32 and ("train.precision" in told.pinned or typed.get("attn_backend") == "cudnn"):
        other = "--set train.precision" if "train.precision" in told.pinned else "cudnn, for bf16,"
        raise ConfigError(
            f"--{fp32.replace('_', '-')} is fp32, and {other} says otherwise",
            next_command="take one of the two off",
        )
    for name in ("steps_per_epoch", "epochs"):
        if typed.get(name) is not None and typed[name] < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} {typed[name]}: expected 1 or more",
                next_command="--set train.steps=0 scores a model without training it",
            )


def _read_table(typed: Typed, *, defaults: bool) -> Values:
    """Return what each flag of the table says by itself."""
    values: Values = {}
    for flag in FLAGS:
        value = typed.get(flag.parameter)
        if value is not None and flag.convert is not None:
            value = flag.convert(value)
        if value is None and defaults:
            value = flag.default
        if value is not None:
            values |= dict.fromkeys(flag.keys, value)
    return values


def _set_steps(values: Values, typed: Typed, *, is_resume: bool) -> None:
    per_epoch, epochs = typed.get("steps_per_epoch"), typed.get("epochs")
    if is_resume and per_epoch is None:
        values.pop("train.steps", None)
        if epochs is not None:
            raise ConfigError(
                f"--epochs {epochs} without --steps-per-epoch: a run does not keep its epochs",
                next_command="add --steps-per-epoch N",
            )
        return
    values["train.steps"] = (per_epoch or NOTES_STEPS) * (epochs or 1)


def _set_patch(values: Values, typed: Typed, remarks: list[str]) -> None:
    values.pop("model.patch_len", None)
    if typed.get("patch"):
        values["model.patch_len"] = _patch_len(typed)
        if typed.get("patch_len") is None:
            remarks.append(f"--patch: patches of {NOTES_PATCH} points, the notes' default")


def _patch_len(typed: Typed) -> int:
    length: int | None = typed.get("patch_len")
    return NOTES_PATCH if length is None else length


def _set_intervals(values: Values) -> None:
    """Fill in intervals that fire within the run."""
    for key, every in INTERVALS.items():
        if key != "eval.every":
            values.setdefault(key, min(every, values["train.steps"]))


def _set_evaluation(values: Values, pinned: AbstractSet[str]) -> None:
    """Validate where something is held out, and on as much as the notes do."""
    has_ood = bool({"data.ood_path", "data.ood_include"} & (values.keys() | pinned))
    has_val = values["data.val_split"] > 0 or "data.val_split" in pinned
    every = min(INTERVALS["eval.every"], values["train.steps"])
    if values.setdefault("eval.every", every if has_val or has_ood else 0) == 0:
        return
    values.setdefault("eval.max_batches", NOTES_BATCHES)
    if has_ood:
        values.setdefault("eval.ood_max_batches", NOTES_BATCHES)


def _tell_widths(typed: Typed, remarks: list[str], *, is_resume: bool) -> None:
    widths = [typed.get("d_ff"), typed.get("d_expert")]
    if any(widths):
        fewer = " and ".join(f"{2 * width // 3}" for width in widths if width)
        remarks.append(
            "experts are SwiGLU, with three matrices; the notes' had two: --d-ff and --d-expert "
            f"of {fewer} give as many weights"
        )
    elif not is_resume:
        remarks.append(
            "experts are as wide as Time-MoE's: --d-ff is 4 x --hidden-size and --d-expert is "
            "--d-ff / --k; the notes' default was --hidden-size / 2"
        )


def _set_data(values: Values, typed: Typed, told: Told, remarks: list[str]) -> None:
    """Find the series, where the notes' folder is another of ours too."""
    given, ood = typed.get("dataset_path"), typed.get("ood_val_dataset_path")
    for flag, path in (("--dataset-path", given), ("--ood-val-dataset-path", ood)):
        if path == "":
            raise ConfigError(f"{flag} is empty", next_command=f"a path for {flag}")
    values.pop("data.path", None)
    values.pop("data.ood_path", None)
    source = _set_source(values, given, told, remarks)
    if ood is not None:
        _set_ood(values, ood, given, source, told.home)


def _set_source(values: Values, given: str | None, told: Told, remarks: list[str]) -> _Source:
    """Decide what is trained on."""
    if "data.source" in told.pinned or "data.path" in told.pinned:
        if given is not None:
            remarks.append(f"--dataset-path {given} is not read: --set says where the data is")
        return _Source.OTHER
    if given is None:
        return _Source.OTHER
    if os.path.exists(os.path.expanduser(given)):
        values["data.path"] = _absolute(given)
        return _Source.PATH
    rest = _find_rest(given)
    hub = told.home / "data" / "time300b"
    if rest is not None and _has_data(hub / rest):
        remarks.append(f"{given} is not here: read from {hub}, where `tsx data download` puts it")
        values |= {"data.path": None, "data.source": "time300b"}
        if rest != Path():
            values["data.include"] = [_to_glob(rest)]
        return _Source.TIME300B
    there = f", nor is Time-300B at {hub}" if rest is not None else ""
    raise ConfigError(
        f"--dataset-path {given}: no such file or folder{there}",
        next_command="tsx data download --partition-set debug, or add --set data.source=demo",
    )


def _set_ood(values: Values, ood: str, given: str | None, source: _Source, home: Path) -> None:
    """Decide what is scored apart: a path, or a part of the corpus that is trained on."""
    if os.path.exists(os.path.expanduser(ood)):
        values["data.ood_path"] = _absolute(ood)
        return
    rest = _find_rest(ood, below=given)
    hub = home / "data" / "time300b"
    if rest not in (None, Path()) and (
        source is _Source.OTHER or (source is _Source.TIME300B and _has_data(hub / rest))
    ):
        values["data.ood_include"] = [_to_glob(rest)]
        return
    wanted = "finance" if rest is None else str(rest)
    what = "--partition-set finance" if wanted == "finance" else f"--partitions {wanted}"
    where = f" --time300b-dir {given}" if source is _Source.PATH else ""
    raise ConfigError(
        f"--ood-val-dataset-path {ood}: no such file or folder",
        next_command=f"tsx data download {what}{where}",
    )


def _find_rest(path: str, *, below: str | None = None) -> Path | None:
    """Return what of a path lies below the notes' folder, or below another; None outside."""
    if below is not None and Path(path).is_relative_to(below):
        return Path(path).relative_to(below)
    parts = Path(path).parts
    if NOTES_FOLDER not in parts:
        return None
    return Path(*parts[parts.index(NOTES_FOLDER) + 1 :])


def _to_glob(rest: Path) -> str:
    """Return the glob of all data sets below a domain, or of one data set."""
    name = glob.escape(rest.as_posix())
    return f"{name}/*" if len(rest.parts) == 1 else name


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _has_data(folder: Path) -> bool:
    """Return whether a data set lies there."""
    from tsx.data.catalog import iter_paths

    return folder.is_dir() and next(iter_paths(folder), None) is not None
