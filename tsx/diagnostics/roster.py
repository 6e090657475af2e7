"""All detectors, in the order in which they are asked."""

from __future__ import annotations

from tsx.diagnostics.data.labels import NeverTrained
from tsx.diagnostics.data.quality import DataQuality
from tsx.diagnostics.data.repeated_noise import RepeatedNoise
from tsx.diagnostics.data.repeats import RepeatedData
from tsx.diagnostics.data.targets import TargetShift
from tsx.diagnostics.data.trained_gaps import TrainedGaps
from tsx.diagnostics.detector import Detector, Scene
from tsx.diagnostics.frozen.parameters import Frozen
from tsx.diagnostics.frozen.skipped_steps import SkippedSteps
from tsx.diagnostics.loop.accumulation import Accumulation
from tsx.diagnostics.loop.intervals import Intervals
from tsx.diagnostics.loop.modes import Modes
from tsx.diagnostics.loop.rates import Rates
from tsx.diagnostics.loop.updates import UpdateRatio
from tsx.diagnostics.loss.contract import LossContract
from tsx.diagnostics.loss.first_loss import LossAtInit
from tsx.diagnostics.loss.overfit import Overfit
from tsx.diagnostics.loss.plateaus import Plateau
from tsx.diagnostics.loss.reach import LossReach
from tsx.diagnostics.loss.spikes import LossSpike
from tsx.diagnostics.masks.attention import AttentionAudit
from tsx.diagnostics.masks.leaks import Leaks
from tsx.diagnostics.resources.backends import AttentionBackend
from tsx.diagnostics.resources.compilation import Compilation
from tsx.diagnostics.resources.memory import KeptGraphs, OutOfMemory
from tsx.diagnostics.resources.pauses import Pauses
from tsx.diagnostics.resources.precision import Precision
from tsx.diagnostics.resources.reads import Reads
from tsx.diagnostics.resources.waste import PaddingWaste, RebuiltTables, TracedWaste
from tsx.diagnostics.routing.aux_scale import AuxScale
from tsx.diagnostics.routing.expert_load import Routing
from tsx.diagnostics.variants import Variants
from tsx.diagnostics.weights.buffers import BufferDrift
from tsx.diagnostics.weights.init_scale import InitScale
from tsx.diagnostics.weights.tied import TiedWeights

DETECTORS: tuple[type[Detector], ...] = (
    UpdateRatio,
    AttentionAudit,
    Leaks,
    Frozen,
    SkippedSteps,
    TiedWeights,
    BufferDrift,
    Modes,
    InitScale,
    LossAtInit,
    Routing,
    AuxScale,
    Precision,
    AttentionBackend,
    Compilation,
    LossSpike,
    Plateau,
    Overfit,
    Variants,
    Rates,
    Intervals,
    TracedWaste,
    PaddingWaste,
    RebuiltTables,
    Reads,
    KeptGraphs,
    OutOfMemory,
    Accumulation,
    LossContract,
    LossReach,
    NeverTrained,
    TargetShift,
    DataQuality,
    TrainedGaps,
    RepeatedData,
    RepeatedNoise,
    Pauses,  # the last: what the others do is no time of the loop's
)


def make_detectors(scene: Scene) -> list[Detector]:
    """Return a detector of each class for one loop; one that cannot be made is told of."""
    made = []
    for kind in DETECTORS:
        try:
            made.append(kind(scene))
        except Exception as error:
            cause = f"the detector {kind.name} failed and is off: {type(error).__name__}"
            scene.voice.warn(
                "detector-failed", kind.name, cause, "train on without it", error=error
            )
    return made
