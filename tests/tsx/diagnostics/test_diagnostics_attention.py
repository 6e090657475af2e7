"""Masks and axes of attention, beyond the plants: what is read from a call, who is left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults.watched import WatchedLines
from tsx.diagnostics.masks.attention import AttentionAudit
from tsx.diagnostics.masks.attention_sites import find_allowed
from tsx.diagnostics.masks.padding import find_padding
from tsx.diagnostics.tracing.tape import OpSeen

pytestmark = pytest.mark.trainer

WORDS, WIDTH, STEPS = 20, 16, 8
LENGTHS = torch.tensor([8, 5, 6, 3])
KEEP = torch.arange(STEPS)[None] < LENGTHS[:, None]


@pytest.fixture(autouse=True)
def only_attention(monkeypatch):
    """Ask nobody else, and draw from one seed."""
    monkeypatch.setattr("tsx.diagnostics.roster.DETECTORS", (AttentionAudit,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def padded():
    """Return tokens whose padding is 0, what to keep, and a class per sample."""
    ids = torch.randint(1, WORDS, (4, STEPS)).masked_fill(~KEEP, 0)
    return ids, KEEP, torch.tensor([0, 1, 2, 0])


def watch(model, fn, *args, steps=1, **declared):
    """Take steps of a loop and return (kind, mechanism, module) of what was found."""
    run, optimizer = WatchedLines(), torch.optim.SGD(model.parameters(), lr=1e-3)
    run.watch(model, optimizer, **declared)
    for _ in range(steps):
        optimizer.zero_grad()
        run.compute(fn, *args).backward()
        optimizer.step()
    run.close()
    return [(f.kind, f.evidence.get("mechanism"), f.module) for f in run.findings]


class Encoder(nn.Module):
    """nn.MultiheadAttention, a mean over what is kept, a class."""

    def __init__(self, mask):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)
        self.mask = mask

    def forward(self, ids, keep):
        x = self.layer(self.embed(ids), src_key_padding_mask=self.mask(keep))
        return self.head((x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True))


MASKS = {
    None: lambda keep: ~keep,
    "inverted-mask": lambda keep: keep,
    "mask-dropped": lambda keep: None,
}


@pytest.mark.parametrize("mechanism", MASKS)
def test_the_padding_of_torchs_own_attention(padded, mechanism):
    model = Encoder(MASKS[mechanism])
    found = watch(model, lambda x, k, y: F.cross_entropy(model(x, k), y), *padded)
    right = [] if mechanism is None else [("mask-audit", mechanism, "layer.self_attn")]
    assert found == right


class Fused(nn.Module):
    """torch's fused call with a mask of one's own."""

    def __init__(self, mask, layers=2):
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.mix = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(layers))
        self.mask = mask

    def forward(self, ids, keep):
        x = self.embed(ids)
        for layer in self.mix:
            q, k, v = layer(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(keep))
            x = x + y.transpose(1, 2).flatten(2)
        return self.head(x)


def past(keep):
    return torch.ones(keep.shape[1], keep.shape[1], dtype=torch.bool).tril()


def label(model):
    def loss(ids, keep):
        labels = ids.roll(-1, 1).masked_fill(~keep, -100)
        return F.cross_entropy(model(ids, keep).flatten(0, 1), labels.flatten())

    return loss


@pytest.mark.parametrize(
    ("mask", "mechanism"),
    [
        (lambda keep: past(keep), ""),
        (lambda keep: keep[:, None, None] & past(keep), ""),
        (lambda keep: keep[:, None, None] & keep[:, None, :, None], ""),
        (lambda keep: keep[:, None, None] & keep[:, None, :, None] & past(keep), ""),
        (lambda keep: torch.zeros_like(keep)[:, None, None], "inverted-mask"),
        (lambda keep: ~past(keep), "inverted-mask"),
        (lambda keep: keep.flip(1)[:, None, None] & past(keep), "fully-masked-row"),
        (
            lambda keep: torch.zeros(4, 1, 8, 8).masked_fill(
                ~(keep.flip(1)[:, None, None] & past(keep)), torch.finfo(torch.float32).min
            ),
            "uniform-row",
        ),
    ],
    ids=["past", "kept", "outer", "outer-past", "nothing", "future", "left", "lowest"],
)
def test_masks_of_the_fused_call(padded, mask, mechanism):
    model = Fused(mask)
    found = watch(model, label(model), *padded[:2], steps=2)
    assert found == ([("mask-audit", mechanism, "")] if mechanism else [])


def test_a_sample_of_padding_alone_may_see_nothing(padded):
    ids, keep = padded[0].clone(), padded[1].clone()
    ids[2], keep[2] = 0, False
    model = Fused(lambda keep: keep[:, None, None])
    assert watch(model, label(model), ids, keep) == []


def test_a_row_of_nothing_by_hand_is_left_to_who_explains_nan(padded):
    class ByHand(Fused):
        def forward(self, ids, keep):
            q, k, v = self.mix[0](self.embed(ids)).chunk(3, -1)
            scores = (q @ k.mT).masked_fill(~self.mask(keep), -torch.inf)
            return self.head(scores.softmax(-1) @ v)

    model = ByHand(lambda keep: keep.flip(1)[:, None] & past(keep))
    assert [kind for kind, *_ in watch(model, label(model), *padded[:2])] == ["nan-origin"]


class Swapped(Fused):
    """Heads stay after time; `features` have a row of their own each."""

    def __init__(self, *, features):
        super().__init__(None)
        self.features = features
        self.own = nn.Linear(WIDTH // 4, 3 * WIDTH // 4)

    def forward(self, ids, keep):
        x = self.embed(ids)
        if self.features:
            q, k, v = self.own(x.unflatten(-1, (4, -1))).chunk(3, -1)
        else:
            q, k, v = (part.unflatten(-1, (4, -1)) for part in self.mix[0](x).chunk(3, -1))
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(2))


@pytest.mark.parametrize("features", [False, True])
def test_heads_that_attend_to_heads_are_told_from_features_that_do(padded, features):
    model = Swapped(features=features)
    found = watch(model, label(model), *padded[:2], causal=True)
    assert found == ([] if features else [("attention-axis", "missing-transpose", "")])


def test_what_is_hidden_to_be_guessed_is_no_padding():
    x = torch.randn(4, STEPS, 2)
    hidden = ~KEEP
    asked = x.masked_fill(hidden[..., None], 0.0)
    assert find_padding([asked, hidden], [x]) is None
    assert find_padding([asked, torch.rand(4, STEPS) < 0.3], []) is None
    assert find_padding([x, KEEP], []) is None
    same = torch.arange(STEPS)[None].expand(4, -1) < 5
    assert find_padding([x.masked_fill(~same[..., None], 0.0), same], []) is None


@pytest.mark.parametrize("convert", [lambda m: m, lambda m: ~m, lambda m: m.long()])
def test_padding_is_read_whatever_true_means(convert):
    ids = (torch.arange(32).view(4, STEPS) + 1).masked_fill(~KEEP, 0)
    padding = find_padding([ids, convert(KEEP)], [])
    assert torch.equal(padding.pad_BT, ~KEEP)
    assert padding.is_given
    assert not find_padding([ids], [convert(KEEP)]).is_given


def test_calls_that_are_no_attention_are_not_read():
    empty = OpSeen("scaled_dot_product_attention", (), {}, None, "", "")
    assert find_allowed(empty) is None
    q = torch.randn(2, 3, 5, 4)
    call = OpSeen("scaled_dot_product_attention", (q, q, q), {"is_causal": True}, q, "", "")
    allowed, _ = find_allowed(call)
    assert torch.equal(allowed, torch.ones(5, 5, dtype=torch.bool).tril())
