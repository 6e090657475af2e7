"""`tsx diagnose --checkpoint A [B]`: opens both, measures, says what it means.

Without B a tsx checkpoint is held against its own initialisation; of any other file only what one
file can tell is said.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from registry.events import Finding
from tsx.diagnostics.weights.audit import ClassRow, Weights, measure, summarise
from tsx.diagnostics.weights.findings import list_findings
from tsx.errors import ConfigError
from tsx.trainer.weight_files import (
    HeldWeights,
    StoredWeights,
    as_ours,
    describe_draw,
    draw_initial,
    is_official,
    open_weights,
)

MAX_NAMES = 3  # of tensors that only one side has


@dataclass(frozen=True, slots=True)
class Place:
    """Where weights lie: a path, and which checkpoint where it is a recorded run's folder."""

    path: Path
    which: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found.

    Attributes:
        label: of the weights that were judged.
        other: of what they were compared with, "" where there was nothing.
        step: optimizer steps they have seen; None is unknown.
        remarks: what limits the comparison.
        findings: by class.
        classes: a row each.
    """

    label: str
    other: str
    step: int | None
    remarks: tuple[str, ...]
    findings: tuple[Finding, ...]
    classes: tuple[ClassRow, ...]


def compare_weights(one: Place, other: Place | None) -> Comparison:
    """Return what weights tell, beside others or their initialisation.

    Raises:
        ConfigError: what cannot be read, or two models that share no tensor.
        TsxError: a checkpoint that is not whole.
    """
    with ExitStack() as stack:
        opened = open_weights(one.path, one.which)
        stack.callback(opened.close)
        mine: Weights = opened
        theirs: Weights | None
        remarks: list[str] = []
        if other is None:
            theirs = draw_initial(opened)
            if theirs is None:
                remarks.append(
                    "there is no initialisation to compare with: the file does not say how its "
                    "model was drawn; give a second checkpoint for what moved"
                )
            elif theirs.step == 0 and (caution := describe_draw(opened)):
                remarks.append(caution)
        else:
            second = open_weights(other.path, other.which)
            stack.callback(second.close)
            mine, theirs = _match(opened, second)
        if theirs is not None:
            remarks += _list_missing(mine, theirs)
        measured = measure(mine, theirs)
        return Comparison(
            label=mine.label,
            other="" if theirs is None else theirs.label,
            step=mine.step,
            remarks=tuple(remarks),
            findings=tuple(list_findings(measured, mine, theirs, time=time.time())),
            classes=tuple(summarise(measured)),
        )


def _match(one: StoredWeights, other: StoredWeights) -> tuple[Weights, Weights]:
    """Return both under one set of names: ours, where one of them has the official ones."""
    if one.config is not None and is_official(other):
        return one, as_ours(other, one.config)
    if other.config is not None and is_official(one):
        ours: HeldWeights = as_ours(one, other.config)
        return ours, other
    return one, other


def _list_missing(one: Weights, other: Weights) -> list[str]:
    """Return a remark for tensors that cannot be compared.

    Raises:
        ConfigError: none can.
    """
    shared = {name for name, shape in one.shapes.items() if other.shapes.get(name) == shape}
    if not shared:
        raise ConfigError(
            f"{one.label} and {other.label} have no tensor of one name and shape in common"
        )
    remarks = []
    for label, names in (
        (f"only in {one.label}", one.shapes.keys() - other.shapes.keys()),
        (f"only in {other.label}", other.shapes.keys() - one.shapes.keys()),
        ("of another shape", (one.shapes.keys() & other.shapes.keys()) - shared),
    ):
        if names:
            some = ", ".join(sorted(names)[:MAX_NAMES])
            more = ", ..." if len(names) > MAX_NAMES else ""
            remarks.append(f"{len(names)} tensors are {label}: {some}{more}")
    return remarks
