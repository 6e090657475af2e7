"""jsonl files: one series a line, a list of numbers or {"sequence": [...]}.

A file is parsed once, line by line, into a folder of the Time-300B layout under
`$TSX_HOME/cache/series/`, named after the SHA-256 of its content, and read from there ever after:
memory holds one line, not the file. The folder may be deleted at any time. null, NaN and Infinity
are points that are not finite, refused or left out like any other; blank lines are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from tsx.data.layout import SeriesWriter
from tsx.data.meta import Floats
from tsx.data.series import DataSet, MapPool, open_dataset
from tsx.errors import DataError

_MAX_LINE_BYTES = 256 << 20  # one line is in memory, as text and as numbers


class _Line(Struct):
    """The object form of a line; other keys are ignored."""

    sequence: list[float | None]


_DECODER = msgspec.json.Decoder(list[float | None] | _Line)


def open_jsonl(name: str, path: Path, pool: MapPool, *, cache: Path) -> DataSet:
    """Open a jsonl file through its parsed copy, which is made on first use.

    Args:
        name: "<domain>/<dataset>".
        path: the file.
        pool: keeps the maps of the whole corpus.
        cache: folder of parsed copies.

    Raises:
        DataError: the file cannot be read, a line is not a series (named by number), or the
            parsed copy cannot be written.
    """
    place = f"data set '{name}'"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{place}: cannot read {path}: {error.strerror}") from None
    folder = cache / digest
    if not folder.exists():
        _parse_once(path, folder, place)
    try:
        return open_dataset(name, folder, pool, fingerprint=digest[:16])
    except DataError as error:
        # Only the parsed copy can be at fault here, and it can be made again.
        raise DataError(error.message, next_command=f"rm -r {folder}") from None


def _parse_once(path: Path, folder: Path, place: str) -> None:
    """Parse into a folder of our own and move it into place; the first of two writers wins."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        _parse(path, partial, place)
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise DataError(
                f"{place}: cannot keep the parsed copy of {path} in {folder.parent}: "
                f"{error.strerror}",
                next_command="TSX_HOME=<a folder with room> tsx run ...",
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _parse(path: Path, folder: Path, place: str) -> None:
    """Write every line of the file as one series."""
    with path.open("rb") as file, SeriesWriter(folder, dtype="float64") as writer:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(
                    f"{place}: line {number} of {path} is longer than {_MAX_LINE_BYTES >> 20} MiB"
                )
            if line.strip():
                writer.append(_read_line(line, f"{place}: line {number} of {path}"))
        writer.finish()


def _read_line(line: bytes, place: str) -> Floats:
    """Return one line's numbers, null as NaN."""
    try:
        decoded = _DECODER.decode(line)
        values = decoded.sequence if isinstance(decoded, _Line) else decoded
    except msgspec.ValidationError as error:
        raise DataError(f"{place} is not a series: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = _read_lenient(line, place)
    try:
        return np.array(values, np.float64)  # None becomes NaN
    except OverflowError:
        raise DataError(f"{place} holds a number beyond float64") from None


def _read_lenient(line: bytes, place: str) -> list[float | None]:
    """Parse a line with Python's own reader, which knows the NaN and Infinity it writes."""
    try:
        decoded: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}") from None
    values = decoded.get("sequence") if isinstance(decoded, dict) else decoded
    if not isinstance(values, list) or not all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in values
    ):
        raise DataError(
            f'{place} is not a series: expected a list of numbers or {{"sequence": [...]}}'
        )
    return values
