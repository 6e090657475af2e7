"""`tsx run` of a search: which one is meant, what is told while it runs, and its table."""

from __future__ import annotations

import math
import re
import sys
import time
from typing import TYPE_CHECKING

from registry.events import Event, Finding, Metrics, RunPrepared, Severity, Status
from tsx.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from recipes.loader import Plan
    from recipes.search import Search
    from tsx.config import RunConfig
    from tsx.launch.exit_reason import Ending
    from tsx.launch.plan import RunPlan
    from tsx.launch.search import Trial

_BUDGET = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {"": 2**30, "gib": 2**30, "mib": 2**20, "gb": 10**9, "mb": 10**6}


def parse_budget(text: str) -> float:
    """Return the GiB of "8GiB", "8 GB", "512MiB" or "8"; a plain number is GiB.

    Raises:
        ConfigError: anything else, 0, and less than a process can live with.
    """
    found = _BUDGET.fullmatch(text)
    scale = _UNITS.get(found[2].lower()) if found else None
    gib = float(found[1]) * scale / 2**30 if found and scale else 0.0
    from tsx.config import MIN_BUDGET_GIB
    from tsx.errors import ConfigError

    if not gib or not math.isfinite(gib):
        raise ConfigError(
            f"--memory-budget {text[:80]!r}: expected an amount of memory in GiB, GB, MiB or MB",
            next_command="--memory-budget 8GiB",
        )
    if gib < MIN_BUDGET_GIB:
        raise ConfigError(
            f"--memory-budget {text[:80]!r}: a process needs more than that for its own threads",
            next_command=f"--memory-budget {MIN_BUDGET_GIB * 1024:g}MiB",
        )
    return gib


def find_search(
    resolved: Plan, config: RunConfig, *, grow: str, start: int | None, limit: int | None
) -> Search | None:
    """Return the search that flags or recipe ask for; None where they ask for plain runs.

    Raises:
        ConfigError: a key that cannot grow, a start above the limit, a sweep, or --start and
            --limit without a search.
    """
    from dataclasses import replace

    from recipes.search import MAX_LIMIT, STEPS, Search
    from recipes.smoke import shrink_search
    from tsx.errors import ConfigError
    from tsx.launch.search import check_key, get_count

    own = resolved.search
    if not grow and own is None:
        if start is None and limit is None:
            return None
        flag = "--limit" if start is None else "--start"
        raise ConfigError(
            f"{flag} is for a search, and nothing is searched here",
            next_command=f"tsx run {resolved.name} --grow train.batch_size",
        )
    if grow:
        check_key(grow, "--grow ")
    if resolved.axes:
        raise ConfigError(
            f"--grow {grow}: recipe {resolved.name!r} sweeps {', '.join(resolved.axes)}",
            next_command=f"--set {next(iter(resolved.axes))}=VALUE",
        )
    if own is None or (grow and grow != own.key):
        steps = STEPS if own is None else own.steps
        here = start or get_count(config, grow)
        own = Search(grow, start=here, limit=max(MAX_LIMIT, here), steps=steps)
    own = shrink_search(own) if resolved.smoke else own
    asked = replace(own, start=start or own.start, limit=limit or own.limit)
    if asked.start > asked.limit:
        raise ConfigError(
            f"the search of {asked.key} starts at {asked.start}, above its limit of {asked.limit}",
            next_command=f"--start {asked.limit} or --limit {asked.start}",
        )
    return asked


def check_flags(asked: Search | None, *, seeds: int, detach: bool, as_json: bool) -> None:
    """Refuse flags that a search has no use for, or a plain run.

    Raises:
        ConfigError: names the flag and the way there.
    """
    from tsx.errors import ConfigError

    if asked is None:
        if as_json:
            raise ConfigError("--json prints a search's table", next_command="tsx show RUN --json")
        return
    if seeds > 1:
        raise ConfigError(
            f"--seeds {seeds}: what fits does not depend on the seed", next_command="--seed N"
        )
    if detach:
        raise ConfigError(
            "--detach: a search decides what it tries next and stays in the foreground",
            next_command="nohup tsx run ... &",
        )


def run(asked: Search, plan: RunPlan, resolved: Plan, *, dry_run: bool, as_json: bool) -> int:
    """Search, then show the table; return the exit status."""
    from registry.connection import find_home, find_url
    from tsx.cli.reading import open_reader
    from tsx.cli.search_table import find_search as read_search
    from tsx.cli.search_table import show, to_plain
    from tsx.errors import ConfigError
    from tsx.launch.provenance import collect
    from tsx.launch.search import TrialBench, make_bracket, plan_search, run_search
    from tsx.launch.supervise import Supervisor
    from tsx.perf.footprint import predict_peak_gib

    try:
        first = plan_search(asked, plan, resolved.overrides)
        bracket = make_bracket(asked, first)
    except ConfigError as error:
        error.next_command = error.next_command or f"tsx recipes show {resolved.name}"
        raise
    if dry_run:
        return _rehearse(asked, first)
    home = find_home()
    view = SearchView(asked)
    bench = TrialBench(
        Supervisor(home, find_url(home), view),
        collect(),
        predict=predict_peak_gib,
        on_host=_is_on_host(first.config),
    )
    output.talk(f"{first.parent}: {_describe(asked)}")
    outcome = run_search(first, asked.key, bracket, bench, view)
    if outcome.reason:
        output.warn(f"the search ended: {outcome.reason}")
    with open_reader() as reader:
        table = read_search(reader, first.parent)
    if table is None:  # stopped before its first trial
        return outcome.exit_code
    if as_json:
        output.json(to_plain(table))
    else:
        show(table)
    largest = f", tsx run {resolved.name} --set {asked.key}={bracket.fits}" if bracket.fits else ""
    output.talk(f"next: tsx show {first.parent}{largest}")
    return outcome.exit_code


class SearchView:
    """Tells of each trial on stderr; on a terminal a bar of its steps below."""

    def __init__(self, asked: Search) -> None:
        self._asked = asked
        self._metrics: dict[str, float] = {}
        self._said: set[str] = set()  # findings and device, the same in every trial
        self._began = self._started = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin_trial(self, trial: Trial) -> None:
        """Say what is tried, and how much is to come at most."""
        from tsx.cli.lines import duration

        self._metrics, self._began = {}, time.monotonic()
        text = f"trial {trial.number}: {self._asked.key}={trial.value}"
        if trial.left is not None:
            each = (self._began - self._started) / max(trial.number - 1, 1)
            text += f"; at most {trial.left} to go, about {duration(each * trial.left)}"
        output.talk(text)

    def end_trial(self, trial: Trial, ending: Ending) -> None:
        """Say whether it fits."""
        from tsx.cli.lines import duration
        from tsx.cli.search_table import find_peak

        took = duration(time.monotonic() - self._began)
        if ending.status is Status.COMPLETED:
            step, peak = self._metrics.get("train/step_time_ms"), find_peak(self._metrics)
            speed = "" if step is None else f"{step:,.1f} ms a step, "
            memory = "" if peak is None else f"{peak:.2f} GiB, "
            output.talk(f"  fits: {speed}{memory}took {took}", style="good")
        elif ending.status is Status.OOM:
            output.talk(f"  out of memory after {took}", style="warning")
        else:
            output.talk(f"  {ending.reason or ending.status}", style="warning")

    def begin(self, run_id: str, name: str, config: RunConfig) -> None:
        """Open the bar of a trial."""
        if not (output.is_terminal(sys.stdout) and output.is_terminal(sys.stderr)):
            return
        from tsx.cli.live import make_progress

        self._progress = make_progress()
        self._task = self._progress.add_task(output.clean(name), total=config.train.steps, loss="")
        self._progress.start()

    def see(self, event: Event) -> None:
        """Keep the numbers; show what the first trial finds out for all of them."""
        from tsx.cli.lines import finding_line

        if isinstance(event, Metrics):
            self._metrics |= event.values
        if isinstance(event, RunPrepared):
            self._say(f"  {event.device_name}, {event.precision}, data {event.data_source}")
        if isinstance(event, Finding) and event.severity is not Severity.INFO:
            self._say(f"  {finding_line(event)}", style="warning")
        step = getattr(event, "step", None)
        if self._progress is not None and self._task is not None and step is not None:
            self._progress.update(self._task, completed=step)

    def tick(self) -> None:
        """Push what was said, so that a pipe or a log has it as it comes."""
        output.flush()

    def finish(self, run_id: str, ending: Ending) -> None:
        """Close the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say(self, text: str, *, style: output.Style = "") -> None:
        """Say what was not said before."""
        if text not in self._said:
            self._said.add(text)
            output.talk(text, style=style)


def _describe(asked: Search) -> str:
    """Say what is searched and how."""
    return (
        f"the largest {asked.key} that fits, from {asked.start} up to {asked.limit}: doubled, then "
        f"halved into the gap; {asked.steps} steps a trial"
    )


def _rehearse(asked: Search, first: RunPlan) -> int:
    """Show what the first trial would do, and what the search is."""
    from registry.connection import find_home
    from tsx.cli.live import PlainView
    from tsx.launch.rehearse import iter_rehearsal
    from tsx.perf.footprint import predict_peak_gib

    view = PlainView(first.config)
    for event in iter_rehearsal(first.config, find_home()):
        view.see(event)
    output.talk(f"the first trial needs {predict_peak_gib(first.config):.1f} GiB by prediction")
    output.talk(f"dry run: {_describe(asked)}; nothing was trained or recorded")
    return 0


def _is_on_host(config: RunConfig) -> bool:
    """Return whether a run shares the machine's memory, rather than having a card of its own."""
    from tsx.cli.env import probe_device
    from tsx.config import Device

    if config.train.device is Device.AUTO:
        return probe_device().get("default") != Device.CUDA
    return config.train.device is not Device.CUDA
