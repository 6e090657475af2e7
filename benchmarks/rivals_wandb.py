"""Read W&B's offline files: a LevelDB log of its own protobuf messages.

W&B ships no reader of them in Python; its messages are used, only the frames are taken apart here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

_FILE_HEADER = 7  # ":W&B", a magic number and the version
_BLOCK = 32768
_FRAME = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def iter_points(path: Path, key: str) -> Iterator[tuple[int, float]]:
    """Yield (step, value) of one key; a torn end is left out."""
    from wandb.proto.wandb_internal_pb2 import Record

    for message in iter_messages(path.read_bytes()):
        record = Record.FromString(message)
        if record.WhichOneof("record_type") != "history":
            continue
        found = {
            item.key or "/".join(item.nested_key): item.value_json
            for item in record.history.item
            if (item.key or item.nested_key[0]) in (key, "_step")
        }
        if key in found:
            yield int(found.get("_step", record.history.step.num)), float(json.loads(found[key]))


def iter_messages(data: bytes) -> Iterator[bytes]:
    """Yield the messages of a LevelDB log."""
    at, parts = _FILE_HEADER, b""
    while at + _FRAME.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _FRAME.size:
            at += left
            continue
        _, length, kind = _FRAME.unpack_from(data, at)
        body = data[at + _FRAME.size : at + _FRAME.size + length]
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(body) < length:
            return
        at += _FRAME.size + length
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            yield parts
