"""What an arrow file claims before any of it is unpacked.

A buffer that is packed begins with the size it unpacks to, and the library makes room for as much
as is claimed there. So the claims are added up first and held against the file's size. Also sees
that the last message is the end mark: a stream cut between two messages looks whole otherwise.

Source: Arrow columnar format 1.5, "Encapsulated message format"; format/Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from tsx.data.parsed import SourceFile

_FILE_MARK = b"ARROW1"
_OLD_MARK = b"FEA1"
_END_MARK = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_FILE_PREFIX = 8  # bytes of the mark and its padding, before the stream in a file

# Fields of the tables in Message.fbs, by number.
_MESSAGE_HEADER = 2
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3
_BUFFER_BYTES = 16  # offset and length, both int64


def check_arrow(file: Any, source: SourceFile) -> bool:
    """Look at every message of a mapped file; say whether it is a file rather than a stream.

    Raises:
        DataError: neither of them, cut short, or claiming to unpack to more than is taken.
    """
    from pyarrow import ipc

    size = file.size()
    head = file.read(len(_FILE_MARK))
    if head.startswith(_OLD_MARK):
        raise source.fault("is Feather version 1", next_command="write it as Feather version 2")
    is_file = bool(head == _FILE_MARK)
    if is_file:
        file.seek(size - len(_FILE_MARK))
        if file.read() != _FILE_MARK:
            raise source.fault("is a truncated arrow file: its end mark is missing")
    elif not head.startswith(_END_MARK[:4]):
        raise source.fault("is no arrow file and no arrow stream")
    else:
        file.seek(max(0, size - len(_END_MARK)))
        if file.read() != _END_MARK:
            raise source.fault("is a truncated arrow stream: its end mark is missing")
    file.seek(_FILE_PREFIX if is_file else 0)
    for message in ipc.MessageReader.open_stream(file):
        if message.type == "record batch" and message.body is not None:
            source.report(file.tell() / size)
            try:
                for claim in _iter_claims(memoryview(message.metadata), memoryview(message.body)):
                    source.spend(claim)
            except (struct.error, IndexError) as error:
                raise source.fault(f"has a damaged message: {error}") from None
    return is_file


def _iter_claims(metadata: memoryview, body: memoryview) -> Iterator[int]:
    """Yield what each packed buffer of a record batch claims to unpack to."""
    (message,) = struct.unpack_from("<I", metadata)
    header = _follow(metadata, message, _MESSAGE_HEADER)
    if header is None or _follow(metadata, header, _BATCH_COMPRESSION) is None:
        return
    buffers = _follow(metadata, header, _BATCH_BUFFERS)
    if buffers is None:
        return
    (count,) = struct.unpack_from("<I", metadata, buffers)
    for number in range(count):
        begin = buffers + 4 + number * _BUFFER_BYTES
        offset, length = struct.unpack_from("<qq", metadata, begin)
        if length >= 8 and offset >= 0:
            (claim,) = struct.unpack_from("<q", body, offset)
            yield claim if claim >= 0 else length  # -1: not packed after all


def _follow(metadata: memoryview, table: int, field: int) -> int | None:
    """Return where a table's field leads (flatbuffers), or None where the field is not there."""
    (back,) = struct.unpack_from("<i", metadata, table)
    slots = table - back
    if slots < 0:
        raise IndexError("a table without fields")
    (slots_bytes,) = struct.unpack_from("<H", metadata, slots)
    slot = 4 + 2 * field
    if slot + 2 > slots_bytes:
        return None
    (offset,) = struct.unpack_from("<H", metadata, slots + slot)
    if not offset:
        return None
    (forward,) = struct.unpack_from("<I", metadata, table + offset)
    return int(table + offset + forward)
