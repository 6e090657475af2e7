"""`tsx tag RUN TAG...`: put tags on a run, or take them off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.edit import Words
    from registry.events import Edited

EXAMPLES = (
    "tsx tag @last baseline paper",
    "tsx tag @last --remove paper",
    "tsx runs --tag baseline",
)

_MAX_TAGS = 100


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id, prefix, name, @last or @-2.")],
    tag: Annotated[list[str] | None, typer.Argument(metavar="TAG", help="To put on.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="TAG", help="To take off; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as JSON.")] = False,
) -> None:
    """Put tags on a run, or take them off.

    Written to the run's journal: a rebuilt registry has them too. The run may be training.
    """
    import time

    from registry.events import Edited
    from tsx.cli.edits import check_line, edit
    from tsx.errors import ConfigError

    added = [check_line(text, "tag") for text in tag or ()]
    removed = [text.strip() for text in remove or ()]
    both = sorted(set(added) & set(removed))
    if both:
        raise ConfigError(f"the tag {both[0]!r} is given to be put on and to be taken off")
    if not added and not removed:
        raise ConfigError("no tag is given", next_command=f"tsx tag {run} TAG")

    def change(words: Words) -> Edited | None:
        missing = [text for text in removed if text not in words.tags]
        if missing:
            held = ", ".join(words.tags) or "none"
            raise ConfigError(
                f"run {run} has no tag {missing[0]!r}; it has: {held}",
                next_command=f"tsx show {run}",
            )
        kept = tuple(text for text in words.tags if text not in removed)
        tags = tuple(dict.fromkeys((*kept, *added)))
        if len(tags) > _MAX_TAGS:
            raise ConfigError(f"run {run} would have {len(tags)} tags; at most {_MAX_TAGS}")
        return Edited(time=time.time(), tags=tags) if tags != words.tags else None

    said = ", ".join([*(f"+{text}" for text in added), *(f"-{text}" for text in removed)])
    edit(run, change, said=f"tags {said}", as_json=as_json)
