"""Is our model the official one? `make parity OFFICIAL=PATH/TO/Time-MoE` (one command).

Same weights, same batches, one process, fp32: differences of loss, auxiliary loss, outputs and
gradients, then ten AdamW steps of each, then the readers. Exit status 1 when a limit is missed.
`--write-golden` also writes what the tests hold the model to (tests/assets/official).
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import official
from benchmarks.official import BASE, TINY, Data
from benchmarks.parity_data import compare_readers, make_golden_windows
from tsx.config import AuxReduction, ModelConfig
from tsx.model.forecaster import Forecast
from tsx.model.losses import Losses, forecast_loss
from tsx.model.weights import to_official

GOLDEN = Path(__file__).parent.parent / "tests" / "assets" / "official"
GOLDEN_MODEL = ModelConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_experts=4,
    top_k=2,
    d_ff=24,
    horizons=(1, 4, 8),
    aux_reduction=AuxReduction.CONCATENATED,
)
STEPS, LR = 10, 1e-3


class Row(NamedTuple):
    """One comparison: what differed by how much, and what is allowed."""

    case: str
    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Return whether the limit holds; NaN does not."""
        return self.value <= self.limit


def main() -> int:
    """Compare everything; print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of Time-MoE/Time-MoE")
    parser.add_argument("--corpus", type=Path, help="Time-300B layout, for the readers")
    parser.add_argument("--write-golden", action="store_true", help="write tests/assets/official")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    args = parser.parse_args()
    official.open_checkout(args.checkout)
    torch.set_num_threads(2)
    if args.write_golden:
        write_golden(GOLDEN)
    rows = list(compare_models())
    if args.corpus is not None:
        rows += [Row(*row) for row in compare_readers(args.corpus)]
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        print("| case | difference | measured | limit |\n|---|---|---|---|")
        for row in rows:
            miss = "" if row.passed else ": **missed**"
            print(f"| {row.case} | {row.what} | {row.value:.3g} | {row.limit:.3g}{miss} |")
    return 0 if all(row.passed for row in rows) else 1


def compare_models() -> Iterator[Row]:
    """Yield every comparison of the two models."""
    for size, config, batch, count in (("tiny", TINY, 8, 10), ("base", BASE, 2, 3)):
        for padded in (False, True):
            case = f"{size}, B{batch} T512{', right-padded' if padded else ''}"
            theirs, ours = official.make_pair(config)
            batches = [
                official.draw_batch(batch, 512, seed=seed, padded=padded) for seed in range(count)
            ]
            yield from _compare_losses(case, theirs, ours, batches)
            yield from _compare_pass(case, theirs, ours, batches[0])
            yield _compare_training(case, theirs, ours, batches[0])


@torch.no_grad()
def _compare_losses(case: str, theirs: Any, ours: Any, batches: list[Data]) -> Iterator[Row]:
    """Compare the losses of several batches, and the loss functions on the very same outputs."""
    gaps, on_same_outputs = [], []
    for data in batches:
        forecast = ours(data.input_BC, data.mask_BC)
        found = _get_losses(ours, forecast, data).total
        gaps.append(abs(found.item() - official.run_official(theirs, data).loss.item()))
        outputs = tuple(official.predict_official(theirs, data))
        hubers = [
            theirs.calc_ar_loss(output, data.target_BC.clone(), data.mask_BC.float(), horizon)
            for output, horizon in zip(outputs, ours.config.horizons, strict=True)
        ]
        again = _get_losses(ours, forecast._replace(predictions=outputs), data)
        on_same_outputs.append(_gap(again.pred_O, torch.stack(hubers)))
    equal = sum(gap == 0 for gap in gaps)
    yield Row(case, "Huber loss per horizon of the same outputs", max(on_same_outputs), 0.0)
    # Outputs differ by rounding, and now and then a rounded sum of them by one unit: 2^-24 at 0.5.
    yield Row(case, f"loss (equal in {equal} of {len(batches)} batches)", max(gaps), 2.0**-24)


def _compare_pass(case: str, theirs: Any, ours: Any, data: Data) -> Iterator[Row]:
    """Compare outputs, auxiliary loss and gradients; no gradient is left behind."""
    official.run_official(theirs, data).loss.backward()
    forecast = ours(data.input_BC, data.mask_BC)
    losses = _get_losses(ours, forecast, data)
    losses.total.backward()
    with torch.no_grad():
        outputs = zip(official.predict_official(theirs, data), forecast.predictions, strict=True)
        yield Row(case, "outputs", max(_gap(a, b) for a, b in outputs), 2e-6)
        aux = compute_official_aux(theirs, data)
        yield Row(case, "aux", abs(aux.item() - losses.aux.item()), 2.0**-22)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    found = to_official({name: p.grad for name, p in ours.named_parameters()}, ours.config)
    yield Row(case, "gradients", max(_gap(expected[name], found[name]) for name in expected), 1e-6)
    for model in (theirs, ours):
        model.zero_grad(set_to_none=True)


def _compare_training(case: str, theirs: Any, ours: Any, data: Data) -> Row:
    """Compare the loss after AdamW steps on one batch."""
    expected = train_official(theirs, data)[-1]
    optimizer = _make_optimizer(ours)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _get_losses(ours, ours(data.input_BC, data.mask_BC), data).total.backward()
        optimizer.step()
    with torch.no_grad():
        found = _get_losses(ours, ours(data.input_BC, data.mask_BC), data).total.item()
    return Row(case, f"loss after {STEPS} AdamW steps", abs(expected - found), 5e-7)


def train_official(model: Any, data: Data) -> list[float]:
    """Train the official model on one batch; return the loss before each step and at the end."""
    optimizer = _make_optimizer(model)
    values = []
    for _ in range(STEPS):
        loss = official.run_official(model, data).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    with torch.no_grad():
        values.append(official.run_official(model, data).loss.item())
    return values


def _make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)


def compute_official_aux(model: Any, data: Data) -> Tensor:
    """Return the official load-balancing loss of one batch."""
    models = importlib.import_module("time_moe.models.modeling_time_moe")
    outputs = model.model(input_ids=data.input_BC.clone(), use_cache=False)
    aux: Tensor = models.load_balancing_loss_func(
        outputs.router_logits, model.num_experts_per_tok, model.config.num_experts
    )
    return aux


def write_golden(folder: Path) -> None:
    """Write a tiny official model as it saves itself, a batch, and what it makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    # A narrow model needs larger weights for every part to matter to what comes out.
    model = official.make_official(
        GOLDEN_MODEL, official.draw_tensors(GOLDEN_MODEL, seed=6, std=0.2)
    )
    model.save_pretrained(folder, safe_serialization=True)
    data = official.draw_batch(3, 40, seed=1)
    result = official.run_official(model, data)
    result.loss.backward()
    golden = {
        "input_BC": data.input_BC,
        "target_BC": data.target_BC,
        "mask_BC": data.mask_BC,
        "loss": result.loss.detach().reshape(1),
        "aux": compute_official_aux(model, data).detach().reshape(1),
    }
    outputs = zip(GOLDEN_MODEL.horizons, official.predict_official(model, data), strict=True)
    golden |= {f"prediction.{horizon}": output.detach() for horizon, output in outputs}
    golden |= {f"gradient.{name}": p.grad.clone() for name, p in model.named_parameters()}
    golden["training_losses"] = torch.tensor(train_official(model, data))
    golden |= make_golden_windows(folder / "corpus" / "other" / "tiny")
    save_file(golden, folder / "golden.safetensors")
    (folder / "generation_config.json").unlink(missing_ok=True)
    print(f"wrote {folder}", file=sys.stderr)


def _get_losses(ours: Any, forecast: Forecast, data: Data) -> Losses:
    return forecast_loss(forecast, data.target_BC, data.mask_BC, ours.config)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


if __name__ == "__main__":
    sys.exit(main())
