"""`tsx note RUN TEXT`: say something about a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.edit import Words
    from registry.events import Edited

EXAMPLES = (
    "tsx note @last 'the one with the new router'",
    "tsx note @last --append 'seed 3 agrees'",
    "tsx note @last ''",
)


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id, prefix, name, @last or @-2.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help='The note; "" takes it away.')],
    append: Annotated[
        bool, typer.Option("--append", help="Add lines to the note instead of replacing it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as JSON.")] = False,
) -> None:
    """Say something about a run.

    Written to the run's journal: a rebuilt registry has it too. The run may be training.
    """
    import time

    from registry.events import Edited
    from tsx.cli.edits import MAX_NOTE, check_note, edit
    from tsx.errors import ConfigError

    said = check_note(text)
    if append and not said:
        raise ConfigError("--append of an empty text", next_command=f"tsx note {run} --append TEXT")

    def change(words: Words) -> Edited | None:
        note = f"{words.note}\n{said}" if append and words.note else said
        if len(note) > MAX_NOTE:
            raise ConfigError(
                f"the note of run {run} would have {len(note):,} characters; at most {MAX_NOTE:,}",
                next_command=f"tsx note {run} TEXT  (replaces it)",
            )
        return Edited(time=time.time(), note=note) if note != words.note else None

    edit(run, change, said="note written" if said else "note taken away", as_json=as_json)
