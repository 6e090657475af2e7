"""What must be said before runs are compared: where they did not do the same task. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
_LOSS_KEYS = ("model.horizons", "model.huber_delta", "model.aux_loss_weight", "model.aux_reduction")
_PATCH = "model.patch_len"
# In tokens, or averaged over horizons that are counted in tokens: another unit per patch length.
_PER_TOKEN = ("loss", "pred", "aux", "mae", "mse", "toks_per_sec")


def list_warnings(details: Sequence[RunDetail]) -> list[str]:
    """Return one plain line for each way in which the runs did not do the same task."""
    warnings = []
    data = _list_data_differences(details)
    if data:
        warnings.append(f"not the same data: {'; '.join(data)}")
    smoke = {detail.run.smoke for detail in details}
    if len(smoke) > 1:
        small = ", ".join(
            detail.run.name or detail.run.id for detail in details if detail.run.smoke
        )
        warnings.append(f"not the same size: {small} ran with --smoke, the others in full")
    if differs_in_tokens(details):
        lengths = " | ".join(_show(detail, _PATCH) for detail in details)
        warnings.append(
            f"not the same tokens: {_PATCH} {lengths}; train/loss and every value per token are "
            "left out, val/mse_h* compare the same points"
        )
    loss = _list_key_differences(details, _LOSS_KEYS)
    if loss:
        warnings.append(f"not the same loss: {'; '.join(loss)}")
    return warnings


def differs_in_tokens(details: Sequence[RunDetail]) -> bool:
    """Return whether the runs cut their series into tokens of different lengths."""
    return len({_show(detail, _PATCH) for detail in details}) > 1


def is_per_token(key: str) -> bool:
    """Return whether a metric means something else for another patch length."""
    split, _, quantity = key.partition("/")
    return split in ("train", "val", "ood") and quantity in _PER_TOKEN


def _list_data_differences(details: Sequence[RunDetail]) -> list[str]:
    """Return what differs in the series the runs read and in how they cut them."""
    readers: list[tuple[str, Callable[[RunDetail], str]]] = [
        ("source", lambda detail: detail.run.data_source),
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
