"""The call of a program's loop that was not finite, written down in the run's folder.

The first one of a process is kept: tensors it was given (256 MiB at most), random state, buffers,
and the watched model's weights (2 GiB at most). Imported once torch is.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.events import Artifact
from tsx.diagnostics.nonfinite.dump import KIND, DumpFacts, DumpFolder, list_weights, name_number
from tsx.diagnostics.nonfinite.packing import Packer
from tsx.diagnostics.tracing.places import shorten
from tsx.recording.lines import RunLines

if TYPE_CHECKING:
    from torch import nn

    from tsx.diagnostics.nonfinite.held_call import HeldCall

MAX_BATCH_BYTES = 256 * 2**20
MAX_WEIGHT_BYTES = 2 * 2**30


class CallDumps:
    """Keeps one call of a run.

    Args:
        folder: of the run.
        lines: get the artifact, or what went wrong.
    """

    def __init__(self, folder: Path, lines: RunLines) -> None:
        self._dumps = DumpFolder(folder)
        self._lines = lines

    def keep(
        self, call: HeldCall, model: nn.Module, step: int, evidence: Mapping[str, Any]
    ) -> dict[str, str]:
        """Keep a call whose step is not finite; return what a finding is to say of it.

        Args:
            call: as it was made.
            model: that is watched, its weights as they were for the call.
            step: under way.
            evidence: what is known: "loss".
        """
        if self._dumps.is_spent:
            return {}
        self._dumps.is_spent = True
        try:
            path, size = self._write(call, model, step, evidence)
        except Exception as error:  # no memory, no room
            cause = "the step that is not finite could not be kept for tsx replay"
            fix = "make room on the disk that holds the run's folder"
            self._lines.warn("dump-unwritten", "", cause, fix, error=error)
            return {}
        self._lines.emit(
            Artifact(time=time.time(), kind=KIND, path=path, step=step, size_bytes=size)
        )
        return {"dump": path}

    def _write(
        self, call: HeldCall, model: nn.Module, step: int, evidence: Mapping[str, Any]
    ) -> tuple[str, int]:
        packer = Packer(MAX_BATCH_BYTES)
        args = [packer.pack(value, f"args.{index}") for index, value in enumerate(call.args)]
        kwargs = {name: packer.pack(value, f"kwargs.{name}") for name, value in call.kwargs.items()}
        weights = list_weights(model)
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        why = f"{size:,} bytes are too many" if size > MAX_WEIGHT_BYTES else ""
        loss = evidence.get("loss", "")
        first = next(iter(weights.values()), None)
        facts = DumpFacts(
            step=step,
            source="loop",
            loss=name_number(loss) if isinstance(loss, float) else "",
            device="" if first is None else str(first.device),
            function=getattr(call.fn, "__qualname__", type(call.fn).__qualname__)[:200],
            where=_find_place(call.fn),
            args=args,
            kwargs=kwargs,
            left_out=packer.left_out,
            why_no_weights=why,
        )
        return self._dumps.write(facts, packer, call.moment, {} if why else weights)


def _find_place(fn: Any) -> str:
    """Return "file.py:12" of a function, "" where it is none of Python's."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return "" if code is None else shorten(f"{code.co_filename}:{code.co_firstlineno}")
