"""A long curve as stretches that are summed up, of which a reader picks those to read whole.

A stretch is a bucket of the rollups (see registry.rollups): neighbours as they were written, with
their smallest and largest value. `registry.series.load_since` reads its points.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from registry import rollups
from registry.series import Place


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring points of a curve, summed up. `min` and `max` are None where none is finite."""

    end: int  # place of its last point in the journal
    first_step: int
    last_step: int
    min: float | None
    max: float | None


def load_stretches(connection: Connection, place: Place, points: int) -> list[Stretch]:
    """Return the full stretches of a curve, each of as many points as there are up to `points`.

    The newest points, which fill none yet, are in no stretch.
    """
    level = rollups.find_top_level(points)
    if level == 0:
        return []
    found = rollups.load_buckets(connection, place.run, place.key, level, after=0)
    return [Stretch(b.seq, b.first_step, b.last_step, b.min, b.max) for b in found]
