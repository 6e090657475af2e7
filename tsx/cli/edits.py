"""What `tsx tag`, `tsx note` and `tsx rename` share: texts that hold, and one edit of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tsx.cli import output

if TYPE_CHECKING:
    from registry.edit import Words
    from registry.events import Edited

MAX_NAME = 200  # characters; a name or a tag stands in one line of a table
MAX_NOTE = 100_000  # characters; a note is read by people, and comes with every list of runs


def edit(
    reference: str, change: Callable[[Words], Edited | None], *, said: str, as_json: bool
) -> None:
    """Change a run's words, and print its row as JSON or one line that says what was done.

    Raises:
        UnknownRun: none or several runs answer to the reference.
        StoreError: registry or journal cannot be written; nothing was changed.
    """
    from registry.connection import find_url
    from registry.edit import edit_run
    from registry.home import find_home
    from tsx.cli.reading import open_reader, to_plain_run

    with open_reader() as reader:
        run = reader.get_run(reference)
        changed = edit_run(find_home(), find_url(find_home()), run.id, change)
        run = reader.get_run(run.id)
    if as_json:
        output.json(to_plain_run(run))
    else:
        output.talk(f"run {run.id} {run.name}: {said if changed else 'nothing to change'}")
        output.talk(f"next: tsx show {run.id}")


def check_line(text: str, what: str) -> str:
    """Return a name or a tag without the space around it.

    Raises:
        ConfigError: it is empty, too long, or holds what a terminal acts on.
    """
    from tsx.errors import ConfigError

    kept = text.strip()
    if not kept:
        raise ConfigError(f"the {what} {text!r} is empty", next_command=f"a {what} that says more")
    _check(kept, what, MAX_NAME)
    return kept


def check_note(text: str) -> str:
    """Return a note without the space around it; line breaks and tabs are part of it.

    Raises:
        ConfigError: it is too long, or holds what a terminal acts on.
    """
    _check(text.replace("\n", " ").replace("\t", " "), "note", MAX_NOTE)
    return text.strip()


def _check(text: str, what: str, most: int) -> None:
    """Raise ConfigError for a text that is too long or hostile to a terminal."""
    from tsx.errors import ConfigError

    shown = output.clean(text, limit=60)
    if len(text) > most:
        raise ConfigError(
            f"a {what} of {len(text):,} characters ({shown}); at most {most:,}",
            next_command=f"a shorter {what}; long texts belong into a file",
        )
    if output.clean(text, limit=len(text)) != text:
        raise ConfigError(
            f"the {what} {shown} holds control characters, which would act on terminals",
            next_command=f"the same {what} without them",
        )
