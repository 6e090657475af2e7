"""A search for NaN leaves training as it was, whatever the calls do that it makes again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.watched import WatchedLines

pytestmark = pytest.mark.trainer

B = 16


def bad_log(x: Tensor) -> Tensor:
    return 0 * x.sum(1).log().mean()


def play(model, measure, *, watched=True, others=(), autocast=None):
    """Train four steps, the third of which is bad; return findings and what training came to."""
    torch.manual_seed(3)
    run = WatchedLines()
    if watched:
        run.watch(model, (optimizer := torch.optim.SGD(model.parameters(), lr=0.1)), causal=False)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 5):
        x = torch.rand(B, 4, generator=torch.Generator().manual_seed(step)) + 0.1
        if step == 3:
            x[5] = -1.0
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = run.compute(measure, x) if watched else measure(x)
        optimizer.zero_grad()
        loss.backward()
        if loss.isfinite():
            optimizer.step()
        run.log({"loss": float(loss.detach())}, step=step)
    run.close()
    state = {}
    for index, module in enumerate((model, *others)):
        state |= {f"{index}.{name}": value.clone() for name, value in module.state_dict().items()}
        state |= {f"{index}.{name}.grad": p.grad for name, p in module.named_parameters()}
    found = [f for f in run.findings if f.kind in ("nan-origin", "non-finite", "detector-failed")]
    return found, state, torch.get_rng_state()


def check_twins(build):
    """Play a loop watched and unwatched: the same to the last bit; return the finding."""
    played = []
    for watched in (True, False):
        torch.manual_seed(0)
        model, measure, *others = build()
        played.append((model, *play(model, measure, watched=watched, others=others)))
    (one, found, state, rng), (other, _, expected, expected_rng) = played
    assert state.keys() == expected.keys()
    for name, value in state.items():
        left, right = (torch.zeros(1) if v is None else v for v in (value, expected[name]))
        assert torch.equal(left.nan_to_num(), right.nan_to_num()), name
    assert torch.equal(rng, expected_rng)
    assert getattr(one, "count", 0) == getattr(other, "count", 0)
    return found


class Counting(nn.Linear):
    """Has a state of its own, in Python."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.count, self.last = 0, torch.zeros(B, 1)
        self.draws = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.last = 0.5 * self.last + super().forward(x + torch.rand(4, generator=self.draws))
        out, self.last = self.last, self.last.detach()
        return out


class WritesWeights(nn.Linear):
    """Normalises its weights in each forward pass."""

    def __init__(self) -> None:
        super().__init__(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = F.normalize(self.weight.data, dim=1)
        return super().forward(x)


class Spectra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, dtype=torch.cfloat))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight).mean(1, keepdim=True)


def simple(kind):
    def build():
        model = kind()
        return model, lambda x: model(x).square().mean() + bad_log(x)

    return build


def with_decoder():
    encoder, decoder = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))
    return encoder, lambda x: decoder(encoder(x)).square().mean() + bad_log(x), decoder


def with_bad_gradient_of_decoder():
    encoder, decoder = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))

    def measure(x: Tensor) -> Tensor:
        y = encoder(x)
        bad = (0 * y[5]).sum().square().sqrt() if x[5, 0] < 0 else 0.0
        return decoder(y).square().mean() + bad

    return encoder, measure, decoder


def weight_normed():
    model = nn.utils.weight_norm(nn.Linear(4, 1))
    return model, lambda x: model(x).square().mean() + bad_log(x)


LOOPS = {
    "state-in-python": simple(Counting),
    "writes-weights": simple(WritesWeights),
    "complex": simple(Spectra),
    "batch-norm": simple(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))),
    "dropout": simple(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout())),
    "other-module": with_decoder,
    "gradient-of-other": with_bad_gradient_of_decoder,
}


@pytest.mark.parametrize("build", LOOPS.values(), ids=LOOPS)
def test_training_is_what_it_is_unwatched(build):
    finding = check_twins(build)[0]  # a bad gradient makes the next step bad, too
    assert finding.kind == "nan-origin"
    assert finding.step == 3


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_have_worked_out_are_not_written_to():
    (finding,) = check_twins(weight_normed)
    assert "fresh_model" not in finding.evidence  # nobody can draw its parts anew


def test_a_step_inside_of_the_call_is_not_taken_again():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taken = []

    def step(x: Tensor) -> Tensor:
        loss = model(x).square().mean() + bad_log(x)
        if loss.isfinite():
            loss.backward()
            optimizer.step()
            taken.append(1)
        return loss.detach()

    run = WatchedLines()
    run.watch(model, optimizer, causal=False)
    for bad in (False, False, True):
        run.compute(step, -torch.ones(B, 4) if bad else torch.ones(B, 4))
    run.close()
    assert len(taken) == 2


def test_an_input_that_a_call_writes_to_is_no_ground_for_a_search():
    def build():
        model = nn.Linear(4, 1)
        return model, lambda x: model(x.mul_(2.0)).square().mean() + bad_log(x)

    (finding,) = check_twins(build)
    assert finding.kind == "non-finite"


def test_a_norm_that_is_not_sized_yet_stops_nothing():
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(4, 1))
    run = WatchedLines()
    run.watch(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
    run.compute(lambda x: model(x).square().mean(), torch.rand(B, 4)).backward()
    run.close()
    assert [f for f in run.findings if f.kind == "detector-failed"] == []


def test_a_recurrent_model_is_really_fresh():
    model = nn.RNN(4, 3, nonlinearity="relu")  # holds its weights in a list of its own, too
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(1e30)
    run = WatchedLines()
    run.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), causal=False)
    run.compute(lambda x: model(x)[0].square().mean(), torch.rand(B, 4))
    run.close()
    (finding,) = [f for f in run.findings if f.kind == "nan-origin"]
    assert finding.evidence["fresh_model"] == "passes"


def test_the_autocast_around_a_call_is_a_part_of_it():
    def build():
        model = nn.Linear(4, 1)
        with torch.no_grad():
            model.weight.fill_(1e4)
        return model, lambda x: model(x + 50 * (x[5, 0] < 0)).square().mean()

    model, measure = build()
    found, *_ = play(model, measure, autocast=torch.float16)
    (finding,) = found
    assert finding.evidence["mechanism"] == "overflow-fp16"
