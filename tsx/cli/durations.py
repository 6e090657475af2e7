"""Spans of time as they are typed: 45s, 10m, 2h, 30d."""

from __future__ import annotations

import re

_SPAN = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw])\s*")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def parse_span(text: str, *, flag: str, example: str) -> float:
    """Return the seconds of a span of time; the unit is not optional.

    Raises:
        ConfigError: anything else; `flag` names the place, `example` is one that holds.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        from tsx.errors import ConfigError

        raise ConfigError(
            f"{flag} {text[:80]!r}: expected a number and one of s, m, h, d, w",
            next_command=f"{flag} {example}",
        )
    return float(found[1]) * _SECONDS[found[2]]
