"""Learning rate of each optimizer step: linear warm-up, then a cosine or nothing.

A pure function of the step, so there is no scheduler to save: a checkpoint's step says it all.
More `train.steps` on resume stretch the cosine over the new total; a resumed run equals, bit for
bit, an uninterrupted run of the same total.
"""

from __future__ import annotations

import math

from tsx.config import RunConfig, Schedule


def get_lr(config: RunConfig, step: int) -> float:
    """Return the learning rate of optimizer step `step`, the first being 1.

    Warm-up of W steps: lr * step / W. Then, N = `train.steps` and w = max(W, 1),
    cosine: floor + (lr - floor) * (1 + cos(pi * (step - w) / (N - w + 1))) / 2, so the peak is
    reached at step w, once, and the floor `min_lr_ratio * lr` where step N + 1 would be: no step
    is spent on a rate of zero.
    """
    optim, warmup = config.optim, config.warmup_steps
    if step < warmup:
        return optim.lr * step / warmup
    if optim.schedule is Schedule.CONSTANT:
        return optim.lr
    peak = max(warmup, 1)
    done = min(1.0, (step - peak) / max(config.train.steps - peak + 1, 1))
    floor = optim.min_lr_ratio * optim.lr
    return floor + (optim.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
