"""Planted faults and healthy counterparts: what one is, how it is run, and the table of all.

A plant is a tiny training loop with one known fault in it and a proof, by plain torch, that the
fault is there. It knows of no detector. A loop is made of what an ordinary user's loop is made of,
and hands each of its losses to `run.compute`, so that anything with `watch`, `compute` and `log`
can look at it.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HEAD = ("name", "kind", "architecture", "mechanism", "module", "line", "story")


class Run(Protocol):
    """What a loop asks of a run."""

    def watch(self, model: nn.Module, optimizer: Optimizer, **declared: Any) -> None: ...
    def compute(self, fn: Callable[..., Any], *args: Any) -> Any: ...
    def log(self, values: dict[str, float], step: int) -> None: ...


@dataclass
class Step:
    """What was seen of one step from outside."""

    losses: list[float] = field(default_factory=list)  # one per call of compute
    batches: list[tuple[Any, ...]] = field(default_factory=list)
    logged: dict[str, float] = field(default_factory=dict)
    has_finite_grads: bool = True

    @property
    def is_finite(self) -> bool:
        return self.has_finite_grads and all(math.isfinite(loss) for loss in self.losses)


class PlainRun:
    """Calls what it is given and keeps what went through; finds nothing."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def watch(self, model: nn.Module, optimizer: Optimizer, **declared: Any) -> None:
        pass

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        loss = fn(*args)
        self.steps[-1].losses.append(float(loss.detach()))
        self.steps[-1].batches.append(tuple(copy_value(value) for value in args))
        return loss

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps[-1].logged.update(values)


def copy_value(value: Any) -> Any:
    """Return a copy of a tensor, anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


@dataclass
class Loop:
    """A user's loop: what it has at hand, and what one step of it does.

    Attributes:
        model: what is trained.
        optimizer: or several, stepped in order.
        batch: step (the first is 1) to what `loss` takes.
        loss: the function that goes to `run.compute`.
        clip: largest gradient norm; 0 is no clipping.
        declares: what the user tells `run.watch` beside model and optimizer; `fixed_batch=True`
            says that one batch is repeated on purpose.
        initial: parameters and buffers before the first step, set by `play`.
        seen: what `play` saw, step by step.
    """

    model: nn.Module
    optimizer: Optimizer | list[Optimizer]
    batch: Callable[[int], tuple[Any, ...]]
    loss: Callable[..., Tensor]
    clip: float = 0.0
    scheduler: Any = None
    declares: dict[str, Any] = field(default_factory=dict)
    initial: dict[str, Tensor] = field(default_factory=dict)
    seen: list[Step] = field(default_factory=list)

    @property
    def optimizers(self) -> list[Optimizer]:
        """Every optimizer, in the order in which they step."""
        return self.optimizer if isinstance(self.optimizer, list) else [self.optimizer]

    def start(self, run: Run, **declared: Any) -> None:
        """Show model and optimizers to the run."""
        for optimizer in self.optimizers:
            run.watch(self.model, optimizer, **(declared | self.declares))

    def step(self, run: Run, step: int) -> None:
        """Take one step; plants override what they need."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = run.compute(self.loss, *self.batch(step))
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.update()
        run.log({"loss": float(loss.detach())}, step=step)

    def update(self) -> None:
        """Step every optimizer and the scheduler."""
        for optimizer in self.optimizers:
            optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One planted fault.

    Attributes:
        name: unique slug.
        kind: the finding that should come of it.
        severity: of that finding: info, warning or error.
        architecture: embedded (tsx's own model), conv, recurrent, attention, mlp, moe, vae.
        module: name in `model.named_modules()` of the guilty module: the innermost one whose
            forward runs the guilty line; of several alike the first. "" is the root, or none.
        marker: the comment at the end of the guilty line, "" where no line is guilty.
        mechanism: slug of the true cause.
        also: mechanisms that are right answers too: a nearer cause of the same fault.
        story: what a user sees and what it truly is.
        build: makes the loop, from torch's seed 0.
        proof: takes the loop after its steps and asserts that the fault is there.
        steps: after how many of them it shows; a value that is not finite shows at this very one.
        causal: the user declares the model causal. False says nothing; a model that may look
            ahead on purpose has `causal=False` in its loop's `declares`.
        blind: written after reports of users of other code, listed in the story.
        slow: takes more than a second.
        raises: the text of the error that the last step ends with.
        warns: the start of a warning that torch gives, once a process.
        config, patch: of an embedded plant, for a run of the real trainer: changes of the config
            as `section__key`, and what replaces one piece while it is built and run.
        path: of the file it stands in, set by `list_plants`.
    """

    name: str
    kind: str
    architecture: str
    mechanism: str
    story: str
    build: Callable[[], Loop]
    proof: Callable[[Any], None]
    also: tuple[str, ...] = ()
    module: str = ""
    marker: str = ""
    severity: str = "warning"
    steps: int = 3
    causal: bool = False
    blind: bool = False
    slow: bool = False
    raises: str = ""
    warns: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    patch: Callable[[], AbstractContextManager[Any]] | None = None
    path: str = ""

    @property
    def line(self) -> int:
        """Number of the guilty line in the file at `path`, 0 where there is none."""
        if not self.marker:
            return 0
        lines = (ROOT / self.path).read_text(encoding="utf-8").splitlines()
        found = [number for number, text in enumerate(lines, 1) if text.endswith(self.marker)]
        assert len(found) == 1, f"{self.path}: '{self.marker}' ends {len(found)} lines"
        return found[0]


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """A loop in which nothing is wrong, however odd it looks.

    Attributes:
        name: unique slug.
        architecture: as in Plant.
        looks: what might be taken for a fault, and why it is none.
        build: makes the loop, from torch's seed 0.
        proof: takes the loop after its steps; asserts that it trains as it should.
        steps: how many.
        causal: as in Plant.
        slow: takes more than a second.
    """

    name: str
    architecture: str
    looks: str
    build: Callable[[], Loop]
    proof: Callable[[Any], None]
    steps: int = 30
    causal: bool = False
    slow: bool = False
    path: str = ""


@contextmanager
def seeded() -> Iterator[None]:
    """Start every generator from 0 and leave the caller's as they were, on one thread."""
    held = random.getstate(), np.random.get_state(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            random.setstate(held[0])
            np.random.set_state(held[1])
            torch.set_num_threads(held[2])


def play(plant: Plant | Healthy, *, steps: int | None = None, run: Any = None) -> Loop:
    """Build a loop and take its steps; a run of one's own sees all that PlainRun would."""
    with seeded(), warnings.catch_warnings():
        if isinstance(plant, Plant) and plant.warns:
            warnings.filterwarnings("always", message=plant.warns)
        loop = begin(plant, run := run or PlainRun())
        for step in range(1, (plant.steps if steps is None else steps) + 1):
            advance(loop, run, step, error=find_error(plant, step))
    return loop


def begin(plant: Plant | Healthy, run: Any) -> Loop:
    """Build a loop and show it to the run."""
    loop = plant.build()
    state = [*loop.model.named_parameters(), *loop.model.named_buffers()]
    loop.initial = {name: tensor.detach().clone() for name, tensor in state}
    loop.start(run, **({"causal": True} if plant.causal else {}))
    loop.seen = getattr(run, "steps", [])
    return loop


def find_error(plant: Plant | Healthy, step: int) -> str:
    """Return the text of the error that a step ends with, "" for none."""
    return plant.raises if isinstance(plant, Plant) and step == plant.steps else ""


def advance(loop: Loop, run: Any, step: int, *, error: str = "") -> None:
    """Take one step and note whether its gradients are finite."""
    if isinstance(run, PlainRun):
        run.steps.append(Step())
    try:
        loop.step(run, step)
    except RuntimeError as caught:
        if not error or error not in str(caught):
            raise
    else:
        assert not error, f"step {step} should have raised '{error}'"
    if isinstance(run, PlainRun):
        grads = [p.grad for p in loop.model.parameters() if p.grad is not None]
        run.steps[-1].has_finite_grads = all(bool(grad.isfinite().all()) for grad in grads)


def list_plants() -> list[Plant]:
    """Return every plant, family by family."""
    return [plant for path, module in _iter_families("plants") for plant in _at(path, module)]


def list_healthy() -> list[Healthy]:
    """Return every healthy loop, family by family."""
    return [loop for path, module in _iter_families("healthy") for loop in _at(path, module)]


def _iter_families(folder: str) -> Iterator[tuple[str, Any]]:
    for path in sorted((HERE / folder).glob("*.py")):
        where = path.relative_to(ROOT)
        yield where.as_posix(), importlib.import_module(".".join(where.with_suffix("").parts))


def _at(path: str, module: Any) -> list[Any]:
    return [dataclasses.replace(entry, path=path) for entry in module.ENTRIES]


def write_table() -> str:
    """Return the table of the README."""
    rows = [
        (
            f"{plant.name}{' (blind)' if plant.blind else ''}",
            plant.kind,
            plant.architecture,
            plant.mechanism,
            plant.module,
            f"{Path(plant.path).name}:{plant.line}" if plant.marker else "",
            plant.story,
        )
        for plant in list_plants()
    ]
    healthy = [(h.name, h.architecture, Path(h.path).name, h.looks) for h in list_healthy()]
    return "\n".join(
        [_draw(HEAD, rows), "", _draw(("healthy", "architecture", "file", "looks"), healthy)]
    )


def _draw(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines
    )
