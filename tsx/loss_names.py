"""What anybody's program calls its losses and scores, and which way they improve. Pure.

Our trainer writes "train/loss" and "val/loss"; other programs write "loss", "val_loss",
"eval/loss" and so on. Readers look a loss up here, so that every run shows one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

TRAIN_LOSSES = ("train/loss", "train_loss", "training/loss", "training_loss", "loss")
VAL_LOSSES = (
    *("val/loss", "val_loss", "valid/loss", "valid_loss", "validation/loss", "validation_loss"),
    *("eval/loss", "eval_loss", "test/loss", "test_loss"),
)

_SPLIT = re.compile(r"(train|training|val|valid|validation|eval|test|ood)[/_](.+)")
_LOWER = {
    *("loss", "nll", "error", "err", "perplexity", "ppl", "bpb", "bpc", "wer", "cer", "fid"),
    *("mae", "mse", "rmse", "mape", "smape", "mase", "crps"),
}
_HIGHER = {"acc", "accuracy", "f1", "auc", "auroc", "precision", "recall", "bleu", "rouge", "map"}


class SplitKey(NamedTuple):
    """A metric key taken apart; `split` is empty where the key names none."""

    split: str
    quantity: str


def split_key(key: str) -> SplitKey:
    """Return which data a key's value is of, and what it measures: "val_loss" is val, loss."""
    found = _SPLIT.fullmatch(key)
    return SplitKey(found[1], found[2]) if found else SplitKey("", key)


def find_first(names: Collection[str], known: Collection[str]) -> str | None:
    """Return the first of some names that is known, in the order of the names."""
    return next((name for name in names if name in known), None)


def find_value(names: Collection[str], values: Mapping[str, float]) -> float | None:
    """Return the value of the first of some names that has one, None where none has."""
    name = find_first(names, values)
    return None if name is None else values[name]


def find_sign(quantity: str) -> int:
    """Return -1 where a quantity improves downwards, 1 where upwards, 0 where nobody can tell."""
    words = set(re.split(r"[^a-z0-9]+", quantity.lower()))
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    return higher - lower
