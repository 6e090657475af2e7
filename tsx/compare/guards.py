"""What must be said before runs are compared: where they did not do the same task. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

from registry.views import RunDetail
from tsx.compare.configdiff import flatten, show_value

_DATA_KEYS = (
    "data.path",
    "data.include",
    "data.exclude",
    "data.context_length",
    "data.stride",
    "data.scaling",
    "data.scaling_scope",
    "data.val_split",
    "data.demo_series",
)
_DATA_NAMES = ("data", "dataset", "data_path", "dataset_path")  # in configs of other programs
_LOSS_KEYS = ("model.horizons", "model.huber_delta", "model.aux_loss_weight", "model.aux_reduction")
_PATCH = "model.patch_len"
_ORIGINS = "eval.origin_stride"
_SCORED = {"val": "eval.max_batches", "ood": "eval.ood_max_batches"}  # and how many batches
# Counted in tokens or summed over every one of them: something else for another patch length.
_PER_TOKEN = {"train": ("loss", "pred", "aux", "toks_per_sec")} | dict.fromkeys(
    _SCORED, ("loss", "aux")
)
# Means over the labels of the scored origins, per horizon too: something else at other origins.
_PER_ORIGIN = ("loss", "pred", "mae", "mse")
_MAX_COUNT = 1 << 31  # a registry may hold any number; nothing that is counted here is larger


def list_warnings(details: Sequence[RunDetail]) -> list[str]:
    """Return one plain line for each way in which the runs did not do the same task."""
    warnings = []
    keys = [set(detail.metrics) for detail in details]
    if all(keys) and not set.intersection(*keys):
        warnings.append("no metric in common: these runs recorded nothing under the same name")
    data = _list_data_differences(details)
    silent = [
        detail.run.name or detail.run.id
        for detail in details
        if detail.metrics and not _name_data(detail)
    ]
    if data:
        warnings.append(f"not the same data: {'; '.join(data)}")
    elif silent:
        said = f"{', '.join(silent)} did not say what it is (config: data)"
        warnings.append(f"not known to be the same data: {said}")
    else:
        warnings += _list_window_warnings(details)
    smoke = {detail.run.smoke for detail in details}
    if len(smoke) > 1:
        small = ", ".join(
            detail.run.name or detail.run.id for detail in details if detail.run.smoke
        )
        warnings.append(f"not the same size: {small} ran with --smoke, the others in full")
    warnings += _list_task_warnings(details)
    loss = _list_key_differences(details, _LOSS_KEYS)
    if loss:
        warnings.append(f"not the same loss: {'; '.join(loss)}")
    return warnings


def list_withheld(details: Sequence[RunDetail], keys: Sequence[str]) -> list[str]:
    """Return those of some metrics that mean something else from run to run."""
    tokens, origins = _differs_in_tokens(details), _differs_in_origins(details)
    return [
        key for key in keys if (tokens and is_per_token(key)) or (origins and is_per_origin(key))
    ]


def is_per_token(key: str) -> bool:
    """Return whether a metric means something else for another patch length."""
    split, _, quantity = key.partition("/")
    return quantity in _PER_TOKEN.get(split, ())


def is_per_origin(key: str) -> bool:
    """Return whether a metric means something else when other origins are scored."""
    split, _, quantity = key.partition("/")
    return split in _SCORED and quantity.partition("_h")[0] in _PER_ORIGIN


def _list_window_warnings(details: Sequence[RunDetail]) -> list[str]:
    """Return what is said of runs that score another number of the same windows."""
    warnings = []
    for split, limit in _SCORED.items():
        counts = [_count_scored_windows(detail, split, limit) for detail in details]
        if len(set(counts) - {None}) > 1:
            said = " | ".join("unknown" if count is None else f"{count:,}" for count in counts)
            warnings.append(
                f"not the same {split} windows: {said} of them; {limit} batches of eval.batch_size "
                "(default train.batch_size) are scored, all windows with 0"
            )
    return warnings


def _count_scored_windows(detail: RunDetail, split: str, limit: str) -> int | None:
    """Return how many windows of a split a run scores; None where it has none or never began."""
    flat, facts = flatten(detail.config), flatten(detail.environment)
    windows, batches = facts.get(f"data.{split}.windows"), flat.get(limit)
    sizes = (flat.get("eval.batch_size"), flat.get("train.batch_size"))
    batch_size = next((size for size in sizes if _is_count(size)), None)
    if not _is_count(windows):
        return None
    return min(windows, batch_size * batches) if batch_size and _is_count(batches) else windows


def _list_task_warnings(details: Sequence[RunDetail]) -> list[str]:
    """Return what is said of runs with other tokens, and of runs scored at other origins."""
    warnings, origins = [], _differs_in_origins(details)
    if _differs_in_tokens(details):
        lengths = " | ".join(_show(detail, _PATCH) for detail in details)
        same = "" if origins else ", val/pred and val/mse_h* compare the same points"
        warnings.append(
            f"not the same tokens: {_PATCH} {lengths}; train/loss and every value per token are "
            f"left out{same}"
        )
    if origins:
        strides = " | ".join(show_value(_find_stride(detail)) for detail in details)
        fair = _find_fair_stride(details)
        remedy = f"; to compare them: tsx run RECIPE --set {_ORIGINS}={fair}" if fair else ""
        warnings.append(
            f"not the same origins: a forecast is scored every {strides} points; the errors of "
            f"val/* and ood/* are left out{remedy}"
        )
    return warnings


def _differs_in_tokens(details: Sequence[RunDetail]) -> bool:
    """Return whether the runs cut their series into tokens of different lengths."""
    return len({_show(detail, _PATCH) for detail in details}) > 1


def _differs_in_origins(details: Sequence[RunDetail]) -> bool:
    """Return whether the runs' errors are over the labels of different origins."""
    return len({_find_stride(detail) for detail in details}) > 1


def _find_stride(detail: RunDetail) -> int | None:
    """Return the points between a run's origins: what its config says, else one per token."""
    flat = flatten(detail.config)
    strides = [flat.get(key) for key in (_ORIGINS, _PATCH)]
    return next((value for value in strides if _is_count(value)), None)


def _find_fair_stride(details: Sequence[RunDetail]) -> int | None:
    """Return points between origins that every run could be scored at, or None."""
    strides = [stride for detail in details if (stride := _find_stride(detail))]
    patches = [flatten(detail.config).get(_PATCH) for detail in details]
    contexts = [flatten(detail.config).get("data.context_length") for detail in details]
    for candidate in (math.lcm(*strides), math.lcm(*filter(_is_count, patches))):
        # A multiple of the strides there are asks the fewest runs to be scored again.
        if all(_is_count(points) and candidate <= points for points in contexts):
            return candidate
    return None


def _is_count(value: object) -> TypeGuard[int]:
    """Return whether a recorded value can be a number of points or windows."""
    return type(value) is int and 0 < value < _MAX_COUNT


def _list_data_differences(details: Sequence[RunDetail]) -> list[str]:
    """Return what differs in the series the runs read and in how they cut them."""
    readers: list[tuple[str, Callable[[RunDetail], str]]] = [
        ("source", _name_data),
        ("fingerprint", lambda detail: str(detail.environment.get("data_fingerprint") or "")),
    ]
    found = []
    for name, read in readers:
        values = [read(detail) for detail in details]
        # A run that died before its data stood has no fingerprint; that says nothing about it.
        if len({value for value in values if value}) > 1:
            found.append(f"{name} {' | '.join(value or 'unknown' for value in values)}")
            break
    return found + _list_key_differences(details, _DATA_KEYS)


def _name_data(detail: RunDetail) -> str:
    """Return what a run read; of another program, what its config calls data or dataset."""
    named = (detail.config.get(name) for name in _DATA_NAMES)
    said = next((name for name in named if isinstance(name, str)), "")
    return detail.run.data_source or said


def _list_key_differences(details: Sequence[RunDetail], keys: Sequence[str]) -> list[str]:
    """Return "key a | b" for each of the config keys on which the runs differ."""
    return [
        f"{key} {' | '.join(values)}"
        for key in keys
        if len(set(values := [_show(detail, key) for detail in details])) > 1
    ]


def _show(detail: RunDetail, key: str) -> str:
    """Return the text of a config value."""
    return show_value(flatten(detail.config).get(key))
