"""The step of a recipe's run that was not finite, written down for `tsx replay`.

The first one of a process is kept; a disk that does not take it costs the dump and nothing else.
"""

from __future__ import annotations

import msgspec
import torch

from registry.events import Artifact
from tsx import config as configs
from tsx.data.windows import Batch
from tsx.diagnostics.nonfinite.dump import KIND, DumpFacts, list_weights, name_number
from tsx.diagnostics.nonfinite.packing import Packer
from tsx.diagnostics.tracing.replay import Moment
from tsx.trainer.checkpoint import MODEL
from tsx.trainer.session import Session


def dump_step(
    session: Session, batches: list[Batch], moment: Moment, *, loss: float, grad_norm: float
) -> str:
    """Keep the step under way; return where in the run's folder, "" where it is not kept.

    Args:
        session: its weights are those before the step.
        batches: micro-batches of the step.
        moment: right before the step.
        loss: of the step.
        grad_norm: before clipping.
    """
    dumps, step = session.dumps, session.progress.step + 1
    if dumps.is_spent:
        return ""
    dumps.is_spent = True
    packer = Packer()
    facts = DumpFacts(
        step=step,
        time=session.telemetry.now(),
        source="trainer",
        loss=name_number(loss),
        grad_norm=name_number(grad_norm),
        device=str(session.device),
        precision=str(session.precision),
        config=configs.to_plain(session.config),
    )
    try:
        # Tables of positions are built from the config, which a replay may change.
        moment = Moment(moment.cpu, moment.cuda, moment.python, moment.numpy, buffers={})
        nodes = [packer.pack(_to_plain(batch), str(i)) for i, batch in enumerate(batches)]
        facts = msgspec.structs.replace(facts, args=nodes)
        checkpoint = session.checkpoints.get_path(step - 1) / MODEL
        is_saved = session.progress.saved_step == step - 1 and checkpoint.is_file()
        weights = checkpoint if is_saved else list_weights(session.model)
        path, size = dumps.write(facts, packer, moment, weights)
    except Exception as error:  # no memory, no room: training has its own ending
        session.telemetry.warn(
            "dump-unwritten",
            "the step that is not finite could not be kept for tsx replay; nothing else is lost",
            "make room on the disk that holds the run's folder",
            {"error": f"{type(error).__name__}: {error}"[:1000]},
        )
        return ""
    time = session.telemetry.now()
    session.telemetry.emit(Artifact(time=time, kind=KIND, path=path, step=step, size_bytes=size))
    return path


def _to_plain(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch's arrays as tensors by name."""
    return {name: torch.from_numpy(getattr(batch, name)) for name in Batch.__dataclass_fields__}
