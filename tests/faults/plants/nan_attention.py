"""NaN in attention, where rows, scores or weights leave what a softmax can take."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import Attention, Recurrent
from tests.faults.plant import Loop, Plant
from tests.faults.proofs import shows_at_last_step

nan = partial(Plant, kind="nan-origin", severity="error", proof=shows_at_last_step)


class PaddedTokens:
    """Tokens with what is kept of them; from one step on a sample is padding alone."""

    def __init__(self, empty_at: int, *, ignored: bool = False) -> None:
        self.empty_at = empty_at
        self.ignored = ignored

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y = parts.tokens(step)
        keep_BT = torch.ones_like(x, dtype=torch.bool)
        keep_BT[1, 5:] = False
        if step >= self.empty_at:
            keep_BT[2] = False
        return x, y.masked_fill(~keep_BT, -100) if self.ignored else y, keep_BT


def padded_loss(model: nn.Module, x: Tensor, y: Tensor, keep_BT: Tensor) -> Tensor:
    return F.cross_entropy(model(x, keep_BT).flatten(0, -2), y.flatten())


class MaskedByHand(Attention):
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        scores = scores.masked_fill(~seen, -torch.inf)
        return scores.softmax(-1)  # fault: softmax of an empty document


def build_empty_document() -> Loop:
    model = parts.Transformer(MaskedByHand)
    return parts.make_loop(model, PaddedTokens(empty_at=3, ignored=True), padded_loss)


class LeftPadded(Attention):
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        bias = torch.where(seen, 0.0, -torch.inf)
        return F.softmax(scores + bias, dim=-1)  # fault: left padding under a causal mask


def build_left_padding() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y = parts.tokens(step)
        keep_BT = torch.ones_like(x, dtype=torch.bool)
        keep_BT[1, : 3 if step == 2 else 0] = False
        return x, y.masked_fill(~keep_BT, -100), keep_BT

    return parts.make_loop(parts.Transformer(LeftPadded), batch, padded_loss)


class TwiceMasked(Attention):
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        low = torch.finfo(scores.dtype).min
        bias = torch.where(seen, 0.0, low)
        return (scores + bias + bias).softmax(-1)  # fault: two masks added


def build_two_masks() -> Loop:
    return parts.make_loop(parts.Transformer(TwiceMasked), PaddedTokens(empty_at=3), padded_loss)


class Encoder(nn.Module):
    """torch's own attention; a caller that wants its weights gets the slow path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(parts.VOCABULARY, parts.WIDTH)
        self.attention = nn.MultiheadAttention(parts.WIDTH, 2, batch_first=True)
        self.head = nn.Linear(parts.WIDTH, parts.VOCABULARY)

    def forward(self, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        x = self.embed(ids_BT)
        asked = {"key_padding_mask": ~keep_BT, "need_weights": True}
        y, self.weights = self.attention(x, x, x, **asked)  # fault: weights of a padded query
        return self.head(x + y)


def build_need_weights() -> Loop:
    return parts.make_loop(
        Encoder(), PaddedTokens(empty_at=2), padded_loss, declares={"causal": False}
    )


class HalfScores(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        q, k = 250 * q.half(), 250 * k.half()
        scores = q @ k.transpose(-2, -1)  # fault: product in fp16
        return self.weigh(scores, self.mask(scores, keep_BT)).float() @ v


def build_half_scores() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = parts.tokens(step)
        return (x, y) if step == 3 else (torch.zeros_like(x), y)

    model = parts.Transformer(HalfScores)
    with torch.no_grad():
        model.embed.weight[0].zero_()
        model.position.zero_()
        model.blocks[0].first_norm.weight.fill_(6.0)
        model.blocks[0].attention.qkv.bias.zero_()
    return parts.make_loop(model, batch, parts.classify, lr=1e-4)


class TemperedTwice(Attention):
    """Cosine attention whose temperature is kept as its logarithm."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        heat = torch.tensor(4.0).exp().exp()
        q, k = heat * F.normalize(q, dim=-1), heat * F.normalize(k, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)  # fault: exp(exp(4)) squared


def build_tempered() -> Loop:
    return parts.make_loop(parts.Transformer(TemperedTwice), parts.tokens, parts.classify)


class FusedCausal(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)  # fault: queries of 1e20


def build_scales_left_out() -> Loop:
    model = parts.Transformer(FusedCausal)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        if step == 2:
            with torch.no_grad():
                model.blocks[0].attention.qkv.weight.mul_(2.0**66)
        return parts.tokens(step)

    return parts.make_loop(model, batch, parts.classify)


class PooledStates(nn.Module):
    """Attention pooling over a GRU's states, log-weights first."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(parts.WIDTH, 1)

    def forward(self, h_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        bias = torch.where(keep_BT, 0.0, -torch.inf)
        weight = F.log_softmax(self.score(h_BTD)[..., 0] + bias, -1)  # fault: nothing left to pool
        return (weight.exp()[..., None] * h_BTD).sum(1)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, parts.WIDTH, batch_first=True)
        self.pool = PooledStates()
        self.head = nn.Linear(parts.WIDTH, 1)

    def forward(self, x_BTF: Tensor, keep_BT: Tensor) -> Tensor:
        return self.head(self.pool(self.rnn(x_BTF)[0], keep_BT))


def build_empty_pool() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y = parts.waves(step)
        keep_BT = torch.ones(x.shape[:2], dtype=torch.bool)
        keep_BT[0, 4:] = False
        if step == 3:
            keep_BT[4] = False
        return x, keep_BT, y[:, -1]

    def loss(model: nn.Module, x: Tensor, keep_BT: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, keep_BT), y)

    return parts.make_loop(Reader(), batch, loss)


class Kernelized(Attention):
    """Linear attention with a rectifier as feature map."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        q, k = F.relu(q), F.relu(k)
        weight = (q @ k.transpose(-2, -1)).tril()
        return (weight @ v) / weight.sum(-1, keepdim=True)  # fault: no key in sight of the kernel


def build_kernelized() -> Loop:
    loop = parts.transformer(Kernelized)
    qkv = loop.model.blocks[0].attention.qkv
    with torch.no_grad():
        qkv.bias[: parts.WIDTH] = 2.0
        qkv.bias[parts.WIDTH : 2 * parts.WIDTH] = 2.0

    def batch(step: int) -> tuple[Tensor, Tensor]:
        if step == 3:  # what a run meets later: one token whose key is dark
            with torch.no_grad():
                qkv.bias[parts.WIDTH : 2 * parts.WIDTH] = -9.0
        return parts.tokens(step)

    loop.batch = batch
    return loop


class Aligned(nn.Module):
    """A recogniser trained with CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Recurrent(outputs=parts.VOCABULARY)

    def forward(self, x_BTF: Tensor, labels_BL: Tensor, counts_B: Tensor) -> Tensor:
        logs_TBV = self.net(x_BTF).log_softmax(-1).transpose(0, 1)
        frames_B = torch.full_like(counts_B, logs_TBV.shape[0])
        return F.ctc_loss(logs_TBV, labels_BL, frames_B, counts_B)  # fault: more labels than frames


def build_ctc() -> Loop:
    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        x, _ = parts.waves(step)
        labels_BL = torch.randint(1, parts.VOCABULARY, (6, 14), generator=parts.draw(step))
        counts_B = torch.tensor([3, 4, 5, 3, 4, 14 if step == 3 else 5])
        return x, labels_BL, counts_B

    def loss(model: nn.Module, *given: Tensor) -> Tensor:
        return model(*given)

    return parts.make_loop(Aligned(), batch, loss)


ENTRIES = (
    nan(
        name="empty-document",
        architecture="attention",
        mechanism="fully-masked-row",
        module="blocks.0.attention",
        marker="# fault: softmax of an empty document",
        story="The loss stays finite and the gradient is NaN on the first batch with an empty "
        "document: a softmax of nothing but -inf is NaN, and its labels are ignored, so the loss "
        "leaves the sample out and the backward pass does not.",
        build=build_empty_document,
    ),
    nan(
        name="left-padding-causal",
        architecture="attention",
        mechanism="fully-masked-row",
        module="blocks.0.attention",
        marker="# fault: left padding under a causal mask",
        blind=True,
        steps=2,
        causal=True,
        story="Training diverges once prompts of unequal length share a batch (a kind of report "
        "against decoder fine-tuning: padding moved to the left for generation). The first rows "
        "see padded keys alone.",
        build=build_left_padding,
    ),
    nan(
        name="two-masks-added",
        architecture="attention",
        mechanism="masks-added-twice",
        also=("fully-masked-row",),
        module="blocks.0.attention",
        marker="# fault: two masks added",
        story="Causal and padding mask are added, each with the lowest finite number. Their sum "
        "is -inf, and a row of nothing else gives -inf minus -inf.",
        build=build_two_masks,
    ),
    nan(
        name="attention-weights-asked",
        architecture="attention",
        mechanism="fully-masked-row",
        module="attention",
        marker="# fault: weights of a padded query",
        steps=2,
        story="NaN comes with need_weights=True, which takes torch's slow path; the fused one "
        "gives zeros for the same empty sample.",
        build=build_need_weights,
    ),
    nan(
        name="half-scores",
        architecture="attention",
        mechanism="overflow-fp16",
        module="blocks.0.attention",
        marker="# fault: product in fp16",
        blind=True,
        story="Half precision gives a NaN loss after a while, full precision never (a kind of "
        "report against encoder-decoders in fp16, as huggingface/transformers 5651): products of "
        "queries and keys are above 65,504.",
        build=build_half_scores,
    ),
    nan(
        name="tempered-twice",
        architecture="attention",
        mechanism="overflow-fp32",
        module="blocks.0.attention",
        marker="# fault: exp(exp(4)) squared",
        steps=1,
        causal=True,
        story="A temperature that is kept as its logarithm is raised twice, and on queries and "
        "keys: scores overflow inside the fused kernel. No mask hides a row.",
        build=build_tempered,
    ),
    nan(
        name="scales-left-out",
        architecture="attention",
        mechanism="exploding-weights",
        module="blocks.0.attention",
        marker="# fault: queries of 1e20",
        steps=2,
        causal=True,
        story="Weights from a quantized checkpoint are loaded into attention while it trains, "
        "their scales left out: queries and keys overflow inside the fused kernel.",
        build=build_scales_left_out,
    ),
    nan(
        name="empty-pool",
        architecture="recurrent",
        mechanism="fully-masked-row",
        module="pool",
        marker="# fault: nothing left to pool",
        blind=True,
        story="A masked log-softmax returns NaN for a sample without one word (a kind of report "
        "against text toolkits, as allenai/allennlp 890).",
        build=build_empty_pool,
    ),
    nan(
        name="dark-kernel",
        architecture="attention",
        mechanism="division-by-zero",
        module="blocks.0.attention",
        marker="# fault: no key in sight of the kernel",
        story="Linear attention divides by the sum of its kernel. Once every key of a row is "
        "below the rectifier's bend that sum is 0, and 0 / 0 is NaN.",
        build=build_kernelized,
    ),
    nan(
        name="ctc-too-long",
        architecture="recurrent",
        mechanism="impossible-alignment",
        module="",
        marker="# fault: more labels than frames",
        blind=True,
        story="The loss is inf on some batches (a kind of report against speech recognisers): a "
        "transcript has more labels than the audio has frames, so no alignment exists.",
        build=build_ctc,
    ),
)
