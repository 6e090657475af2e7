"""What every reading command does first: bring dead runs to an end, then open the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.errors import StoreError
    from registry.queries import Reader
    from registry.views import RunRow


def open_reader() -> Reader:
    """Return a reader of the registry in which every run whose process is gone has ended."""
    from registry.connection import find_url
    from registry.home import find_home
    from registry.queries import Reader
    from registry.recover import recover

    home = find_home()
    url = find_url(home)
    recover(home, url, on_fault=_warn_stale)
    return Reader.open(url)


def _warn_stale(error: StoreError) -> None:
    """Say that what is shown may be behind the journals."""
    from tsx.cli import output

    output.warn(f"runs may have ended since, but that cannot be recorded: {error.message}")


def to_plain_run(run: RunRow) -> dict[str, Any]:
    """Return a run as plain data for JSON; times are UTC seconds since the epoch."""
    return {
        "id": run.id,
        "name": run.name,
        "project": run.project,
        "recipe": run.recipe,
        "status": run.status,
        "reason": run.reason,
        "created": run.created,
        "ended": run.ended,
        "step": run.step,
        "steps": run.steps,
        "tags": list(run.tags),
        "parent": run.parent,
        "note": run.note,
        "seed": run.seed,
        "smoke": run.smoke,
        "device": run.device,
        "precision": run.precision,
        "data_source": run.data_source,
        "host": run.host,
        "finding_counts": run.finding_counts,
        "metrics": run.metrics,
    }
