"""Every kind of finding in words: what `docs/faults.md` is written from."""

from __future__ import annotations

from collections.abc import Iterator

from tsx.diagnostics.detector import Kind
from tsx.diagnostics.roster import DETECTORS

HEAD = """# What tsx finds

Every kind of finding that a run may hold, in the order of the alphabet. `tsx diagnose RUN` shows
those of a run with their evidence, `tsx doctor RECIPE` those that show before anything is
trained. A finding is an **error** where the run's result is worthless, a **warning** where it is
worse than it could be, an **info** where it is on purpose or does no harm. One fault is one
finding: what else it brought about stands in its evidence under `also`.

<!-- written from tsx/diagnostics; `make faults` writes it again -->
"""

OTHERS: tuple[Kind, ...] = (
    Kind(
        "nan-origin",
        "The first value that is not finite in a forward or backward pass: its operation, its "
        "module, its line and why it came to be.",
        "A loss turned NaN at step 80 of a run. A missing causal mask was blamed for days; the "
        "padding mask was inverted, and the first batch in which a window was not padded had "
        "rows that attended to nothing.",
        "`mechanism`, the share of bad values, whether a `fresh_model` fails on the same batch, "
        "whether the `previous_batch` passes, and the guilty `samples`; in a recipe's run also the "
        "`windows` that these are cut from, by data set, series and first point.",
        "The finding's own; `tsx replay RUN` runs the step again, with other settings where asked.",
    ),
    Kind(
        "non-finite",
        "A loss or a gradient is not finite, and its origin could not be found: it did not show "
        "again, or lies on a device.",
        "A gradient norm of inf, seen once in ten thousand steps.",
        "Which parameters and gradients are not finite, and whether the batch is.",
        "Clip gradients, lower the learning rate, look at the batch of the step.",
    ),
    Kind(
        "nan-onset",
        "Of a curve alone: which loss or score was the first that was not finite, from which step "
        "on, and which keys followed.",
        "A run of another program ended in NaN, and its log was all there was.",
        "The keys that were `first` and those that `followed`, the last finite step and values.",
        "Take the step again under `run.watch` and `run.compute`, which name the line.",
    ),
    Kind(
        "sibling-jump",
        "Of a curve alone: the loss leaves the band of the runs of the same recipe or project, on "
        "the same data. An info where their configs differ in more than the seed.",
        "One of four seeds went wrong at step 900, and the mean over seeds hid it.",
        "The `siblings`, the `ratio` to their loss, config `differences`, and why others were "
        "`refused`.",
        "`tsx compare` with a sibling; look at what the run did at that step.",
    ),
    Kind(
        "config-lint",
        "Settings that contradict each other or the data: an interval that is never reached, a "
        "horizon longer than the window, a setting that does nothing.",
        "Validation was asked for every 2 steps with no series held out, and the curve was "
        "missed after the run.",
        "The settings and what they meet.",
        "Named for each.",
    ),
    Kind(
        "detector-failed",
        "A detector raised and is off for the rest of the run; training went on unharmed.",
        "A model that returns generators instead of tensors.",
        "The detector, and what it raised.",
        "Train on; report it with the error's text.",
    ),
    Kind(
        "telemetry-lost",
        "Events or system samples could not be recorded.",
        "A disk was full for an hour of a night.",
        "How many, and the last error.",
        "Make room; `tsx gc --dry-run` shows what may go.",
    ),
    Kind(
        "checkpoint-unwritten",
        "A checkpoint could not be written; the one before it stands.",
        "A quota ran out in mid-run.",
        "The error.",
        "Make room; the next interval tries again.",
    ),
    Kind(
        "checkpoint-damaged",
        "A checkpoint does not hold what its list says; an older one was taken.",
        "A copy between machines broke off.",
        "Which file, and why.",
        "Copy it again, or go on from the older one.",
    ),
    Kind(
        "dump-unwritten",
        "A step that is not finite could not be kept for `tsx replay`; nothing else is lost.",
        "The disk was full in the very step that diverged.",
        "The error.",
        "Make room, and run again from the last checkpoint.",
    ),
    Kind(
        "resume-changes",
        "A run goes on with settings other than those it began with.",
        "A learning rate was changed at a resume and forgotten.",
        "Each key with both values.",
        "Nothing, where it was meant.",
    ),
    Kind(
        "peak-suspect",
        "A model FLOPs utilisation above 1, or a peak of sparse products: the peak is wrong.",
        "319.82 TFLOP/s were computed with 12 N and divided by the sparse peak: two errors of a "
        "factor of 2 that cancel.",
        "The MFU, or the peak beside the dense one.",
        "Set `perf.mfu_peak_tflops` to the device's dense peak.",
    ),
    Kind(
        "compile",
        "The model is being compiled, and how long it took.",
        "A first step of two minutes looked like a hang.",
        "Seconds and mode.",
        "Nothing.",
    ),
    Kind(
        "profile",
        "A step was profiled, or could not be.",
        "A trace of the first step showed the compiler only.",
        "The trace's path.",
        "Open it in `chrome://tracing` or Perfetto.",
    ),
    Kind(
        "kernel-launches",
        "Kernels are counted on CUDA alone.",
        "A count was asked for on a CPU.",
        "None.",
        "Leave `perf.count_kernels` off.",
    ),
    Kind(
        "log-value",
        "A logged value is no number; it is left out and counted.",
        "A loss was logged as a tensor of two elements.",
        "The key.",
        "Log numbers, 0-d tensors, nested dicts of them, or `tsx.histogram(...)`.",
    ),
    Kind(
        "log-step",
        "A line was logged at a step that goes back, or is no step.",
        "An epoch was passed as the step.",
        "Both steps.",
        "Pass the optimizer step, or none.",
    ),
    Kind(
        "config-cut",
        "A config was too large or too deep to be recorded whole.",
        "A whole data set stood in a config.",
        "What was left out.",
        "Pass settings only.",
    ),
)


def list_kinds() -> list[Kind]:
    """Return every kind, sorted by name."""
    kinds = {kind.name: kind for kind in OTHERS}
    for detector in DETECTORS:
        kinds |= {kind.name: kind for kind in detector.kinds}
    return [kinds[name] for name in sorted(kinds)]


def write_page() -> str:
    """Return `docs/faults.md`."""
    kinds = list_kinds()
    index = " · ".join(f"[{kind.name}](#{kind.name})" for kind in kinds)
    return "\n".join([HEAD, index, "", *_iter_lines(kinds)]).rstrip() + "\n"


def _iter_lines(kinds: list[Kind]) -> Iterator[str]:
    for kind in kinds:
        yield from (f"## {kind.name}", kind.means, "")
        yield f"- **How it was**: {kind.story}"
        yield f"- **Evidence**: {kind.evidence}"
        yield f"- **Fix**: {kind.fix}"
        yield ""
