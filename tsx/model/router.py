"""The router: which K experts a token goes to, and what the layer reports of it.

Shapes: N tokens of the batch, D hidden size, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsx.config import AuxReduction
from tsx.model.precision import no_autocast


class Routing(NamedTuple):
    """Where each token goes."""

    probs_NE: Tensor  # softmax over experts, fp32
    weights_NK: Tensor  # the K largest of them, not renormalised
    experts_NK: Tensor  # whose they are, int64
    counts_E: Tensor  # routed rows per expert, padding included, int64; sums to N * K


class RouterStats(NamedTuple):
    """What one layer's router did to one batch. All tensors: nothing here waits for the device.

    The properties cost a few small kernels and are meant for the steps that log them.
    """

    load_E: Tensor  # f: share of the routed rows per expert; sums to 1; no gradient
    prob_E: Tensor  # r: mean probability per expert; sums to 1
    aux: Tensor  # E * sum_e f_e r_e, scalar

    @property
    def load_max_over_mean(self) -> Tensor:
        """Load of the busiest expert over the mean load: 1 is balanced, E / K is collapsed."""
        return self.load_E.max() * self.load_E.shape[0]

    @property
    def entropy(self) -> Tensor:
        """Entropy of the mean probabilities over ln E: 1 is uniform, 0 is one expert.

        A router that is flat on each token and one that is sure but balanced both read 1. With a
        single expert it is 1.
        """
        num_experts = self.prob_E.shape[0]
        if num_experts == 1:
            return torch.ones_like(self.prob_E[0])
        return -torch.xlogy(self.prob_E, self.prob_E).sum() / math.log(num_experts)

    @property
    def idle_frac(self) -> Tensor:
        """Share of the experts that got no token in this batch."""
        return self.load_E.eq(0).float().mean()


class Router(nn.Module):
    """p = softmax(W x); the K largest of p weigh their experts and are not renormalised.

    Source: Time-MoE (arXiv 2409.16040), eqs. 6 and 7. Departure: under autocast the logits too are
    fp32, where the official code has a bf16 product and an fp32 softmax.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.proj = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, x_ND: Tensor) -> Routing:
        """Route each token."""
        weight = self.proj.weight
        with no_autocast(x_ND.device.type):
            probs_NE = F.linear(x_ND.to(weight.dtype), weight).softmax(dim=-1)
        weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
        counts_E = _chosen(experts_NK, weight.shape[0]).sum((0, 1))
        return Routing(probs_NE, weights_NK, experts_NK, counts_E)


def measure_routing(routing: Routing, valid_N: Tensor | None) -> RouterStats:
    """Summarise one layer's routing.

    Args:
        routing: of every token of the batch.
        valid_N: bool, the tokens that count; None is all of them.

    Source: Switch Transformers (arXiv 2101.03961), eqs. 4 to 6, with f normalised by K * N so that
    a flat or balanced router reads 1 for any K.
    """
    num_tokens, num_experts = routing.probs_NE.shape
    top_k = routing.experts_NK.shape[1]
    if valid_N is None:
        load_E = routing.counts_E / (num_tokens * top_k)
        prob_E = routing.probs_NE.mean(0)
    else:
        # A batch without one valid token has no routing: zeros, not 0 / 0.
        num_valid = valid_N.sum().clamp(min=1)
        chosen_NKE = _chosen(routing.experts_NK, num_experts) & valid_N[:, None, None]
        load_E = chosen_NKE.sum((0, 1)) / (num_valid * top_k)
        prob_E = (routing.probs_NE * valid_N[:, None]).sum(0) / num_valid
    load_E = load_E.to(prob_E.dtype)
    return RouterStats(load_E, prob_E, num_experts * (load_E * prob_E).sum())


def reduce_aux(routing: Sequence[RouterStats], reduction: AuxReduction, top_k: int) -> Tensor:
    """Return the load-balancing loss of all layers as one scalar.

    `per_layer` is the mean of the layers' own values: flat router 1.
    `concatenated` is what the official code computes: layers are joined before the product and f
    is summed over K, E * K * sum_e mean_l(f_e) mean_l(r_e): flat router K. It cannot see two
    layers that collapse onto different experts. Its tokens include padding, which the caller
    arranges by measuring with `valid_N=None`.
    """
    if reduction is AuxReduction.PER_LAYER:
        return torch.stack([stats.aux for stats in routing]).mean()
    load_E = torch.stack([stats.load_E for stats in routing]).mean(0)
    prob_E = torch.stack([stats.prob_E for stats in routing]).mean(0)
    return load_E.shape[0] * top_k * (load_E * prob_E).sum()


def _chosen(experts_NK: Tensor, num_experts: int) -> Tensor:
    """Return bool [N, K, E]: does slot k of token n go to expert e. Exact to sum, static shape."""
    experts_E = torch.arange(num_experts, device=experts_NK.device)
    return experts_NK[..., None].eq(experts_E)
