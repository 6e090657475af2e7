"""Reads a data set's `meta.json` (Time-300B layout) into arrays, and refuses one that lies.

The file: `num_sequences`, `dtype`, `files` {shard name: number of elements}, `scales` [{offset,
length[, mean, std]}]. Offsets count elements over the shards joined in numeric order; sequences
may overlap and may cross shards. Nothing is allocated by what the file claims: arrays are as long
as the list that is really there. Sizes of shards on disk are `tsx.data.series`'s to check.

Shapes: S sequences.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from tsx.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Twice the bound still fits int64, so offset + length cannot wrap around.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62 - 1)]

DTYPES = (
    *("float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_SHARD = re.compile(r"data-([0-9]{1,9})-of-([0-9]{1,9})\.bin", re.ASCII)
_CHUNK_BYTES = 1 << 20  # of `scales` text decoded at a time; bounds the objects that exist at once


class _Scale(Struct, gc=False):
    """One entry of `scales`."""

    offset: Count
    length: Count
    mean: float | None = None
    std: float | None = None


class _Header(Struct):
    """meta.json with `scales` still as text."""

    num_sequences: Count
    dtype: str
    files: dict[str, Count]
    scales: msgspec.Raw


@dataclass(frozen=True)
class Meta:
    """What meta.json says, checked against itself.

    `mean_S` and `std_S` are None when no sequence carries them; a sequence that lacks either has
    mean 0 and std 1 (the reference ignores one without the other).
    """

    dtype: np.dtype[Any]  # little-endian
    shards: tuple[tuple[str, int], ...]  # (file name, elements), in numeric order
    offset_S: Ints
    length_S: Ints
    mean_S: Floats | None
    std_S: Floats | None
    digest: str  # SHA-256 of the file


def read_meta(path: Path, *, place: str) -> Meta:
    """Read and check one meta.json.

    Args:
        path: the file.
        place: how errors name it ("data set 'energy/etth1'").

    Raises:
        DataError: not readable, not JSON, a wrong type or range, an unknown dtype, shard names
            that are not `data-<i>-of-<n>.bin`, a count that disagrees, or a sequence that reaches
            beyond the shards.
    """
    try:
        text = path.read_bytes()
        header = msgspec.json.decode(text, type=_Header)
    except OSError as error:
        raise DataError(f"{place}: cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{place}: {path} is no Time-300B meta: {clip(error)}") from None
    if header.dtype not in DTYPES:
        raise DataError(
            f"{place}: dtype={clip(repr(header.dtype))} in {path}; valid: {', '.join(DTYPES)}"
        )
    shards = _order_shards(header.files, place)
    offset_S, length_S, mean_S, std_S = _read_scales(header.scales, place)
    if len(offset_S) != header.num_sequences:
        raise DataError(
            f"{place}: num_sequences={header.num_sequences} but scales has {len(offset_S)} entries "
            f"in {path}"
        )
    total = sum(size for _, size in shards)
    beyond = np.flatnonzero(offset_S + length_S > total)
    if len(beyond):
        first = int(beyond[0])
        raise DataError(
            f"{place}: series {first} (offset={offset_S[first]}, length={length_S[first]}) reaches "
            f"beyond the {total} elements that its shards hold"
        )
    return Meta(
        dtype=np.dtype(header.dtype).newbyteorder("<"),
        shards=shards,
        offset_S=offset_S,
        length_S=length_S,
        mean_S=mean_S,
        std_S=std_S,
        digest=hashlib.sha256(text).hexdigest(),
    )


def _order_shards(files: dict[str, int], place: str) -> tuple[tuple[str, int], ...]:
    """Return the shards in numeric order; names are checked, so none leads out of the folder."""
    numbered = []
    for name, size in files.items():
        match = _SHARD.fullmatch(name)
        if match is None:
            raise DataError(f"{place}: shard name {clip(repr(name))}; expected data-<i>-of-<n>.bin")
        if int(match[2]) != len(files):
            raise DataError(
                f"{place}: files lists {len(files)} shards but {name} is one of {int(match[2])}"
            )
        numbered.append((int(match[1]), name, size))
    numbered.sort()
    for (one, first, _), (two, second, _) in itertools.pairwise(numbered):
        if two != one + 1:
            raise DataError(f"{place}: no shard between {first} and {second} can be placed")
    return tuple((name, size) for _, name, size in numbered)


def _read_scales(raw: msgspec.Raw, place: str) -> tuple[Ints, Ints, Floats | None, Floats | None]:
    """Return offset, length, mean and std of every entry as arrays.

    A million entries as objects would cost more than 100 MB, so the text is decoded in pieces.
    """
    try:
        columns = [_to_columns(part) for part in _iter_parts(memoryview(raw))]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # A brace inside an entry, or a fault: the whole text gives the one or names the other.
        columns = [_to_columns(_decode_whole(raw, place))]
    offset_S, length_S, moments = zip(*columns, strict=True)
    ints = np.concatenate(offset_S), np.concatenate(length_S)
    if all(part is None for part in moments):
        return *ints, None, None
    mean_S, std_S = np.concatenate(
        [
            _no_moments(len(length)) if part is None else part
            for part, length in zip(moments, length_S, strict=True)
        ],
        axis=1,
    )
    wild = np.flatnonzero(~(np.isfinite(mean_S) & np.isfinite(std_S)))
    if len(wild):
        first = int(wild[0])
        raise DataError(
            f"{place}: scales[{first}] has mean={mean_S[first]}, std={std_S[first]}; "
            "expected finite numbers"
        )
    return *ints, mean_S, std_S


def _iter_parts(text: memoryview) -> Iterator[list[_Scale]]:
    """Yield the entries of a JSON array of flat objects, about a mebibyte of text at a time."""
    start, last = 1, len(text) - 1
    if bytes(text[:1]) != b"[":
        raise msgspec.DecodeError("not an array")
    while True:
        part = bytes(text[start : min(start + _CHUNK_BYTES, last)])
        at_end = start + len(part) == last
        cut = len(part) if at_end else part.rfind(b"}") + 1
        if cut == 0:
            raise msgspec.DecodeError("an entry longer than a piece")
        body = part[:cut].lstrip()
        if start > 1 and body:
            if body[:1] != b",":
                raise msgspec.DecodeError("no comma between entries")
            body = body[1:]
            if not body.strip():
                raise msgspec.DecodeError("a comma without an entry")
        yield msgspec.json.decode(b"[" + body + b"]", type=list[_Scale])
        start += cut
        if at_end:
            return


def _to_columns(part: list[_Scale]) -> tuple[Ints, Ints, Floats | None]:
    """Return offsets, lengths, and means over stds; None where no entry has both of these."""
    size = len(part)
    offset_S = np.fromiter((scale.offset for scale in part), np.int64, size)
    length_S = np.fromiter((scale.length for scale in part), np.int64, size)
    moments = _no_moments(size)
    found = False
    for index, scale in enumerate(part):
        if scale.mean is not None and scale.std is not None:
            found = True
            moments[:, index] = scale.mean, scale.std
    return offset_S, length_S, moments if found else None


def _no_moments(size: int) -> Floats:
    """Return means of 0 over stds of 1, which leave values as they are stored."""
    return np.repeat([[0.0], [1.0]], size, axis=1)


def _decode_whole(text: msgspec.Raw, place: str) -> list[_Scale]:
    """Decode `scales` at once; raise DataError that names the entry and its value."""
    try:
        return msgspec.json.decode(text, type=list[_Scale])
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`")
        value = _find_value(text, path)
        raise DataError(
            f"{place}: scales{path}{value}: {message[0].lower()}{message[1:]}"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{place}: scales in meta.json: {clip(error)}") from None


def _find_value(text: msgspec.Raw, path: str) -> str:
    """Return '=value' for a path like '[3].offset', or nothing where there is no value."""
    match = re.fullmatch(r"\[(\d+)\](?:\.(\w+))?", path)
    if match is None:
        return ""
    entry = msgspec.json.decode(text)[int(match[1])]
    value = entry.get(match[2]) if match[2] and isinstance(entry, dict) else entry
    return f"={clip(repr(value))}"


def clip(value: object) -> str:
    """Return text that is short enough for one line of an error."""
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
