"""The largest value of one config key with which a run fits into memory.

The value doubles from a start until a trial does not fit, then the gap is halved down to the last
value that does. A start that does not fit is halved towards the smallest value there is. Taken for
granted: what fits, fits with less of it too. A trial is a run of its own, in its own process and
in the registry, and has the search's id as its parent. One that is out of memory is an answer; one
that ends in any other way ends the search.

On a host nothing is tried that would not fit by prediction: with too large a run a machine swaps,
or the kernel kills somebody else, long before an allocation fails.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import psutil

from recipes.search import Search
from registry.events import Status
from tsx import config as configs
from tsx.config import RunConfig
from tsx.errors import ConfigError, Exit
from tsx.launch.exit_reason import Ending
from tsx.launch.plan import RunPlan, new_run_id

if TYPE_CHECKING:
    from tsx.launch.provenance import Provenance
    from tsx.launch.supervise import Supervisor

SEARCH_PREFIX = "search-"  # of a search's id
KEY_TAG = "search:"  # before the key that is searched, a tag of every trial
NOT_TRIED = "not-tried"  # tag of a trial that was never started
MAX_STEP = 1024  # between two values of a key that both are valid
FREE_SHARE = 0.9  # of the free memory; the rest is for everybody else on the machine
GIB = 2**30


class Bracket:
    """What is known of the largest value that fits, and which one to try next.

    Args:
        start: the first value tried.
        limit: nothing above is tried.
        step: distance of neighbouring values; every value is `start` plus a multiple of it.
        floor: the smallest value.
    """

    def __init__(self, start: int, limit: int, *, step: int = 1, floor: int = 1) -> None:
        self._start = start
        self._top = start + (limit - start) // step * step
        self._step = step
        self._floor = floor
        self.fits: int | None = None  # the largest value known to
        self.fails: int | None = None  # the smallest known not to

    def find_next(self) -> int | None:
        """Return the value to try next; None once the largest is known."""
        if self.fails is None:
            if self.fits is None:
                return self._start
            doubled = self._start + (2 * self.fits - self._start) // self._step * self._step
            return min(doubled, self._top) if self.fits < self._top else None
        low = self._floor - self._step if self.fits is None else self.fits
        gap = (self.fails - low) // self._step
        return low + gap // 2 * self._step if gap > 1 else None

    def tell(self, value: int, *, fits: bool) -> None:
        """Take in how a trial went."""
        if fits:
            self.fits = value
        else:
            self.fails = value

    def count_left(self) -> int | None:
        """Return how many trials there are to come at most; None while the value still doubles."""
        if self.fails is None:
            return None
        low = self._floor - self._step if self.fits is None else self.fits
        return ((self.fails - low) // self._step - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Trial:
    """One value on its way; `number` counts from 1."""

    number: int
    value: int
    plan: RunPlan
    left: int | None  # trials to come at most, this one included; None while doubling


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a search ended. `reason` is empty when it went its whole way."""

    exit_code: int
    reason: str = ""


class View(Protocol):
    """Who is told of each trial."""

    def begin_trial(self, trial: Trial) -> None:
        """A value is about to be tried."""

    def end_trial(self, trial: Trial, ending: Ending) -> None:
        """A value was tried, or left out."""


class Laboratory(Protocol):
    """Where trials are made."""

    def try_out(self, plan: RunPlan) -> Ending | None:
        """Make one trial; None when a stop was asked for before it began.

        An exit code of OUT_OF_MEMORY says that it does not fit.
        """


def run_search(first: RunPlan, key: str, bracket: Bracket, lab: Laboratory, view: View) -> Outcome:
    """Search until the largest value is known, a trial fails otherwise, or somebody stops it.

    Args:
        first: the trial at the start, from `plan_search`; the others differ in id, name and value.
        key: what is searched.
        bracket: from `make_bracket`.
        lab: where trials are made.
        view: who is told.

    Raises:
        ConfigError: a value in between that no run can have.
    """
    number = 0
    try:
        while (value := bracket.find_next()) is not None:
            number += 1
            plan = first if number == 1 else plan_trial(first, key, value)
            trial = Trial(number, value, plan, bracket.count_left())
            view.begin_trial(trial)
            ending = lab.try_out(plan)
            if ending is None:
                return Outcome(Exit.INTERRUPTED, "interrupted")
            view.end_trial(trial, ending)
            if ending.exit_code not in (Exit.OK, Exit.OUT_OF_MEMORY):
                return Outcome(ending.exit_code, f"the trial of {key}={value} {ending.status}")
            bracket.tell(value, fits=ending.exit_code == Exit.OK)
    except KeyboardInterrupt:  # between two trials
        return Outcome(Exit.INTERRUPTED, "interrupted")
    if bracket.fits is None:
        return Outcome(Exit.OUT_OF_MEMORY, "nothing fits")
    return Outcome(Exit.OK)


def plan_search(asked: Search, plan: RunPlan, kept: Collection[str]) -> RunPlan:
    """Return the plan of the first trial out of that of a plain run.

    A trial is short, is logged once, and neither validates nor writes checkpoints.

    Args:
        asked: what is searched.
        plan: the run that the recipe asks for, its name that of the search.
        kept: "section.key" of what was set by hand, which trials keep.

    Raises:
        ConfigError: a start that no run can have.
    """
    short = {
        "train.steps": asked.steps,
        "train.log_every": asked.steps,  # one average over all the steps that are timed
        "train.checkpoint_every": 0,
        "eval.every": 0,
    }
    settings = {key: value for key, value in short.items() if key not in kept}
    settings[asked.key] = asked.start
    return replace(
        plan,
        run_id=new_run_id(),
        name=_name_trial(plan.name, asked.key, asked.start),
        config=_lay_over(plan.config, settings, _name_place(plan)),
        tags=(*plan.tags, f"{KEY_TAG}{asked.key}"),
        parent=f"{SEARCH_PREFIX}{new_run_id()}",
    )


def plan_trial(first: RunPlan, key: str, value: int) -> RunPlan:
    """Return the plan of another trial of the same search.

    Raises:
        ConfigError: a value that no run can have.
    """
    section, _, name = key.partition(".")
    old = _name_trial("", key, getattr(getattr(first.config, section), name))
    return replace(
        first,
        run_id=new_run_id(),
        name=_name_trial(first.name.removesuffix(old), key, value),
        config=_lay_over(first.config, {key: value}, _name_place(first)),
    )


def make_bracket(asked: Search, first: RunPlan) -> Bracket:
    """Return the values that a search may try, nothing known of them yet.

    Raises:
        ConfigError: the value cannot grow from the start, or cannot double up to the limit.
    """
    step = find_step(first.config, asked.key, asked.start, asked.limit)
    floor = find_floor(first.config, asked.key, asked.start, step)
    doubling = Bracket(asked.start, asked.limit, step=step)
    while (value := doubling.find_next()) is not None:
        try:
            _lay_over(first.config, {asked.key: value}, _name_place(first))
        except ConfigError as error:
            error.next_command = f"--limit {doubling.fits}"
            raise
        doubling.tell(value, fits=True)
    return Bracket(asked.start, asked.limit, step=step, floor=floor)


def check_key(key: str, place: str) -> None:
    """Refuse a key that is no positive whole number.

    Raises:
        ConfigError: names the nearest that is one.
    """
    counts = [name for name, kind in configs.list_keys().items() if _is_count(kind)]
    if key not in counts:
        raise ConfigError(
            f"{place}{key[: configs.MAX_SHOWN]!r} is no positive whole number of the config"
            f"{_offer(key, counts)}",
            next_command="tsx run RECIPE --grow train.batch_size",
        )


def get_count(config: RunConfig, key: str) -> int:
    """Return the value of a key that `check_key` took.

    Raises:
        ConfigError: it is not set and follows other keys.
    """
    section, _, name = key.partition(".")
    value: int | None = getattr(getattr(config, section), name)
    if value is None:
        raise ConfigError(
            f"{key} is not set: there is no value to start from",
            next_command=f"--grow {key} --start N",
        )
    return value


def find_step(config: RunConfig, key: str, start: int, limit: int) -> int:
    """Return the distance from the start to the next value that a run can have.

    A width, say, has to be divisible by the heads.

    Raises:
        ConfigError: there is none, and the limit is above the start.
    """
    if limit <= start:
        return 1
    for step in range(1, min(MAX_STEP, limit - start) + 1):
        if _is_valid(config, key, start + step):
            return step
    raise ConfigError(
        f"{key}={start} cannot grow: no value up to {min(start + MAX_STEP, limit)} is valid",
        next_command=f"--limit {start}",
    )


def find_floor(config: RunConfig, key: str, start: int, step: int) -> int:
    """Return the smallest value, a multiple of `step` below the start, that a run can have."""
    lowest = start - (start - 1) // step * step
    return next(
        value
        for value in range(lowest, start + 1, step)
        if value == start or _is_valid(config, key, value)
    )


class TrialBench:
    """Makes trials through a supervisor; leaves out those too large for the host by prediction.

    Args:
        supervisor: starts and records runs.
        provenance: of the command.
        predict: peak memory of a config in GiB.
        on_host: trials share the machine's memory with everybody else (a CPU; no card of its own).
        read_free: free memory of the machine in GiB.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        provenance: Provenance,
        *,
        predict: Callable[[RunConfig], float],
        on_host: bool,
        read_free: Callable[[], float] | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._provenance = provenance
        self._predict = predict
        self._on_host = on_host
        self._read_free = read_free or read_free_gib

    def try_out(self, plan: RunPlan) -> Ending | None:
        """Make one trial, or record that it was left out and why."""
        reason = self._refuse(plan.config) if self._on_host else ""
        if not reason:
            return next(iter(self._supervisor.run_all([plan], self._provenance)), None)
        ending = Ending(Status.FAILED, reason, Exit.OUT_OF_MEMORY)
        plan = replace(plan, tags=(*plan.tags, NOT_TRIED))
        self._supervisor.leave_out(plan, self._provenance, ending)
        return ending

    def _refuse(self, config: RunConfig) -> str:
        """Return why a run would not fit into what is free now; empty when it would."""
        predicted, free = self._predict(config), self._read_free()
        budget = config.perf.memory_budget_gib  # the run ends there, whatever it needs
        if min(predicted, budget or predicted) <= FREE_SHARE * free:
            return ""
        return (
            f"not tried: {predicted:.1f} GiB by prediction, more than {FREE_SHARE:.0%} of the "
            f"{free:.1f} GiB that are free"
        )


def read_free_gib() -> float:
    """Return the memory that can be had without swapping, within the cgroup's limit."""
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free / GIB
    return min(free, max(0, int(limit) - used) if limit.isdigit() else free) / GIB


def _is_valid(config: RunConfig, key: str, value: int) -> bool:
    """Return whether a run can have this value."""
    try:
        _lay_over(config, {key: value}, "")
    except ConfigError:
        return False
    return True


def _is_count(kind: Any) -> bool:
    """Return whether a declared type takes whole numbers from 1 on and nothing else but None."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    options = [option for option in typing.get_args(kind) if option is not types.NoneType]
    kind = options[0] if is_union and len(options) == 1 else kind
    number, *notes = typing.get_args(kind) or [kind]
    return number is int and any(isinstance(n, msgspec.Meta) and n.ge == 1 for n in notes)


def _lay_over(config: RunConfig, settings: dict[str, int], place: str) -> RunConfig:
    """Return the config with "section.key" values set and checked."""
    plain = configs.to_plain(config)
    for path, value in settings.items():
        section, _, key = path.partition(".")
        plain[section][key] = value
    return configs.decode(plain, place=place)


def _name_place(plan: RunPlan) -> str:
    """Return where a plan's config came from, for errors."""
    return f"recipe {plan.recipe!r}"


def _name_trial(name: str, key: str, value: int) -> str:
    """Return the name of a trial: `-b64` behind that of the search for a batch_size of 64."""
    return f"{name}-{key.partition('.')[2][:1]}{value}"


def _offer(key: str, counts: list[str]) -> str:
    """Return the nearest keys, or two that people search."""
    near = difflib.get_close_matches(key, counts, n=2, cutoff=0.5)
    names = near or ["train.batch_size", "model.hidden_size"]
    return f"; did you mean {' or '.join(map(repr, names))}?"
