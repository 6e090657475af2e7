"""What a run's process said: stdout.log and stderr.log in its folder, capped, as Output events."""

from __future__ import annotations

import os
import time
from pathlib import Path

from registry.events import Output

STREAMS = ("stdout", "stderr")
_HEAD_BYTES = 64 * 1024  # how it began: versions, config, warnings
_TAIL_BYTES = 192 * 1024  # how it ended: the traceback


def read_output(folder: Path) -> tuple[Output, ...]:
    """Return one Output a stream that said anything: its first 64 KiB and its last 192 KiB.

    Secrets are redacted when the event is encoded. A log that cannot be read is left out.
    """
    found = []
    for stream in STREAMS:
        try:
            text, dropped_bytes = _read_capped(folder / f"{stream}.log")
        except OSError:
            continue
        if text:
            found.append(
                Output(time=time.time(), stream=stream, text=text, dropped_bytes=dropped_bytes)
            )
    return tuple(found)


def _read_capped(path: Path) -> tuple[str, int]:
    """Return the text of a log without its middle, and how many bytes that was."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _HEAD_BYTES + _TAIL_BYTES:
            return file.read(_HEAD_BYTES + _TAIL_BYTES).decode("utf-8", "replace"), 0
        head = file.read(_HEAD_BYTES)
        file.seek(size - _TAIL_BYTES)
        tail = file.read(_TAIL_BYTES)
    # Whole lines only: half a line could hide half a secret from the redaction.
    head = head[: head.rfind(b"\n") + 1] or head
    tail = tail[tail.find(b"\n") + 1 :] or tail
    dropped_bytes = size - len(head) - len(tail)
    cut = f"[{dropped_bytes} bytes left out]\n"
    return head.decode("utf-8", "replace") + cut + tail.decode("utf-8", "replace"), dropped_bytes
