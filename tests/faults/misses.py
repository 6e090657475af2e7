"""What the detectors do not answer right yet, plant by plant, and why."""

from __future__ import annotations

# Kinds whose detector is there.
FOUND_KINDS = frozenset(
    {
        "nan-origin",
        *("mask-audit", "attention-axis", "future-leak", "batch-leak"),
        *("target-shift", "data-quality", "repeated-data", "loss-contract", "accumulation"),
        *("loss-spike", "plateau", "lr", "interval-never-fires"),
        *("recompile", "recompile-limit", "graph-break", "cudagraph"),
        *("throughput", "oom"),
        *("init-scale", "loss-at-init", "router", "aux-scale"),
        *("dtype-mismatch", "upcast", "attention-backend"),
        *("frozen-param", "update-ratio", "tied-weights", "buffer-drift", "train-mode"),
    }
)

# Plants of which nothing is found, or another kind.
NOT_FOUND: dict[str, str] = {
    "tsx-odd-parity": "its intervals are the trainer's own; found there",
    "tsx-interval-past-end": "its intervals are the trainer's own; found there",
    "history-rescanned": "eight steps of microseconds: too short to be told from noise",
}
# Found, but with another module than the planted one.
OTHER_MODULE: dict[str, str] = {}
# Found, but at another line.
OTHER_LINE: dict[str, str] = {
    "tsx-group-lost": "the line that made the optimizer has run before anything was watched",
    "new-head": "the line that replaced the head has run before anything was watched",
    "parametrized-later": "the line that put the norm on has run before anything was watched",
    "whole-division": "the line that made the groups has run before anything was watched",
    "hot-group": "the line that made the groups has run before anything was watched",
    "untied-by-load": "the load has run before anything was watched; the line that ties is named",
    "untied-by-copy": "the line that copied has run before anything was watched",
    "mask-lost-with-dropout": "the softmax is named, a line above the end of the call around it",
    "no-running-statistics": "the line that made the norm has run before anything was watched",
    "loud-head": "the line that drew the head has run before anything was watched",
    "straight-through-reversed": "of two lines that cut the way off the nearer one is named; the "
    "guilty one stands beside it, in also_cut_at",
    "aux-outweighs": "the weight is set in the body of a class; the sum that uses it is named",
}
# Found, but with another mechanism.
OTHER_CAUSE: dict[str, str] = {}
# Found, with a finding of another kind beside.
BESIDE: dict[str, str] = {
    "untied-by-copy": "an embedding of N(0, 1) as a head is too large: the first loss tells",
    "exploding-states": "weights that fly are told of a step before they overflow",
    "exploding-weights": "weights that fly are told of a step before they overflow",
    "unbounded-temperature": "weights that fly are told of a step before they overflow",
}
