"""`--smoke`: any recipe in under a minute on two CPU cores, through the same code.

Each size is the smaller of the recipe's and the bound here, so no recipe grows. A key that the
recipe leaves to its default is set to the bound, since the defaults live in tsx.config, which
recipes never import.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeGuard

from recipes.files import Settings
from recipes.search import MIN_STEPS, Search

MAX_RUNS = 2  # of a sweep: enough to see that its axes are applied

HIDDEN_SIZE = 32  # with 2 heads of 16
NUM_HEADS = 2
NUM_LAYERS = 2
NUM_EXPERTS = 4
TOP_K = 2
TOKENS = 64  # of the context; patch_len points each
STEPS = 8
BATCH_SIZE = 8
LOG_EVERY = 2
EVERY = 4  # of validation and of checkpoints
MAX_BATCHES = 2


def shrink(settings: Settings) -> Settings:
    """Return the settings with every size bounded; the input stays as it is."""
    small = {section: dict(keys) for section, keys in settings.items()}
    for section in ("model", "data", "train", "eval", "optim"):
        small.setdefault(section, {})
    _shrink_model(small["model"])
    _shrink_data(small["data"], patch_len=small["model"].get("patch_len", 1))
    _shrink_training(small["train"], small["eval"], small["optim"])
    return small


def shrink_search(search: Search) -> Search:
    """Return the search bounded to a trial at its start and one at twice that."""
    limit = min(search.limit, 2 * search.start)
    return replace(search, limit=max(limit, search.start), steps=min(search.steps, MIN_STEPS))


def _shrink_model(model: dict[str, Any]) -> None:
    """Bound the model; widths keep their ratio to hidden_size, or go back to their default."""
    hidden = model.get("hidden_size")
    if not _is_count(hidden) or hidden > HIDDEN_SIZE:
        for width in ("d_ff", "d_expert"):
            value = model.pop(width, None)
            if _is_count(value) and _is_count(hidden):
                model[width] = max(1, value * HIDDEN_SIZE // hidden)
        model["hidden_size"] = HIDDEN_SIZE
        model["num_heads"] = NUM_HEADS
    _bound(model, "num_layers", NUM_LAYERS)
    _bound(model, "num_experts", NUM_EXPERTS)
    _bound(model, "top_k", min(TOP_K, model["num_experts"]))


def _shrink_data(data: dict[str, Any], *, patch_len: object) -> None:
    """Bound the context to a number of tokens; a multiple of the patch stays one."""
    points = TOKENS * (patch_len if isinstance(patch_len, int) else 1)
    _bound(data, "context_length", points)
    _bound(data, "stride", data["context_length"])


def _shrink_training(
    train: dict[str, Any], evaluate: dict[str, Any], optim: dict[str, Any]
) -> None:
    """Bound the run; what is off stays off."""
    _bound(train, "steps", STEPS)
    _bound(train, "batch_size", BATCH_SIZE)
    _bound(train, "log_every", LOG_EVERY)
    for section, key, bound in (
        (train, "grad_accum_steps", 2),
        (train, "checkpoint_every", EVERY),
        (train, "fixed_batches", 2),
        (optim, "warmup_steps", 2),
        (evaluate, "batch_size", BATCH_SIZE),
    ):
        if section.get(key):
            _bound(section, key, bound)
    if evaluate.get("every") == 0:
        return
    _bound(evaluate, "every", EVERY)
    for key in ("max_batches", "ood_max_batches"):
        evaluate[key] = evaluate.get(key) or MAX_BATCHES  # 0 is all of them
        _bound(evaluate, key, MAX_BATCHES)


def _bound(section: dict[str, Any], key: str, bound: int) -> None:
    """Set the smaller of the key's value and `bound`; a value of a wrong type stays, for decode."""
    value = section.get(key, bound)
    section[key] = min(value, bound) if _is_count(value) else value


def _is_count(value: object) -> TypeGuard[int]:
    """Return whether `value` is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool)
