"""`tsx dashboard`: watch runs in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from registry.queries import Reader


def command() -> None:
    """Watch and compare runs in the terminal."""
    import os
    import sys

    from tsx.cli import output
    from tsx.errors import ConfigError

    # Keys come from stdin; Textual draws on stderr; stdout is where a person looks.
    if not all(output.is_terminal(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise ConfigError(
            "the dashboard needs a terminal on stdin, stdout and stderr", next_command="tsx runs"
        )
    from functools import partial

    from registry.home import find_home
    from tsx.dashboard.app import DashboardApp

    home = find_home()
    named = os.environ.get("TSX_REGISTRY", "")
    file = find_file(named) if named else home / "registry.db"
    scheme, mark, _ = named.partition("://")
    DashboardApp(
        partial(open_reader, home),
        place=shorten(file) if file else scheme if mark else "TSX_REGISTRY",
        recover=partial(end_dead_runs, home),
        file=file,
    ).run()


def open_reader(home: Path) -> Reader:
    """Open the registry; imports SQLAlchemy, so it waits until the first frame stands."""
    from registry.connection import find_url
    from registry.queries import Reader

    return Reader.open(find_url(home))


def end_dead_runs(home: Path) -> object:
    """Bring runs whose process is gone to an end in the registry."""
    from registry.connection import find_url
    from registry.recover import recover

    return recover(home, find_url(home))


def find_file(url: str) -> Path | None:
    """Return the database file of an SQLite URL, None for a server."""
    from pathlib import Path

    head, _, path = url.partition(":///")
    return Path(path.partition("?")[0]) if head.partition("+")[0] == "sqlite" and path else None


def shorten(file: Path) -> str:
    """Return a path with the home folder as ~."""
    from pathlib import Path

    try:
        return f"~/{file.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(file)
