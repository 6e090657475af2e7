"""What bare `tsx` shows: what is running, what ended last, and what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsx.cli import output

if TYPE_CHECKING:
    from registry.views import RunRow

MAX_ENDED = 5


def show_overview() -> None:
    """Show the runs under way, the last few that ended, and the next commands."""
    from registry.connection import find_home, find_url
    from registry.queries import Reader
    from registry.recover import recover

    home = find_home()
    url = find_url(home)
    recover(home, url)
    with Reader.open(url) as reader:
        running = reader.list_runs(status="running")
        latest = reader.list_runs(limit=MAX_ENDED + len(running))
    ended = [run for run in latest if run.status != "running"][:MAX_ENDED]
    if not latest:
        output.data("No runs yet.")
    if running:
        output.data("running")
        _show_runs(running)
    if ended:
        output.data("ended last")
        _show_runs(ended)
    output.data("")
    for command, purpose in list_next(running, ended):
        output.data(f"  {command:<24}{purpose}")


def list_next(running: list[RunRow], ended: list[RunRow]) -> list[tuple[str, str]]:
    """Return the commands that make sense now, each with what it does."""
    commands = [("tsx run sanity", "train a tiny model on two CPU cores, under 3 minutes")]
    if running:
        commands.insert(0, ("tsx dashboard", "watch it live"))
    if ended and ended[0].status in {"interrupted", "killed", "oom"}:
        commands.insert(0, (f"tsx resume {ended[0].id}", "go on from its last checkpoint"))
    if ended:
        commands.append((f"tsx show {ended[0].id}", "see everything recorded of it"))
    if len(ended) > 1:
        commands.append((f"tsx compare {ended[1].id} {ended[0].id}", "see what made a difference"))
    return [*commands, ("tsx recipes", "see what can be run"), ("tsx --help", "see every command")]


def _show_runs(runs: list[RunRow]) -> None:
    """Show one line per run."""
    step = output.Column("step", right=True)
    columns: list[output.Column | str] = ["id", "name", "recipe", "status", step, "reason"]
    rows = [
        (run.id, run.name, run.recipe, run.status, f"{run.step}/{run.steps}", run.reason)
        for run in runs
    ]
    output.table(columns, rows)
