"""JSON in two forms: jsonl, one series a line, and json, one list of all series.

A series is a list of numbers or {"sequence": [...]}, whose other keys are ignored. null, NaN and
Infinity are points that are not finite, refused or left out like any other. Text is read in
pieces: memory holds one series, not the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import msgspec
import numpy as np
from msgspec import Struct

from tsx.data.layout import SeriesWriter
from tsx.data.meta import Floats
from tsx.data.parsed import PIECE_BYTES, SourceFile
from tsx.errors import DataError

_MAX_SERIES_BYTES = 256 << 20  # one series is in memory, as text and as numbers
_MARK = b"\xef\xbb\xbf"  # the byte-order mark that some editors put first


class _Object(Struct):
    """The object form of a series; other keys are ignored."""

    sequence: list[float | None]


_DECODER = msgspec.json.Decoder(list[float | None] | _Object)


def parse_jsonl(source: SourceFile, writer: SeriesWriter) -> Sequence[str]:
    """Write every line as one series; blank lines are skipped.

    Raises:
        DataError: a line that is no series, by number.
    """
    with source.open() as file:
        number = 0
        while line := file.readline(_MAX_SERIES_BYTES + 1):
            number += 1
            if len(line) > _MAX_SERIES_BYTES:
                raise _too_long(f"{source.place}: line {number} of {source.path}")
            if number == 1:
                line = line.removeprefix(_MARK)
            if line.strip():
                _write_series(
                    line.strip(), f"{source.place}: line {number} of {source.path}", writer
                )
    return ()


def parse_json(source: SourceFile, writer: SeriesWriter) -> Sequence[str]:
    """Write every element of the file's list as one series.

    Raises:
        DataError: the file is no list, or an element is no series, by number.
    """
    with source.open() as file:
        for number, element in enumerate(_iter_elements(file, source)):
            place = f"{source.place}: element {number} of {source.path}"
            if not element:
                raise DataError(f"{place} is empty: a comma without a series")
            if element[:1] not in b"[{":
                raise DataError(
                    f"{place} is {_clip(element)}; expected a list of series, each a list of "
                    'numbers or {"sequence": [...]}',
                    next_command="where the file is one series, put it into brackets: [[1, 2, 3]]",
                )
            _write_series(element, place, writer)
    return ()


def _too_long(place: str) -> DataError:
    return DataError(f"{place} is longer than {_MAX_SERIES_BYTES >> 20} MiB")


def _clip(text: bytes | bytearray) -> str:
    shown = text[:60].decode("utf-8", "replace")
    return shown + "..." if len(text) > 60 else shown


def _write_series(text: bytes, place: str, writer: SeriesWriter) -> None:
    """Write the series that a text is; a long list goes piece by piece, for its numbers' sake."""
    if len(text) > 2 * PIECE_BYTES and text[:1] == b"[" and text[-1:] == b"]":
        writer.append_pieces(_iter_pieces(text, place))
    else:
        writer.append(_read_series(text, place))


def _iter_pieces(text: bytes, place: str) -> Iterator[Floats]:
    """Yield the numbers of a list, a mebibyte of text at a time, cut at commas."""
    start, end = 1, len(text) - 1
    while start <= end:
        cut = text.find(b",", start + PIECE_BYTES, end)
        cut = end if cut < 0 else cut
        piece = text[start:cut].strip()
        if not piece:
            raise DataError(f"{place} is not JSON: a comma without a number")
        yield _read_series(b"[" + piece + b"]", place)
        start = cut + 1


def _read_series(text: bytes, place: str) -> Floats:
    """Return one series' numbers, null as NaN."""
    try:
        decoded = _DECODER.decode(text)
        values = decoded.sequence if isinstance(decoded, _Object) else decoded
    except msgspec.ValidationError as error:
        raise DataError(f"{place} is not a series: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = _read_lenient(text, place)
    try:
        return np.array(values, np.float64)  # None becomes NaN
    except OverflowError:
        raise DataError(f"{place} holds a number beyond float64") from None


def _read_lenient(text: bytes, place: str) -> list[float | None]:
    """Parse a series with Python's own reader, which knows the NaN and Infinity it writes."""
    try:
        decoded: Any = json.loads(text)
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


# What ends a search: inside a series only brackets and strings matter, not the commas between
# its numbers; at the list's own depth the comma ends an element.
_INSIDE = re.compile(rb'["\[\]{}]')
_BETWEEN = re.compile(rb'[",\[\]{}]')
_IN_STRING = re.compile(rb'["\\]')


class _Splitter:
    """Where the elements of a JSON list begin and end, told from brackets alone.

    What stands in an element is for its reader to check.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._escaped = 0  # bytes of the next piece that a backslash takes the meaning of

    def iter_cuts(self, piece: bytes) -> Iterator[tuple[int, int]]:
        """Yield (where the mark begins, where it ends) of the list's brackets and commas."""
        at, self._escaped = self._escaped, 0
        while match := self._pattern.search(piece, at):
            at, mark = match.end(), match.group()
            if mark == b"\\":
                self._escaped = max(0, at + 1 - len(piece))
                at += 1
            elif mark == b'"':
                self._in_string = not self._in_string
            elif mark in b"[{":
                self.depth += 1
                if self.depth == 1:
                    yield match.span()
            elif mark == b",":
                yield match.span()
            else:
                self.depth -= 1
                if self.depth <= 0:
                    yield match.span()
                    return

    @property
    def _pattern(self) -> re.Pattern[bytes]:
        if self._in_string:
            return _IN_STRING
        return _INSIDE if self.depth > 1 else _BETWEEN


def _iter_elements(file: BinaryIO, source: SourceFile) -> Iterator[bytes]:
    """Yield the text of each element of the list that is the file, white space aside."""
    splitter = _Splitter()
    text, count, is_open = bytearray(), 0, False
    while piece := file.read(PIECE_BYTES):
        begin = 0
        for start, end in splitter.iter_cuts(piece):
            text += piece[begin:start]
            begin = end
            if not is_open:
                is_open = True
                before = text.removeprefix(_MARK).strip()
                if before or piece[start:end] != b"[":
                    begins = _clip(before or piece[start:end])
                    raise source.fault(f"is no list of series: it begins with {begins}")
            elif splitter.depth or count or text.strip():
                yield bytes(text.strip())
                count += 1
            text.clear()
            if not splitter.depth:
                if (piece[begin:] + file.read(PIECE_BYTES)).strip():
                    raise source.fault("goes on after the end of its list")
                return
        text += piece[begin:]
        if len(text) > _MAX_SERIES_BYTES:
            raise _too_long(f"{source.place}: element {count} of {source.path}")
    if is_open or text.removeprefix(_MARK).strip():
        where = f"in the middle of element {count}" if is_open else "without a list"
        raise source.fault(f"ends {where}")
    raise source.fault("is empty")
