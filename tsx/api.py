"""Record any training loop: `tsx.init`, `tsx.log`, `tsx.watch`, `tsx.compute`, `tsx.finish`.

Owns the one current run of a process. Everything can go wrong in `init`, where nothing is lost
yet; from then on training never stops for telemetry (tsx.recording.run). Never imports torch: the
program has, or there is nothing to do with it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from registry.errors import StoreError, UnknownRun
from registry.events import Event
from registry.home import find_home
from tsx.errors import RunClosed, TsxError
from tsx.launch.plan import new_run_id
from tsx.recording.plain_config import to_plain_config
from tsx.recording.run import Run, RunFacts
from tsx.recording.start import begin, go_on, read_labels, read_reference, read_step

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

P = ParamSpec("P")
T = TypeVar("T")

_current: Run | None = None


def init(
    project: str = "",
    name: str = "",
    config: object = None,
    tags: Iterable[str] = (),
    note: str = "",
    resume: str = "",
    step: int | None = None,
    home: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Run:
    """Begin a run, or go on with one, and make it this process's current run.

    A run under way in this process is finished first. A process that `multiprocessing` has spawned
    and that only imports the main module again records nothing.

    Args:
        project: what runs are grouped by.
        name: of the run; default the project, else the name of the script.
        config: a mapping, dataclass, Namespace, or any object or class with attributes. More than
            10,000 values or a million characters are cut, and the cut is told.
        tags: short words to find the run by.
        note: free text.
        resume: id, unique prefix, name or "@last" of a program's run that goes on. Its values after
            `step` become history. Name, tags, note and config replace what it had, where given.
        step: of the checkpoint you go on from; default the last that was recorded.
        home: folder of all runs; default TSX_HOME, else the platform's data folder.
        quiet: say nothing on stderr; so does the environment variable TSX_QUIET.

    Returns:
        The run: a context manager, so that an exception ends it as failed.

    Raises:
        ConfigError: an argument that does not hold, or a run that may not be resumed.
        UnknownRun: no run of that reference.
        StoreError, RegistryError: the registry or the run's folder cannot be written.
    """
    global _current
    quiet = quiet or bool(os.environ.get("TSX_QUIET"))
    place = find_home() if home is None else Path(home).expanduser().absolute()
    with _advice():
        labels = read_labels(project, name, tags, note)
        plain, cut = to_plain_config(config)
        first, reference = read_step(step), read_reference(resume)
        _finish_current()
        if _is_imported_by_spawn():
            facts = RunFacts(new_run_id(), labels.name, labels.project, plain, place)
            _current = Run(facts, _Nowhere(), None, step=first or 0, quiet=True)
            return _current
        if reference:
            _current = go_on(place, reference, labels, plain, first, quiet=quiet)
        else:
            _current = begin(place, labels, plain, first or 0, quiet=quiet)
    what = f"goes on from step {_current.step}" if reference else "is recorded"
    _current.tell(f"{_current.name!r} {what}: tsx show {_current.id}")
    if cut:
        _tell_cut(_current, cut)
    return _current


def log(values: Mapping[str, Any], step: int | None = None) -> None:
    """Record values of one step of the current run; see `Run.log`.

    Raises:
        RunClosed: there is no run, or it is finished.
    """
    get_run("log").log(values, step)


def watch(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    causal: bool | None = None,
    steps: int | None = None,
    intervals: Mapping[str, int] | None = None,
    fixed_batch: bool = False,
    every: int | None = None,
    on_nonfinite: str = "halt",
) -> None:
    """Look at a model as it trains: for what is wrong with it, its data and its loop.

    See `Run.watch` for the arguments.

    Raises:
        RunClosed: there is no run, or it is finished.
    """
    get_run("watch").watch(
        model,
        optimizer,
        causal=causal,
        steps=steps,
        intervals=intervals,
        fixed_batch=fixed_batch,
        every=every,
        on_nonfinite=on_nonfinite,
    )


def compute(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `fn(*args, **kwargs)`, remembered so that it can be replayed; see `Run.compute`.

    Raises:
        RunClosed: there is no run, or it is finished.
    """
    return get_run("compute").compute(fn, *args, **kwargs)


def finish(status: str = "completed", reason: str = "") -> None:
    """End the current run; see `Run.finish`.

    Raises:
        RunClosed: there has been no run.
    """
    get_run("finish").finish(status, reason)


def get_run(caller: str = "get_run") -> Run:
    """Return the current run of this process, finished or not; `caller` is what asks.

    Raises:
        RunClosed: there has been none.
    """
    if _current is None:
        raise RunClosed(f"tsx.{caller} without a run: call tsx.init(project=..., name=...) first")
    return _current


class _Nowhere:
    """A sink that keeps nothing."""

    def emit(self, event: Event) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Hold nothing."""


def _finish_current() -> None:
    """Finish the run under way in this process, if there is one, and say so."""
    run = _current
    if run is not None and run.is_owner and not run.is_finished:
        run.tell("is finished, for tsx.init was called again")
        run.finish()


def _is_imported_by_spawn() -> bool:
    """Return whether a spawned process is importing the main module: the parent has the run."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def _tell_cut(run: Run, cut: str) -> None:
    """Say what was left out of the config, on stderr and as a finding."""
    cause = f"the config is too large to be recorded whole; {cut}"
    fix = "keep what decides the run in config=, and data in files"
    run.warn("config-cut", cause, fix)


@contextmanager
def _advice() -> Iterator[None]:
    """Add what to do next to an error: nobody stands between it and the user's traceback."""
    try:
        yield
    except (TsxError, StoreError) as error:
        if error.next_command:
            error.add_note(f"next: {error.next_command}")
        raise
    except UnknownRun as error:
        near = f"nearest: {', '.join(error.nearest)}; " if error.nearest else ""
        error.add_note(f"{near}next: tsx runs")
        raise
