"""`tsx dashboard`: watch runs in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from registry.queries import Reader


def command() -> None:
    """Watch and compare runs in the terminal."""
    import sys

    from tsx.cli import output
    from tsx.errors import ConfigError

    # Keys come from stdin; Textual draws on stderr; stdout is where a person looks.
    if not all(output.is_terminal(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise ConfigError(
            "the dashboard needs a terminal on stdin, stdout and stderr", next_command="tsx runs"
        )
    from registry.connection import find_home, find_url
    from tsx.dashboard.app import DashboardApp

    home = find_home()
    url = find_url(home)

    def open_reader() -> Reader:
        from registry.queries import Reader

        return Reader.open(url)

    def recover() -> object:
        from registry.recover import recover

        return recover(home, url)

    file = find_file(url)
    place = shorten(file) if file else url.partition("://")[0]
    DashboardApp(open_reader, place=place, recover=recover, file=file).run()


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
