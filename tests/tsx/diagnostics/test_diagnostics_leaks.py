"""Leaks of the future and of the batch: whose outputs may move with what, and who is left alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from registry.events import Severity
from tests.faults.watched import WatchedLines
from tsx.diagnostics.masks.layout import find_layout, find_shift
from tsx.diagnostics.masks.leak_trial import MAX_SAMPLES
from tsx.diagnostics.masks.leaks import Leaks
from tsx.diagnostics.masks.probes import change, choose_step, count_settled

pytestmark = pytest.mark.trainer

WORDS, WIDTH, SAMPLES, STEPS = 20, 16, 4, 16


@pytest.fixture(autouse=True)
def only_leaks(monkeypatch):
    """Ask nobody else, and draw from one seed."""
    monkeypatch.setattr("tsx.diagnostics.roster.DETECTORS", (Leaks,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def text():
    ids = torch.randint(0, WORDS, (SAMPLES, STEPS + 1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


@pytest.fixture
def series():
    points = torch.randn(SAMPLES, STEPS + 1, 1).cumsum(1)
    return points[:, :-1], points[:, 1:]


def watch(model, fn, *args, steps=1, **declared):
    """Take steps of a loop and return what was found."""
    run, optimizer = WatchedLines(), torch.optim.SGD(model.parameters(), lr=1e-3)
    run.watch(model, optimizer, **declared)
    for _ in range(steps):
        optimizer.zero_grad()
        run.compute(fn, *args).backward()
        optimizer.step()
    run.close()
    return run.findings


def score(output, target):
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), target.reshape(-1))


class Words(nn.Module):
    """Embeds, mixes steps by whatever is asked for, and guesses."""

    def __init__(self, mix=None, *, hides=True, time_first=False):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.1, batch_first=not time_first)
        self.mix = mix or layer
        self.is_own = mix is not None
        self.hides = hides
        self.head = nn.Linear(WIDTH, WORDS)
        self.time_first = time_first

    def forward(self, ids):
        x = self.embed(ids)
        if self.is_own:
            x = self.mix(x)
        else:
            size = ids.shape[0 if self.time_first else 1]
            mask = nn.Transformer.generate_square_subsequent_mask(size) if self.hides else None
            x = self.mix(x, src_mask=mask)
        return self.head(x[0] if isinstance(x, tuple) else x)


class ByHand(nn.Module):
    """Attention of one head; `mask` changes the scores."""

    def __init__(self, mask):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mask = mask

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.mask(q @ k.mT / 4, self).softmax(-1) @ v


def ahead(scores, diagonal=1):
    return torch.ones_like(scores, dtype=torch.bool).triu(diagonal)


MASKS = {
    "no-causal-mask": lambda s, m: s,
    "off-by-one-mask": lambda s, m: s.masked_fill(ahead(s, 2), -torch.inf),
    "mask-value-too-small": lambda s, m: s + ahead(s) * -4.0,
    "multiplied-mask": lambda s, m: s * ~ahead(s),
}


@pytest.mark.parametrize("mechanism", MASKS)
def test_a_mask_that_lets_the_future_through_has_its_cause(text, mechanism):
    model = Words(ByHand(MASKS[mechanism]))
    (found,) = watch(model, lambda x, y: score(model(x), y), *text)
    assert (found.kind, found.severity) == ("future-leak", Severity.ERROR)
    assert (found.evidence["mechanism"], found.module) == (mechanism, "mix")
    assert "test_diagnostics_leaks.py" in found.where
    assert found.step == 1


def test_a_mask_that_is_dropped_in_training_alone_is_found(text):
    mask = lambda s, m: s if m.training else s.masked_fill(ahead(s), -torch.inf)  # noqa: E731
    model = Words(nn.Sequential(nn.Dropout(0.3), ByHand(mask)))
    (found,) = watch(model, lambda x, y: score(model(x), y), *text)
    assert found.evidence["mode"] == "train, without dropout"
    assert (found.evidence["mechanism"], found.module) == ("no-causal-mask", "mix.1")


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("hides", [False, True])
def test_time_is_where_a_target_is_the_input_one_step_later(text, time_first, hides):
    model = Words(hides=hides, time_first=time_first)
    x, y = (part.T.contiguous() for part in text) if time_first else text
    found = watch(model, lambda x, y: score(model(x), y), x, y)
    assert [f.module for f in found] == ([] if hides else ["mix.self_attn"])


def test_a_model_that_shifts_its_labels_by_itself_is_judged(text):
    model = Words(hides=False)

    def loss(batch):
        return score(model(batch["ids"])[:, :-1], batch["labels"][:, 1:])

    (found,) = watch(model, loss, {"ids": text[0], "labels": text[0].clone()})
    assert found.kind == "future-leak"


def test_a_model_that_returns_its_loss_alone_is_judged(text):
    class Scored(Words):
        def forward(self, ids, target):
            return score(super().forward(ids), target)

    model = Scored(hides=False)
    (found,) = watch(model, lambda x, y: model(x, y), *text)
    assert (found.kind, found.module) == ("future-leak", "mix.self_attn")


def test_a_branch_that_starts_at_zero_hides_nothing(text):
    class Residual(ByHand):
        def __init__(self):
            super().__init__(MASKS["no-causal-mask"])
            self.out = nn.Linear(WIDTH, WIDTH)
            nn.init.zeros_(self.out.weight)

        def forward(self, x):
            return x + self.out(super().forward(x))

    model = Words(Residual())
    (found,) = watch(model, lambda x, y: score(model(x), y), *text)
    assert found.evidence["mechanism"] == "no-causal-mask"
    assert not model.mix.out.weight.detach().any() or model.mix.out.weight.grad is not None


def test_who_declares_a_model_that_may_look_ahead_hears_nothing(text):
    model = Words(hides=False)
    assert watch(model, lambda x, y: score(model(x), y), *text, causal=False) == []


class Norm(nn.Module):
    """A convolution of the past, then features scaled over all of time."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm = nn.Conv1d(1, WIDTH, 3), nn.GroupNorm(2, WIDTH)
        self.leave = nn.Conv1d(WIDTH, 1, 1)

    def forward(self, x):
        return self.leave(F.relu(self.norm(self.enter(F.pad(x.mT, (2, 0)))))).mT


@pytest.mark.parametrize(("causal", "severity"), [(True, Severity.ERROR), (None, Severity.INFO)])
def test_a_window_scaled_by_itself_is_a_fault_of_what_is_declared_causal(series, causal, severity):
    model = Norm()
    (found,) = watch(model, lambda x, y: F.mse_loss(model(x), y), *series, causal=causal)
    assert (found.severity, found.module) == (severity, "norm")
    assert found.evidence["mechanism"] == "scaling-leak"


class Table(nn.Module):
    """Every row against every other."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, WIDTH), nn.Linear(8, WIDTH)

    def forward(self, x):
        return F.cross_entropy(
            self.left(x) @ self.right(x).T, torch.arange(len(x)), reduction="none"
        )


class Spread(nn.Module):
    """A judge of pictures that is told how much they differ among each other."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(5 * 64, 1)

    def forward(self, x):
        h = self.conv(x)
        spread = h.std(0).mean().expand(len(h), 1, 8, 8)
        return self.head(torch.cat([h, spread], 1).flatten(1))


class Graph(nn.Module):
    """Nodes [N, F] and edges [2, E]."""

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x, edges):
        h = self.enter(x)
        return self.head(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]).relu())


class Bag(nn.Module):
    """One bag of pictures is one sample; their weights add up to 1."""

    def __init__(self):
        super().__init__()
        self.conv, self.weigh, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        h = self.conv(x).mean((2, 3))
        weight = self.weigh(h).softmax(0)
        return self.head((weight * h).sum(0)), weight


class Steps(nn.Module):
    """A GRU that takes time first, as torch's does unless told."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class CentredInTraining(nn.Module):
    """Statistics of the batch where torch's own norm has them too."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x):
        h = self.enter(x)
        return self.leave(h - h.mean((0, 1), keepdim=True) if self.training else h)


PICTURES = torch.linspace(-1, 1, 6 * 64).sin().view(6, 1, 8, 8)
ROWS = torch.linspace(-3, 3, 80).cos().view(10, 8)
FRAMES = torch.linspace(-3, 3, 96).cos().view(16, 6)
INNOCENT = {
    "contrastive": (Table, lambda m, x: m(x).mean(), (ROWS,)),
    "spread-of-batch": (Spread, lambda m, x: F.softplus(m(x)).mean(), (PICTURES,)),
    "graph": (
        Graph,
        lambda m, x, e, y: F.mse_loss(m(x, e), y),
        (ROWS, torch.arange(40).view(2, 20) % 10, ROWS[:, :1]),
    ),
    "bag": (Bag, lambda m, x, y: F.mse_loss(m(x)[0], y), (PICTURES, torch.ones(1))),
    "one-sequence": (Steps, lambda m, x, y: score(m(x), y), (FRAMES, torch.arange(16) % 3)),
    "time-first": (
        Steps,
        lambda m, x, y: score(m(x)[-1], y),
        (FRAMES.view(4, 4, 6).repeat(2, 1, 1), torch.arange(4) % 3),
    ),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_samples_that_meet_on_purpose_are_left_alone(name):
    build, loss, args = INNOCENT[name]
    model = build()
    assert watch(model, lambda *given: loss(model, *given), *args) == []


def test_statistics_of_the_batch_in_training_alone_are_left_alone(series):
    model = CentredInTraining()
    assert watch(model, lambda x, y: F.mse_loss(model(x), y), *series, causal=True) == []


def test_a_convolution_without_padding_is_measured_at_its_own_length(series):
    def loss(x, y):
        return F.mse_loss(model(x.mT).mT, y[:, 4:])

    model = nn.Sequential(nn.Conv1d(1, WIDTH, 3), nn.ReLU(), nn.Conv1d(WIDTH, 1, 3))
    assert watch(model, loss, *series, causal=True) == []


def test_a_decoder_may_see_all_that_is_translated(text):
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
            self.both = nn.Transformer(WIDTH, 2, 1, 1, 32, 0.1, batch_first=True)

        def forward(self, source, ids):
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            return self.head(self.both(self.embed(source), self.embed(ids), tgt_mask=mask))

    model = Translator()
    source = torch.randint(0, WORDS, (SAMPLES, 11))
    assert watch(model, lambda s, x, y: score(model(s, x), y), source, *text) == []


def test_the_probes_leave_nothing_behind(text):
    class Busy(ByHand):
        def __init__(self):
            super().__init__(MASKS["no-causal-mask"])
            self.norm, self.calls, self.seen, self.last = nn.BatchNorm1d(WIDTH), 0, [], None

        def forward(self, x):
            self.calls += 1
            self.seen.append(self.calls)
            self.last = super().forward(F.dropout(x, 0.5, self.training))
            self.cache = self.norm(self.last.flatten(0, 1)).view_as(x)
            return self.cache + torch.rand(())

    model = Words(Busy())
    twin = copy.deepcopy(model)
    hooked = []
    model.head.register_forward_hook(lambda *given: hooked.append(1))
    state = torch.get_rng_state()
    found = watch(model, lambda x, y: score(model(x), y), *text, steps=2)
    assert [f.kind for f in found] == ["future-leak"]
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        score(twin(text[0]), text[1]).backward()
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), drawn)
    for (name, mine), other in zip(
        model.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other), name
    assert (model.mix.calls, model.mix.seen, hooked) == (2, [1, 2], [1, 1])
    assert model.mix.last.requires_grad


def test_a_large_batch_is_probed_in_part_where_the_model_takes_it(text):
    sizes = []

    class Counting(Words):
        def forward(self, ids):
            sizes.append(len(ids))
            return super().forward(ids)

    x, y = (part.repeat(10, 1) for part in text)
    model = Counting(hides=False)
    (found,) = watch(model, lambda x, y: score(model(x), y), x, y)
    assert found.module == "mix.self_attn"
    assert sizes[0] == 40
    assert max(sizes[1:]) == MAX_SAMPLES

    class Fixed(Counting):
        def forward(self, ids):
            return super().forward(ids) + torch.zeros(40, 1, 1)

    model = Fixed(hides=False)
    (found,) = watch(model, lambda x, y: score(model(x), y), x, y)
    assert found.module == "mix.self_attn"


def test_a_model_that_cannot_be_run_again_is_not_judged(text):
    class Once(Words):
        def forward(self, ids):
            if not self.training:
                raise ValueError("never meant to be used")
            return super().forward(ids)

    model = Once(hides=False)
    assert watch(model, lambda x, y: score(model(x), y), *text) == []


@pytest.mark.parametrize(
    "batch",
    [
        (),
        (None, "words", 3),
        (torch.zeros(0, 4),),
        (torch.ones(3, 4).to_sparse(),),
        (torch.ones(3, 4, dtype=torch.complex64),),
        (torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool), {"deep": [torch.ones(())]}),
        (torch.full((3, 4), torch.nan),),
    ],
)
def test_odd_arguments_are_no_matter(batch):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, *given):
            return SimpleNamespace(out=given, loss=self.weight * 2)

    model = Odd()
    assert watch(model, lambda *given: model(*given).loss, *batch, causal=True) == []


def test_a_shift_is_found_along_its_axis_and_through_flat_labels():
    x = torch.arange(30).view(3, 10) ** 2 % 17
    later = torch.cat([x[:, 1:], torch.full((3, 1), -100)], 1)
    counted = find_shift(x, later, 1)
    assert counted is not None
    assert counted.sum() == 27
    assert find_shift(x, later.flatten(), 1) is not None
    assert find_shift(x, x[:, 1:].flatten(), 1) is not None
    assert find_shift(x.T, later.T, 0) is not None
    mask = torch.zeros(x.shape[0], x.shape[1], x.shape[1] + 1, dtype=torch.bool)
    assert find_shift(x[..., None].expand(-1, -1, 4), mask, 1) is None  # of other features
    assert find_shift(x, x, 1) is None
    assert find_shift(x, later, 0) is None
    assert find_shift(torch.zeros(3, 10), torch.zeros(3, 10), 1) is None


@pytest.mark.parametrize("time_first", [False, True])
def test_windows_that_follow_each_other_do_not_tell_their_axes(time_first):
    ids = torch.randint(0, WORDS, (SAMPLES + STEPS,)).unfold(0, STEPS, 1)
    x, y = (part.T.contiguous() if time_first else part.clone() for part in (ids[:-1], ids[1:]))
    model = Words(time_first=time_first)
    assert watch(model, lambda x, y: score(model(x), y), x, y) == []


def test_who_cannot_tell_the_batch_says_so():
    frames, gru = torch.randn(7, 4, 6), nn.GRU(6, 6)
    assert find_layout([frames], [torch.zeros(7, 4)], gru, is_causal=False) is None
    layout = find_layout([frames], [torch.zeros(4)], gru, is_causal=False)
    assert layout is not None
    assert (layout.batch, layout.is_sure) == (1, True)
    edges = torch.zeros(2, 9, dtype=torch.int64)
    assert find_layout([torch.randn(7, 6), edges], [], gru, is_causal=False) is None


@pytest.mark.parametrize(
    ("length", "settled"), [(24, 17), (6, 4), (20, 13), (25, 0), (5, 0)], ids=str
)
def test_what_must_not_move_follows_the_length_of_the_output(length, settled):
    assert count_settled(length, 24, 17) == settled


def test_the_future_starts_where_no_block_does():
    assert [choose_step(size) for size in (4, 9, 24, 100)] == [3, 5, 17, 73]


def test_changes_stay_what_the_input_is():
    ids = torch.tensor([[3, 5, 9], [5, 3, 9]])
    other = change(ids, (0, slice(1, None)))
    assert set(other.unique().tolist()) <= {3, 5, 9}
    assert (other != ids).sum() == 2
    assert change(torch.full((2, 3), 7), (0,)) is None
    halves = torch.randn(2, 3).bfloat16()
    assert change(halves, (0,)).dtype is torch.bfloat16
