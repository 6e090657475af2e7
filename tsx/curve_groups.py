"""Which metric keys share a chart, and what it is called. Pure; standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from registry.views import Series
from tsx.chart import Curve
from tsx.loss_names import TRAIN_LOSSES, VAL_LOSSES, find_first, split_key
from tsx.text import format_value

_SPLITS = ("train", "val", "ood")
_FIRST = ("loss", "pred", "aux", "mfu", "toks_per_sec", "lr", "grad_norm", "mae", "mse")


@dataclass(frozen=True, slots=True)
class Group:
    """Curves that are read together: (name in the legend, key) pairs under one title."""

    title: str
    members: tuple[tuple[str, str], ...]


_AUX = Group("aux", (("train", "train/aux"), ("val", "val/aux")))
_MFU = Group("mfu %", (("train", "train/mfu"),))
_SPEED = Group("tokens/s", (("train", "train/toks_per_sec"),))


def group_keys(keys: Iterable[str]) -> list[Group]:
    """Return groups for all keys: one per quantity over its splits, one per router measure.

    The order is that in which a run is read: losses, speed, optimisation, errors, router, system.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        title, name = _classify(key)
        found.setdefault(title, []).append((name, key))
    groups = [Group(title, tuple(sorted(found[title], key=_member_rank))) for title in found]
    return sorted(groups, key=lambda group: _group_rank(group.title))


def find_loss_group(keys: Collection[str]) -> Group:
    """Return the losses of a run, whatever its program calls them; no members where it has none."""
    found = (
        ("train", find_first(TRAIN_LOSSES, keys)),
        ("val", find_first(VAL_LOSSES, keys)),
        ("ood", find_first(("ood/loss",), keys)),
    )
    return Group("loss", tuple((name, key) for name, key in found if key is not None))


def list_overview_groups(keys: Collection[str]) -> list[Group]:
    """Return the three groups that tell most of a run: loss, aux and speed.

    Where a program records no aux and no speed, the groups that are read next stand in for them;
    where it records no more, they are empty.
    """
    loss = find_loss_group(keys)
    speed = _SPEED if "train/mfu" not in keys else _MFU
    chosen = [Group(g.title, tuple(m for m in g.members if m[1] in keys)) for g in (_AUX, speed)]
    used = {key for group in (loss, *chosen) for _, key in group.members}
    if len(used) == len(loss.members):
        others = group_keys(key for key in keys if key not in used)
        chosen = [*others[:2], *chosen][:2]
    return [Group(loss.title, loss.members[:2]), *chosen]


def make_curves(group: Group, series: Mapping[str, Series]) -> list[Curve]:
    """Return the curves of a group, each named with its last value."""
    return [
        Curve(f"{name} {format_value(held.values[-1])}", held.steps, held.values)
        for name, key in group.members
        if (held := series.get(key)) is not None and len(held)
    ]


def _classify(key: str) -> tuple[str, str]:
    """Return (title of the chart, name in its legend) of a key."""
    router = re.fullmatch(r"router/layer(\d+)/(.+)", key)
    if router:
        return f"router {router[2].replace('_', ' ')}", f"layer {router[1]}"
    split, quantity = split_key(key)
    if not split:
        family, _, rest = key.partition("/")
        return key, rest or family
    horizon = re.fullmatch(r"(mse|mae)_(h\d+)", quantity)
    if horizon:
        return f"{split} {horizon[1]} by horizon", horizon[2]
    return quantity, split


def _member_rank(member: tuple[str, str]) -> tuple[int, int, str]:
    """Order members: splits as a run meets them, numbers by size, the rest by name."""
    name = member[0]
    number = re.search(r"\d+", name)
    split = _SPLITS.index(name) if name in _SPLITS else len(_SPLITS)
    return split, int(number[0][:9]) if number else 0, name


def _group_rank(title: str) -> tuple[int, str]:
    """Order groups: the ones everybody looks at first, then errors, router, system."""
    if title in _FIRST:
        return _FIRST.index(title), title
    families: list[Callable[[str], bool]] = [
        lambda text: "by horizon" in text,
        lambda text: "/" not in text and not text.startswith("router"),
        lambda text: text.startswith("router"),
    ]
    place = next((n for n, belongs in enumerate(families) if belongs(title)), len(families))
    return len(_FIRST) + place, title
