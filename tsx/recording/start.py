"""How a run of the user's own program begins, and how it goes on.

Owns what is known of the program (script, command, code, versions) and which runs may be resumed
from a program: those that programs have begun. A recipe's run is `tsx resume`'s to go on with.
"""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from registry.connection import find_url
from registry.events import Edited, Event, RunResumed, RunStarted
from registry.liveness import LockHeld, RunLock
from registry.queries import Reader
from registry.recover import recover
from registry.store import Recorder
from registry.views import RunDetail
from tsx.cli.output import clean
from tsx.errors import ConfigError
from tsx.launch.begin import begin_run
from tsx.launch.plan import new_run_id
from tsx.launch.provenance import collect
from tsx.recording.run import Run, RunFacts

# Libraries whose version matters to a run, where the program has loaded them.
FRAMEWORKS = ("torch", "numpy", "jax", "tensorflow", "keras", "transformers", "lightning")
MAX_NAME = 200  # characters of a name, a project or a tag
MAX_TAGS = 100
MAX_NOTE = 10_000


class Labels(NamedTuple):
    """What the user calls a run; empty is not given."""

    project: str
    name: str
    tags: tuple[str, ...]
    note: str


def read_labels(project: object, name: object, tags: object, note: object) -> Labels:
    """Return the labels of `tsx.init` as text of a bounded length, all but the note in one line.

    Raises:
        ConfigError: tags that are no list of words.
    """
    given = [tags] if isinstance(tags, str) else tags
    if given is None:
        given = []
    if not isinstance(given, Iterable):
        raise ConfigError(
            f"tags={clean(repr(tags), limit=60)} are no words",
            next_command='tsx.init(tags=["baseline"])',
        )
    words = [line for tag in given if (line := _to_line(tag))][:MAX_TAGS]
    text = "" if note is None else str(note)
    return Labels(_to_line(project), _to_line(name), tuple(words), text[:MAX_NOTE])


def read_reference(resume: object) -> str:
    """Return the `resume` of `tsx.init`, "" for a new run.

    Raises:
        ConfigError: no text.
    """
    if resume is None or isinstance(resume, str):
        return resume or ""
    raise ConfigError(
        f"resume={clean(repr(resume), limit=60)} names no run",
        next_command='tsx.init(resume="@last"), or an id or name out of: tsx runs',
    )


def read_step(step: object) -> int | None:
    """Return the `step` of `tsx.init`.

    Raises:
        ConfigError: no whole number from 0 on.
    """
    if step is None:
        return None
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ConfigError(
            f"step={clean(repr(step), limit=60)} is no step: a whole number from 0 on",
            next_command="tsx.init(resume=RUN, step=100)",
        )
    return number


def begin(place: Path, labels: Labels, config: dict[str, Any], step: int, *, quiet: bool) -> Run:
    """Record that a new run exists, and return it.

    Args:
        place: the folder of all runs.
        labels: what the user calls it.
        config: plain data.
        step: the one its first line follows.
        quiet: say nothing on stderr.

    Raises:
        StoreError, RegistryError: its folder or the registry cannot be written.
    """
    origin = collect()
    run_id = new_run_id()
    name = labels.name or labels.project or _find_script_name()
    seed = config.get("seed")
    started = RunStarted(
        time=time.time(),
        run_id=run_id,
        name=name,
        project=labels.project,
        tags=labels.tags,
        note=labels.note,
        parent=os.environ.get("TSX_RUN", "")[:MAX_NAME],  # a program that tsx exec records too
        seed=seed if type(seed) is int and abs(seed) < 2**63 else 0,
        config=config,
        command=tuple(sys.orig_argv),
        cwd=origin.cwd,
        git_commit=origin.git_commit,
        git_branch=origin.git_branch,
        git_diff=origin.git_diff,
        host=origin.host,
        versions=origin.versions | _list_versions(),
        pid=os.getpid(),
    )
    folder = place / "runs" / run_id
    lock, recorder = begin_run(folder, find_url(place), started)
    facts = RunFacts(run_id, name, labels.project, config, folder)
    return Run(facts, recorder, lock, step=step, quiet=quiet)


def go_on(
    place: Path,
    reference: str,
    labels: Labels,
    config: dict[str, Any],
    step: int | None,
    *,
    quiet: bool,
) -> Run:
    """Take a run up again and return it; its values after `step` become history.

    Args:
        place: the folder of all runs.
        reference: id, unique prefix, name, "@last" or "@-2".
        labels: replace those of the run, where given.
        config: plain data, replaces the run's; {} leaves it.
        step: of the checkpoint; None for the last that was recorded.
        quiet: say nothing on stderr.

    Raises:
        UnknownRun: no run of that reference.
        ConfigError: the run is still going, is a recipe's, or is kept elsewhere.
        StoreError: its folder or the registry cannot be written.
    """
    url = find_url(place)
    recover(place, url)
    with Reader.open(url) as reader:
        detail = reader.get_detail(reader.get_run(reference).id)
    run, folder = detail.run, place / "runs" / detail.run.id
    lock = _lock(detail, folder)
    first = run.step if step is None else step
    try:
        recorder = Recorder(folder, url)
        try:
            for event in _list_resume_events(detail, labels, config, first):
                recorder.emit(event)
        except BaseException:
            recorder.close()
            raise
    except BaseException:
        lock.release()
        raise
    facts = RunFacts(run.id, labels.name or run.name, run.project, config or detail.config, folder)
    return Run(facts, recorder, lock, step=first, quiet=quiet)


def _list_resume_events(
    detail: RunDetail, labels: Labels, config: dict[str, Any], step: int
) -> list[Event]:
    """Return what a resume puts into the journal first."""
    now = time.time()
    resumed = RunResumed(
        time=now,
        from_step=step,
        steps=detail.run.steps,
        command=tuple(sys.orig_argv),
        config=config,
        pid=os.getpid(),
    )
    if not (labels.name or labels.tags or labels.note):
        return [resumed]
    name, note, tags = labels.name or None, labels.note or None, labels.tags or None
    return [resumed, Edited(time=now, name=name, note=note, tags=tags)]


def _lock(detail: RunDetail, folder: Path) -> RunLock:
    """Take the lock of a run that a program began.

    Raises:
        ConfigError: it is not a program's to take, or it is taken.
    """
    run = detail.run
    called = f"run {run.id} ({clean(run.name, limit=60)!r})"
    if run.recipe:
        raise ConfigError(
            f"{called} trains the recipe {clean(run.recipe, limit=60)!r}; only tsx goes on with it",
            next_command=f"tsx resume {run.id}",
        )
    if not folder.is_dir():
        raise ConfigError(
            f"{called} is not kept in {folder.parent}",
            next_command="set TSX_HOME, or tsx.init(home=...), to the folder it was recorded in",
        )
    try:
        return RunLock.acquire(folder)
    except LockHeld:
        pid = detail.environment.get("pid")
        raise ConfigError(
            f"{called} is still going, in process {pid} on {clean(run.host, limit=60)}",
            next_command="wait until it ends or stop it, or begin a run of its own: no resume=",
        ) from None


def _to_line(value: object) -> str:
    """Return a label as one line of a bounded length."""
    return "" if value is None else " ".join(str(value)[: 10 * MAX_NAME].split())[:MAX_NAME]


def _find_script_name() -> str:
    """Return what the program is called."""
    script = Path(sys.argv[0] if sys.argv else "")
    if script.stem == "ipykernel_launcher":
        return "notebook"
    name = script.parent.name if script.stem == "__main__" else script.stem
    return name[:MAX_NAME] if name and name != "-c" else "run"


def _list_versions() -> dict[str, str]:
    """Return the versions of the frameworks as they are loaded."""
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in FRAMEWORKS}
    return {name: str(version)[:100] for name, version in loaded.items() if version}
