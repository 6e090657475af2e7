"""`tsx rename RUN NAME`: give a run another name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.edit import Words
    from registry.events import Edited

EXAMPLES = ("tsx rename @last two-experts",)


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id, prefix, name, @last or @-2.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as JSON.")] = False,
) -> None:
    """Give a run another name.

    Written to the run's journal: a rebuilt registry has it too. The run may be training. Several
    runs may have one name; the newest of them answers to it. The id stays.
    """
    import time

    from registry.events import Edited
    from tsx.cli.edits import check_line, edit
    from tsx.errors import ConfigError

    kept = check_line(name, "name")
    if kept.startswith("@"):
        raise ConfigError(
            f"the name {kept!r} begins like a position (@last, @-2)",
            next_command=f"tsx rename {run} {kept.lstrip('@') or 'NAME'}",
        )

    def change(words: Words) -> Edited | None:
        return Edited(time=time.time(), name=kept) if kept != words.name else None

    edit(run, change, said="renamed", as_json=as_json)
