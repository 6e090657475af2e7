"""All detectors, in the order in which they are asked."""

from __future__ import annotations

from tsx.diagnostics.accumulation import Accumulation
from tsx.diagnostics.attention import AttentionAudit
from tsx.diagnostics.aux_scale import AuxScale
from tsx.diagnostics.backends import AttentionBackend
from tsx.diagnostics.buffers import BufferDrift
from tsx.diagnostics.compilation import Compilation
from tsx.diagnostics.contract import LossContract
from tsx.diagnostics.data_quality import DataQuality
from tsx.diagnostics.detector import Detector, Scene
from tsx.diagnostics.first_loss import LossAtInit
from tsx.diagnostics.frozen import Frozen
from tsx.diagnostics.init_scale import InitScale
from tsx.diagnostics.intervals import Intervals
from tsx.diagnostics.labels import NeverTrained
from tsx.diagnostics.leaks import Leaks
from tsx.diagnostics.memory import KeptGraphs, OutOfMemory
from tsx.diagnostics.modes import Modes
from tsx.diagnostics.overfit import Overfit
from tsx.diagnostics.pauses import Pauses
from tsx.diagnostics.plateaus import Plateau
from tsx.diagnostics.precision import Precision
from tsx.diagnostics.rates import Rates
from tsx.diagnostics.reach import LossReach
from tsx.diagnostics.reads import Reads
from tsx.diagnostics.repeated_noise import RepeatedNoise
from tsx.diagnostics.repeats import RepeatedData
from tsx.diagnostics.routing import Routing
from tsx.diagnostics.skipped_steps import SkippedSteps
from tsx.diagnostics.spikes import LossSpike
from tsx.diagnostics.targets import TargetShift
from tsx.diagnostics.tied import TiedWeights
from tsx.diagnostics.trained_gaps import TrainedGaps
from tsx.diagnostics.updates import UpdateRatio
from tsx.diagnostics.variants import Variants
from tsx.diagnostics.waste import PaddingWaste, RebuiltTables, TracedWaste

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
