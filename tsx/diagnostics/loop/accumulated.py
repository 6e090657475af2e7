"""A step judged by the backward passes that went into it.

A pattern is told once it has been seen several times: one odd step may be a last batch, or a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tsx.diagnostics.loop.gradient_tracks import Backward, Track

MIN_CARRIES = 4  # steps in a row on old gradients; cycles of micro-batches are shorter
MIN_INSIDE = 2  # the same, where the loss is divided for micro-batches: it says what was meant
MIN_TIMES = 2  # steps of any other pattern before it is told
MIN_UNEVEN = 2.0  # times that a label of one micro-batch outweighs one of another
CLOSE = 1e-3  # relative: weights are fractions such as 1 / 3 in fp32


class Verdict(NamedTuple):
    """What is wrong with a step, or may be if it comes again."""

    mechanism: str
    evidence: dict[str, Any]
    is_suspicion: bool = False


def judge(
    track: Track, seen: Sequence[Backward], weights: Sequence[float], *, is_carried: bool
) -> Verdict | None:
    """Return what is wrong with a step of one optimizer.

    Args:
        track: of the optimizer, which counts what was seen before.
        seen: the backward passes that reached its parameters.
        weights: of their losses.
        is_carried: the first one added to gradients of the step before, which were not 0.
    """
    share = _find_share(weights)
    verdict = _judge_zeroing(track, len(seen), share, is_carried=is_carried)
    if verdict is not None or len(seen) < 2 or is_carried:
        return verdict
    if not any(backward.is_kept for backward in seen[1:]):
        if share != len(seen) or len({backward.fn for backward in seen}) > 1:
            return None
        is_told = track.count("inside") >= MIN_TIMES
        return Verdict("zero-grad-inside", {"micro_batches": len(seen)}, not is_told)
    if all(backward.is_kept for backward in seen[1:]):
        return _judge_sum(track, seen, weights, share)
    return None


def _judge_zeroing(track: Track, count: int, share: int, *, is_carried: bool) -> Verdict | None:
    """Judge whether the gradients of the step before are still there."""
    if not is_carried:
        carries, track.carries = track.carries, 0
        if carries:
            track.cycles += 1
        if carries and track.cycles >= MIN_TIMES:
            return Verdict("step-inside", {"steps_between_zeroing": carries + 1})
        return None
    track.carries += 1
    if share >= 2 and count == 1:
        if track.carries >= MIN_INSIDE:
            return Verdict("step-inside", {"micro_batches": share})
        return None
    if track.cycles:
        return None
    is_told = track.carries >= MIN_CARRIES
    return Verdict("no-zero-grad", {"steps": track.carries}, not is_told)


def _judge_sum(
    track: Track, seen: Sequence[Backward], weights: Sequence[float], share: int
) -> Verdict | None:
    """Judge how micro-batches that add up as they should are weighed."""
    if share == len(seen):
        track.whole_steps += 1
    elif 2 <= share < len(seen) and track.whole_steps >= MIN_TIMES:
        return Verdict("left-over", {"micro_batches": len(seen), "expected": share})
    is_one_loss = all(b.is_mean for b in seen) and len({b.fn for b in seen}) == 1
    if not is_one_loss:
        return None
    labels = [backward.labels for backward in seen]
    track.count("summed")
    if _is_uneven(labels, weights):
        # Now and then is the last batch of an epoch.
        is_told = (times := track.count("uneven")) >= MIN_TIMES and 2 * times > track.times[
            "summed"
        ]
        return Verdict("mean-of-means", {"labels": labels}) if is_told else None
    if share == 1 and track.count("sum") >= MIN_TIMES:
        return Verdict("sum-of-means", {"micro_batches": len(seen)})
    return None


def _is_uneven(labels: Sequence[float | None], weights: Sequence[float]) -> bool:
    """Return whether a label of one micro-batch outweighs one of another."""
    if not all(labels):
        return False
    each = [abs(w) / count for w, count in zip(weights, labels, strict=True) if count]
    return min(each) > 0 and max(each) / min(each) >= MIN_UNEVEN


def _find_share(weights: Sequence[float]) -> int:
    """Return n where every loss is divided by n, 1 where none is; 0 for anything else."""
    first = weights[0]
    if first <= 0 or any(abs(weight - first) > CLOSE * first for weight in weights):
        return 0
    share = round(1.0 / first)
    return share if share >= 1 and abs(first * share - 1.0) <= CLOSE else 0
