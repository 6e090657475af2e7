"""Who brings a NaN about: a call that was bad, run again in other ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tsx.diagnostics.nonfinite import trials
from tsx.diagnostics.nonfinite.held_call import HeldCall
from tsx.diagnostics.nonfinite.trials import Explainer
from tsx.diagnostics.tracing.replay import Rewinder

pytestmark = pytest.mark.trainer


class LogModel(nn.Module):
    """Takes the logarithm of a sum: negative sums, of a sample or of the weights, are bad."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x.sum(1).log() + 0 * self.head(x)[:, 0]).mean()


def explain(model, *args, previous=(), backward=False, **kwargs):
    rewinder = Rewinder(model)
    explainer = Explainer(model, rewinder, lambda result: result)
    call = HeldCall(model, args, kwargs, rewinder.take())
    before = HeldCall(model, previous, {}, rewinder.take()) if previous else None
    found = explainer.explain([call], lambda index: before, backward=backward)
    assert found is not None
    return found.evidence


def batch_with(*rows, size=6):
    x = torch.ones(size, 3)
    x[list(rows)] = -1.0
    return x


def test_the_samples_are_found_and_the_others_pass():
    known = explain(LogModel(), batch_with(1, 4), previous=(batch_with(),))
    assert known == {
        "fresh_model": "fails",
        "previous_batch": "passes",
        "samples": [1, 4],
        "num_samples": 2,
    }


def test_samples_given_by_name_or_in_a_dict_are_found():
    assert explain(LogModel(), x=batch_with(3))["samples"] == [3]

    class OfDict(LogModel):
        def forward(self, batch):
            return super().forward(batch["x"])

    held = {"x": batch_with(0, 5), "ids": torch.arange(6), "name": "a"}
    assert explain(OfDict(), held)["samples"] == [0, 5]


def test_no_sample_is_guilty_where_all_are():
    known = explain(LogModel(), -torch.ones(40, 3))
    assert "samples" not in known
    assert known["fresh_model"] == "fails"


def test_many_guilty_samples_are_counted_and_the_first_named():
    known = explain(LogModel(), batch_with(*range(30), size=32))
    assert known["samples"] == list(range(trials.MAX_SAMPLES))
    assert known["num_samples"] == 30


def test_weights_that_ran_away_pass_when_they_are_fresh():
    class Exploded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return (self.head(x) ** 2).mean()

    model = Exploded()
    nn.init.constant_(model.head.weight, 1e30)
    before = model.head.weight.detach().clone()
    known = explain(model, torch.ones(4, 3), previous=(torch.ones(4, 3),))
    assert known == {"fresh_model": "passes", "previous_batch": "fails"}
    assert torch.equal(model.head.weight, before)


def test_running_statistics_stay_what_they_are():
    class Normed(LogModel):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.norm(x).sum()

    model = Normed()
    model(torch.randn(6, 3) + 2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert explain(model, batch_with(1))["fresh_model"] == "fails"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_is_fresh_when_each_of_its_parameters_is_drawn_anew():
    class Scaled(LogModel):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(-1.0))  # what turns sums negative

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.scale * x)

    class Drawn(Scaled):
        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, Scaled):
                nn.init.ones_(module.scale)

    x = torch.ones(6, 3)
    assert "fresh_model" not in explain(Scaled(), x)  # nobody can draw its scale
    assert explain(Drawn(), x)["fresh_model"] == "passes"

    class Attends(LogModel):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)  # whose name for it is private

    assert explain(Attends(), -x)["fresh_model"] == "fails"


def test_a_trial_that_fails_itself_leaves_out_what_it_would_tell():
    class Stubborn(LogModel):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 6:
                raise ValueError("six samples, please")
            return super().forward(x)

    class Broken(nn.Linear):
        def reset_parameters(self) -> None:
            if hasattr(self, "weight") and self.weight.sum() != 0:
                raise RuntimeError("only once")
            super().reset_parameters()

    model = Stubborn()
    model.head = nn.Linear(3, 1)
    assert explain(model, batch_with(1)) == {"fresh_model": "fails"}
    model.head.__class__ = Broken
    assert explain(model, batch_with(1)) == {}


def test_a_batch_before_whose_memory_holds_this_one_is_not_tried():
    x = batch_with(1)  # a program may copy each batch to the same place
    assert "previous_batch" not in explain(LogModel(), x, previous=(x,))


def test_no_trial_begins_that_would_take_too_long(monkeypatch):
    monkeypatch.setattr(trials, "MAX_S", 0.0)
    monkeypatch.setattr(trials, "_OF_ORIGIN", {False: 10.0})
    assert explain(LogModel(), batch_with(1), previous=(batch_with(),)) == {}


def test_compiled_models_are_tried_as_they_were_written():
    model = LogModel()
    model.compile(backend=_count_graphs)
    _count_graphs.count = 0
    model(batch_with())
    was = _count_graphs.count
    rewinder = Rewinder(model)
    call = HeldCall(model, (batch_with(2),), {}, rewinder.take())
    explainer = Explainer(model, rewinder, lambda result: result)
    found = explainer.explain([call], lambda index: None, backward=False)
    assert found.evidence["samples"] == [2]
    assert _count_graphs.count == was > 0
    torch._dynamo.reset()


def _count_graphs(graph, inputs):
    _count_graphs.count += 1
    return graph.forward


def test_a_sample_that_is_bad_only_by_itself_is_innocent():
    def measure(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x, y, ignore_index=-100) + x.sum(1).log().mean() * 0

    model = nn.Linear(1, 1)
    rewinder = Rewinder(model)
    labels = torch.zeros(8, dtype=torch.long)
    labels[4] = -100  # its own mean is of nothing
    call = HeldCall(measure, (batch_with(5, size=8), labels), {}, rewinder.take())
    explainer = Explainer(model, rewinder, lambda result: result + 0 * model.weight.sum())
    found = explainer.explain([call], lambda index: None, backward=False)
    assert found.evidence["samples"] == [5]


def test_a_call_of_another_function_is_not_the_batch_before():
    model = LogModel()
    rewinder = Rewinder(model)
    explainer = Explainer(model, rewinder, lambda result: result)
    bad = HeldCall(lambda x: model(x), (batch_with(1),), {}, rewinder.take())
    other = HeldCall(lambda x: x.sum(), (batch_with(),), {}, rewinder.take())
    closed = HeldCall(bad.fn, (), {}, rewinder.take())  # over a variable of the loop
    for before in (other, closed):
        found = explainer.explain([bad], lambda index, b=before: b, backward=False)
        assert "previous_batch" not in found.evidence


@pytest.mark.parametrize(
    ("hidden", "mechanism"),
    [
        (torch.ones(6, 6).tril() > 0, "inverted-mask"),  # causal, the wrong way round
        (torch.ones(6, 6).triu() > 0, "fully-masked-row"),  # causal, off by one
        (
            torch.arange(6).expand(6, 6) >= torch.tensor([0, 2, 2, 2, 3, 1])[:, None],
            "fully-masked-row",
        ),
    ],
)
def test_masks_are_called_inverted_where_they_are(hidden, mechanism):
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x).expand(2, 6, 6)
            return scores.masked_fill(hidden, -torch.inf).softmax(-1).sum()

    model = Masked(6, 6)
    rewinder = Rewinder(model)
    call = HeldCall(model, (torch.rand(6, 6),), {}, rewinder.take())
    explainer = Explainer(model, rewinder, lambda result: result)
    found = explainer.explain([call], lambda index: None, backward=False)
    assert found.origin.cause.mechanism == mechanism
