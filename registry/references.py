"""Which run does the user mean: an id, a unique prefix, a name, "@last" or "@-2"."""

from __future__ import annotations

import difflib
import re

from sqlalchemy import Connection, func, select

from registry.errors import UnknownRun
from registry.schema import runs

_POSITION = re.compile(r"@(?:last|-(\d{1,9}))")
_CONSIDERED = 1000  # newest runs among which near names are looked for
_SHOWN = 3
_MAX_ID_LEN = 64  # of runs.id


def find_key(connection: Connection, reference: str) -> int:
    """Return the key of the run that a reference means.

    Raises:
        UnknownRun: none or several answer to it.
    """
    # Bytes that are no text arrive as lone surrogates; they are recorded, and looked for, as "?".
    reference = reference.encode("utf-8", "replace").decode()
    by_id = select(runs.c.key).where(runs.c.id == reference)
    key = connection.execute(by_id).scalar()
    if key is not None:
        return int(key)
    newest = (runs.c.created.desc(), runs.c.key.desc())
    prefixed: list[tuple[int, str]] = []
    if 0 < len(reference) <= _MAX_ID_LEN:
        # Not LIKE: it ignores case, and has a limit on its pattern.
        begins = func.substr(runs.c.id, 1, len(reference)) == reference
        query = select(runs.c.key, runs.c.id).where(begins)
        prefixed = [(row[0], row[1]) for row in connection.execute(query.order_by(*newest))]
    if len(prefixed) == 1:
        return int(prefixed[0][0])
    by_name = select(runs.c.key).where(runs.c.name == reference).order_by(*newest).limit(1)
    key = connection.execute(by_name).scalar()
    position = _POSITION.fullmatch(reference)
    if key is None and position:
        back = int(position[1] or 1)
        if back > 0:
            query_back = select(runs.c.key).order_by(*newest).offset(back - 1).limit(1)
            key = connection.execute(query_back).scalar()
    if key is not None:
        return int(key)
    if prefixed:
        ids = tuple(row[1] for row in prefixed)
        raise UnknownRun(
            f"{len(ids)} runs begin with {_quote(reference)}",
            reference=reference,
            nearest=ids[:_SHOWN],
        )
    raise unknown(connection, reference)


def unknown(connection: Connection, reference: str) -> UnknownRun:
    """Return the error for a reference that no run answers to, with the nearest ids and names."""
    query = select(runs.c.id, runs.c.name).order_by(runs.c.created.desc(), runs.c.key.desc())
    known = connection.execute(query.limit(_CONSIDERED)).all()
    if not known:
        return UnknownRun(f"no run {_quote(reference)}: the registry has none", reference=reference)
    names = list(dict.fromkeys(text for row in known for text in (row[1], row[0])))
    nearest = difflib.get_close_matches(reference[:200], names, n=_SHOWN, cutoff=0.5)
    return UnknownRun(
        f"no run {_quote(reference)}",
        reference=reference,
        nearest=tuple(nearest) or (known[0][0],),
    )


def _quote(reference: str) -> str:
    """Return what the user typed, in quotes and at a readable length."""
    return repr(reference if len(reference) <= 100 else reference[:100] + "...")
