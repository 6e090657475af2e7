"""What a model must not see: the future of its sequence, or the other samples of its batch."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import parts
from tests.faults.parts import VOCABULARY, WIDTH, Attention
from tests.faults.plant import Plant
from tests.faults.proofs import leaks_ahead, leaks_aside

future = partial(Plant, kind="future-leak", causal=True, proof=leaks_ahead, severity="error")
aside = partial(Plant, kind="batch-leak", proof=leaks_aside, severity="error")


class Unmasked(Attention):
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return scores.softmax(-1)  # fault: no causal mask


class OffByOne(Attention):
    def mask(self, scores: Tensor, keep_BT: Tensor | None) -> Tensor:
        size = scores.shape[-1]
        return torch.ones(size, size, dtype=torch.bool).tril(1)[None, None]  # fault: one too many


class WeakMask(Attention):
    """Masks with a number that large scores reach."""

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return (8.0 * scores).masked_fill(~seen, -10.0).softmax(-1)  # fault: not low enough


class Multiplied(Attention):
    """A triangle is multiplied into the scores: what it hides has a score of 0, not of -inf."""

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return (scores * seen).softmax(-1)  # fault: multiplied mask


class AllKeys(Attention):
    """Linear attention that sums its keys before it looks at where they are."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BT: Tensor | None) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = k.transpose(-2, -1) @ v  # fault: one sum over all of time
        return (q @ state) / (q @ k.sum(-2)[..., None])


class DroppedMask(Attention):
    """Drops the mask on the path that training takes, where weights are dropped out."""

    dropout = 0.1

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        if self.dropout > 0:
            return F.dropout(
                scores.softmax(-1), self.dropout, self.training
            )  # fault: mask forgotten here
        return super().weigh(scores, seen)


class BothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, WIDTH // 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        states, _ = self.rnn(x_BTF)  # fault: both directions
        return self.head(states)


class Convolved(nn.Module):
    """A convolution over time, padded on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, WIDTH, 3, padding=2)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.leave = nn.Conv1d(WIDTH, 1, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        x_BDT = F.relu(self.enter(x_BTF.mT)[..., : x_BTF.shape[1]])
        x_BDT = F.relu(self.mix(x_BDT))  # fault: padded on both sides
        return self.leave(x_BDT).mT


class OverTime(nn.Module):
    """Normalises each feature by its statistics over the whole window."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        centred = h_BTD - h_BTD.mean(1, keepdim=True)  # fault: statistics of the future
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


class Summaries(nn.Module):
    """Adds to each step the mean of the block of four that it is in."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        size = h_BTD.shape[1] // 4 * 4
        blocks = h_BTD[:, :size].unflatten(1, (-1, 4))
        means = blocks.mean(2, keepdim=True).expand_as(blocks).flatten(1, 2)  # fault: whole blocks
        return h_BTD + F.pad(means, (0, 0, 0, h_BTD.shape[1] - size))


class Spectral(nn.Module):
    """A long filter through the Fourier transform, without room for it to end in."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(0.3 * torch.randn(13, WIDTH))

    def forward(self, h_BTD: Tensor) -> Tensor:
        size = h_BTD.shape[1]
        product = torch.fft.rfft(h_BTD, dim=1) * torch.fft.rfft(self.filter[:size], dim=0)
        return torch.fft.irfft(product, n=size, dim=1)  # fault: the filter wraps around


class TokenShift(nn.Module):
    """Mixes in the step before; the first step gets the last one."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        return h_BTD + 0.5 * h_BTD.roll(1, dims=1)  # fault: the end comes round


class ExpertChoice(nn.Module):
    """Each expert takes the tokens it likes best, from the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, h_BTD: Tensor) -> Tensor:
        score_BTE = self.router(h_BTD).softmax(-1)
        y = h_BTD
        for index, expert in enumerate(self.experts):
            taken = score_BTE[..., index].topk(3, dim=1).indices  # fault: best of the sequence
            where = F.one_hot(taken, h_BTD.shape[1]).sum(1)[..., None]
            y = y + where * score_BTE[..., index : index + 1] * expert(h_BTD)
        return y


class Capacity(nn.Module):
    """Experts with room for few tokens; who comes first is served, whichever sample it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x_BD: Tensor) -> Tensor:
        weight, chosen = self.router(x_BD).softmax(-1).max(-1)
        y = x_BD
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            served = mine & (mine.cumsum(0) <= 3)  # fault: capacity shared by the batch
            y = y + (served * weight)[:, None] * expert(x_BD)
        return y


class OverBatch(nn.Module):
    """Centres on the batch, in eval too."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)  # fault: mean of the batch


class BatchAsTime(nn.Module):
    """A GRU that takes the first axis for time is given the batch there."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        states, _ = self.rnn(x_BTF)  # fault: batch_first is missing
        return self.head(states)


class Viewed(nn.Module):
    """[T, B, D] is made [B, T, D] by a view: samples and steps are mixed."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_TBD = h_BTD.transpose(0, 1).contiguous()
        return h_TBD.view(h_BTD.shape)  # fault: a view for a transpose


class Layer(nn.Module):
    """torch's own encoder layer, which takes time first unless told."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(ids_BT)))  # fault: the batch where time belongs


ENTRIES = (
    future(
        name="no-mask",
        architecture="attention",
        mechanism="no-causal-mask",
        module="blocks.0.attention",
        marker="# fault: no causal mask",
        story="The loss of a language model falls to nearly 0 and it writes nonsense: attention "
        "sees the very tokens that are to be predicted.",
        build=lambda: parts.transformer(Unmasked),
    ),
    future(
        name="mask-off-by-one",
        architecture="attention",
        mechanism="off-by-one-mask",
        module="blocks.0.attention",
        marker="# fault: one too many",
        story="The triangle of the mask includes the next position: exactly the label is seen.",
        build=lambda: parts.transformer(OffByOne),
    ),
    future(
        name="weak-mask",
        architecture="attention",
        mechanism="mask-value-too-small",
        module="blocks.0.attention",
        marker="# fault: not low enough",
        blind=True,
        story="Training and validation loss are perfect and generation is terrible (a kind of "
        "report against small language models, as karpathy/minGPT 75): scores reach the finite "
        "number that stands for masked.",
        build=lambda: parts.transformer(WeakMask),
    ),
    future(
        name="multiplied-mask",
        architecture="attention",
        mechanism="multiplied-mask",
        module="blocks.0.attention",
        marker="# fault: multiplied mask",
        blind=True,
        story="A loss falls to 0 in fine-tuning (a kind of report against sliding windows, as "
        "huggingface/transformers 31673): the mask is multiplied in, and a score of 0 is no mask.",
        build=lambda: parts.transformer(Multiplied),
    ),
    future(
        name="linear-attention",
        architecture="attention",
        mechanism="no-causal-mask",
        module="blocks.0.attention",
        marker="# fault: one sum over all of time",
        blind=True,
        story="The loss goes to 0 after an epoch although causal was asked for (a kind of report "
        "against linear attention, as tatp22/linformer-pytorch 25): keys are summed over all "
        "of time.",
        build=lambda: parts.transformer(AllKeys),
    ),
    future(
        name="mask-lost-with-dropout",
        architecture="attention",
        mechanism="no-causal-mask",
        module="blocks.0.attention",
        marker="# fault: mask forgotten here",
        blind=True,
        story="The mask is there on the fast path only (a kind of report against attention "
        "layers, as keras-team/keras 23038): with dropout another path is taken, without it.",
        build=lambda: parts.transformer(DroppedMask),
    ),
    future(
        name="both-directions",
        architecture="recurrent",
        mechanism="bidirectional",
        module="rnn",
        marker="# fault: both directions",
        story="A forecaster is trained with a bidirectional GRU: it reads its targets.",
        build=lambda: parts.make_loop(BothWays(), parts.waves),
    ),
    future(
        name="same-padding",
        architecture="conv",
        mechanism="symmetric-padding",
        module="mix",
        marker="# fault: padded on both sides",
        story="One of the convolutions over time is padded on both sides instead of the left one.",
        build=lambda: parts.make_loop(Convolved(), parts.waves),
    ),
    future(
        name="scaled-over-time",
        architecture="recurrent",
        mechanism="scaling-leak",
        module="middle",
        marker="# fault: statistics of the future",
        story="Features are normalised over the whole window, so each step knows of those after "
        "it.",
        build=lambda: parts.recurrent(OverTime()),
    ),
    future(
        name="block-summaries",
        architecture="recurrent",
        mechanism="block-summary",
        module="middle",
        marker="# fault: whole blocks",
        blind=True,
        story="A validation loss far below what is possible (a kind of report against training "
        "records, as karpathy/nanochat 844): the mean of a block is given to its first step.",
        build=lambda: parts.recurrent(Summaries()),
    ),
    future(
        name="circular-filter",
        architecture="recurrent",
        mechanism="circular-convolution",
        module="middle",
        marker="# fault: the filter wraps around",
        blind=True,
        story="A spectral filter without padding is circular (the same kind of report, as "
        "karpathy/nanochat 844): the end of the window comes round to its start.",
        build=lambda: parts.recurrent(Spectral()),
    ),
    future(
        name="rolled-shift",
        architecture="recurrent",
        mechanism="roll-wraps",
        module="middle",
        marker="# fault: the end comes round",
        story="A token shift by roll: the first step is mixed with the last.",
        build=lambda: parts.recurrent(TokenShift()),
    ),
    future(
        name="expert-choice",
        architecture="moe",
        mechanism="capacity-leak",
        module="middle",
        marker="# fault: best of the sequence",
        story="Experts choose their tokens among the whole sequence: whether a token is taken "
        "depends on those after it.",
        build=lambda: parts.recurrent(ExpertChoice()),
    ),
    aside(
        name="capacity-of-batch",
        architecture="moe",
        mechanism="capacity-leak",
        module="middle",
        marker="# fault: capacity shared by the batch",
        story="Experts have room for three tokens of the batch: a sample is served or dropped "
        "for what the samples before it are.",
        build=lambda: parts.mlp(Capacity()),
    ),
    aside(
        name="batch-mean-in-eval",
        architecture="conv",
        mechanism="batch-statistics",
        module="middle",
        marker="# fault: mean of the batch",
        story="Features are centred on the batch in evaluation too: a prediction depends on its "
        "neighbours.",
        build=lambda: parts.conv(OverBatch()),
    ),
    aside(
        name="batch-as-time",
        architecture="recurrent",
        mechanism="wrong-axis",
        module="rnn",
        marker="# fault: batch_first is missing",
        blind=True,
        story="A GRU does worse than a mean (a kind of question in forums): batch_first is "
        "missing, so its states run through the samples.",
        build=lambda: parts.make_loop(BatchAsTime(), parts.waves),
    ),
    aside(
        name="view-for-transpose",
        architecture="recurrent",
        mechanism="wrong-axis",
        module="middle",
        marker="# fault: a view for a transpose",
        story="A view where a transpose was meant: shapes are right, samples and steps mixed.",
        build=lambda: parts.recurrent(Viewed()),
    ),
    aside(
        name="encoder-layer-axis",
        architecture="attention",
        mechanism="wrong-axis",
        module="layer.self_attn",
        marker="# fault: the batch where time belongs",
        blind=True,
        story="An encoder layer attends across samples (a kind of question in forums): it takes "
        "time first unless batch_first is set.",
        build=lambda: parts.make_loop(Layer(), parts.tokens, parts.classify),
    ),
)
