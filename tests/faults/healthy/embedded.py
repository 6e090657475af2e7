"""tsx's own model and trainer as they are, in several settings, and its recipes by name."""

from __future__ import annotations

from typing import Any

from tests.faults.embedded import build_loop
from tests.faults.plant import Healthy, Loop
from tests.faults.proofs import falls, has_moved, trains

# Recipes whose shortened runs (`--smoke`) must raise nothing of severity warning or above.
RECIPES = (
    *("sanity", "ood-sanity", "overfit", "perf-baseline"),
    *("patch-probe", "patch-probe-long", "pointwise-probe"),
)


def trains_but_for_idle(loop: Loop) -> None:
    """The loss falls; only experts without tokens may stand still."""
    falls(loop, share=0.95)
    still = {name for name, _ in loop.model.named_parameters() if not has_moved(loop, name)}
    assert all("experts" in name for name in still)


def healthy(name: str, looks: str, *, steps: int = 30, proof: Any = None, **config: Any) -> Healthy:
    """Return an embedded loop with these settings."""
    return Healthy(
        name=name,
        architecture="embedded",
        looks=looks,
        causal=True,
        steps=steps,
        build=lambda: build_loop(train__steps=steps, optim__lr=1e-2, **config),
        proof=proof or trains(share=0.95),
    )


ENTRIES = (
    healthy("tsx-plain", "padded windows, a schedule that ends near 0, two layers of experts"),
    healthy(
        "tsx-accumulation",
        "micro-batches divided by the labels of the whole step",
        train__grad_accum_steps=2,
    ),
    healthy(
        "tsx-bf16", "bf16 autocast, norms in the dtype of their input", train__precision="bf16"
    ),
    healthy("tsx-patches", "tokens of four points", model__patch_len=4, model__horizons=[4, 8]),
    healthy("tsx-warm-up", "a rate that climbs for half the run", optim__warmup_steps=15),
    healthy(
        "tsx-one-batch",
        "one batch at every step, on purpose: the config says so",
        train__fixed_batches=1,
    ),
    healthy(
        "tsx-window-scaling", "each window scaled by its own input", data__scaling_scope="context"
    ),
    healthy(
        "tsx-concatenated-aux",
        "an aux of layers joined before the product: a flat router reads 2, not 1",
        model__aux_reduction="concatenated",
    ),
    healthy(
        "tsx-many-experts",
        "more experts than a small batch may reach",
        model__num_experts=8,
        model__top_k=1,
        proof=trains_but_for_idle,
    ),
)
