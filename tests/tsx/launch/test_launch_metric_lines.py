"""What counts as a metric line, and what must not."""

from __future__ import annotations

import math
import random

import pytest

from tsx.launch.metric_lines import MAX_LINE_CHARS, MetricLine, MetricLines

DIARY = (
    "step=10 loss=3.4835 pred=0.5437 aux=146.9904 lr=1.00e-06 toks/s=41,364 tflops=98.48 mfu=5.89% "
    "step_ms=1416.51 sm_util=100.0% hbm_util=55.0%"
)


def find(*lines: str) -> list[tuple[int, dict[str, float]] | None]:
    reader = MetricLines()
    return [found and (found.step, found.values) for found in map(reader.find, lines)]


def feed(text: bytes, size: int) -> list[MetricLine]:
    reader = MetricLines()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    return [line for piece in pieces for line in reader.feed(piece)] + list(reader.finish())


@pytest.mark.parametrize(
    ("line", "step", "values"),
    [
        ("step=3 loss=-inf", 3, {"loss": -math.inf}),
        ("global_step=5 step=3 loss=1", 5, {"loss": 1.0}),
        ('{"epoch": 2, "step": 3, "loss": 1}', 3, {"epoch": 2.0, "loss": 1.0}),
        ("it 5, loss=2", 5, {"loss": 2.0}),
        ("[step 12] loss: 0.4", 12, {"loss": 0.4}),
        ("step: 1,200 loss: 1.2M", 1200, {"loss": 1.2e6}),
        ("epoch 3 loss 0.5 acc 7%", 3, {"loss": 0.5, "acc": 7.0}),
        ("Epoch 2/10 - 12s - loss: 0.5 - val_loss: 0.6", 2, {"loss": 0.5, "val_loss": 0.6}),
        (
            "Step: 12, Training Loss: 0.5, Test Accuracy: 98.1%",
            12,
            {"train/loss": 0.5, "test/accuracy": 98.1},
        ),
        ("2026-11-20 12:00:00,123 - INFO - step=10 loss=0.5", 10, {"loss": 0.5}),
        ("[2026-11-20 12:00:00] epoch 3 loss 0.5", 3, {"loss": 0.5}),
        ("INFO:root:step=10 loss=0.5", 10, {"loss": 0.5}),
        ("[rank0]: step=11 loss=0.4", 11, {"loss": 0.4}),
        ("Train Epoch: 1 [640/60000 (1%)]\tLoss: 2.300", 640, {"train/loss": 2.3}),
        (
            "Epoch: [0][ 10/5005]\tTime  0.5 ( 0.9)\tLoss 6.9e+00 (7.0e+00)\tAcc@1   0.00 ( 0.1)",
            10,
            {"time": 0.5, "loss": 6.9, "acc@1": 0.0},
        ),
        (
            "step 00010/21400 (0.5%) | loss: 10.9 | grad norm: 1.2 | dt: 123.45ms | tok/sec: 1,234",
            10,
            {"loss": 10.9, "grad_norm": 1.2, "dt_ms": 123.45, "tok_per_sec": 1234.0},
        ),
        (
            "step    1/19560 | train loss 11.009 | norm 15.2",
            1,
            {"train/loss": 11.009, "norm": 15.2},
        ),
        (
            "\x1b[1m10/100\x1b[0m \x1b[32m━━━\x1b[0m \x1b[1m0s\x1b[0m 5ms/step - accuracy: 0.9",
            10,
            {"accuracy": 0.9},
        ),
        ("{'loss': '0.4', 'step': 7}", 7, {"loss": 0.4}),
        ('{"iter": 7, "loss": 1e999, "ok": true}', 7, {"loss": math.inf}),
    ],
)
def test_a_metric_line(line: str, step: int, values: dict[str, float]) -> None:
    assert find(line) == [(step, values)]


def test_a_line_of_the_diaries() -> None:
    (found,) = find(DIARY)
    assert found is not None
    step, values = found
    assert step == 10
    assert values["toks_per_s"] == 41364.0
    assert values["step_ms"] == 1416.51
    assert len(values) == 10


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "loss=0.5",
        "step",
        "step=",
        "step=10",
        "step=1.5 loss=2",
        "step=-1",
        "step=99999999999999999999 loss=1",
        "timing data=0.14ms model=630.73ms step=630.87ms data%=0.0",
        "params total=23.11M (23,108,841) active=12.49M (12,492,009)",
        "run model=NVIDIA H100 PCIe precision=bf16 peak_vram_gb=74.64",
        "listening on port 8080 at step 3",
        "Saving checkpoint at step 100 to ckpt 3",
        "Resuming from step 100 of 500",
        "Loaded 5 files in 3 s, step 4",
        "step 4 host=10.0.0.1 version=1.2.3 date=2026-11-20 time=12:30:01 addr=0xff",
        "step 4 commit=12e4567 sha=123456 sum=9e99999 hex=0x1f id=77 seed=3 v1=1.2.3 big=9e999",
        "step 4 hash deadbeef, took 3x, q=12abc acc=1_000 name='7up'",
        "next batch in 5 minutes",
        '{"step": true, "loss": 1}',
        '{"loss": 1}',
        '{"step": 1, "note": "loss=3"}',
        '{"step": 1, "a": ' + "[" * 2000,
        "step=1 " + "x" * MAX_LINE_CHARS,
    ],
)
def test_no_metric_line(line: str) -> None:
    assert find(line) == [None]


def test_a_fraction_of_an_epoch_counts_lines() -> None:
    assert find(
        "{'loss': 0.5, 'learning_rate': 5e-05, 'epoch': 0.1}",
        "{'loss': 0.4, 'learning_rate': 4e-05, 'epoch': 0.2}",
        "{'eval_loss': 0.3, 'epoch': 0.2}",
    ) == [
        (1, {"loss": 0.5, "learning_rate": 5e-5, "epoch": 0.1}),
        (2, {"loss": 0.4, "learning_rate": 4e-5, "epoch": 0.2}),
        (2, {"eval_loss": 0.3, "epoch": 0.2}),
    ]


def test_a_line_without_a_step_follows_one_with_the_same_keys() -> None:
    assert find("step=4 loss=2", "loss=1", "acc=1", "loss=0.5") == [
        (4, {"loss": 2.0}),
        (5, {"loss": 1.0}),
        None,
        (6, {"loss": 0.5}),
    ]


@pytest.mark.parametrize(
    ("form", "steps"),
    [
        ("Epoch [{epoch}/3], Step [{step}/6], Loss: {loss}", [3, 6, 9, 12, 15, 18]),
        ("epoch={epoch} batch={step} loss={loss}", [3, 6, 9, 12, 15, 18]),
        ("Epoch {epoch}:  5%|#   | {step}/6 [00:01<00:02, loss={loss}]", [3, 6, 9, 12, 15, 18]),
        ("epoch {epoch} step {total}/18 loss {loss}", [3, 6, 9, 12, 15, 18]),
        ("epoch {epoch} global_step {total} step {step} loss {loss}", [3, 6, 9, 12, 15, 18]),
    ],
)
def test_steps_count_on_through_the_epochs(form: str, steps: list[int]) -> None:
    lines = [
        form.format(epoch=epoch, step=step, total=(epoch - 1) * 6 + step, loss=epoch + step / 10)
        for epoch in (1, 2, 3)
        for step in (3, 6)
    ]
    assert [found and found[0] for found in find(*lines)] == steps


def test_keras_epochs_are_told_on_a_line_of_their_own() -> None:
    bar = "{}/10 [===>...] - ETA: 0s - loss: 0.{}"
    found = find("Epoch 1/2", bar.format(5, 5), "Epoch 2/2", bar.format(5, 4))
    assert found == [None, (5, {"loss": 0.5}), None, (15, {"loss": 0.4})]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_bar_is_split_at_its_returns_and_told_once(size: int) -> None:
    bar = b"Epoch 0: 4/10 [loss=0.5]\rEpoch 0: 4/10 [loss=0.5]\rstep=5 loss=\xff\nstep=6 loss=3"
    steps = [(line.step, line.values) for line in feed(bar, size)]
    assert steps[-1] == (6, {"loss": 3.0})
    assert (5, {"loss": 3.0}) not in steps
    assert len(steps) == 2


def test_an_endless_line_is_passed_over_with_bounded_memory() -> None:
    reader = MetricLines()
    for _ in range(100):
        assert list(reader.feed(b"step=1 loss=2 " * 5000)) == []
    assert len(reader._rest) <= MAX_LINE_CHARS
    assert [line.step for line in reader.feed(b"loss=3\nstep=7 loss=1\n")] == [7]


HOSTILE = {
    "letters": "a" * 4096,
    "steps": "step " * 800,
    "digits": "step=" + "1" * 4090,
    "groups": "step=1 a=1" + ",111" * 1000,
    "spaces": "step" + " " * 4000 + "1",
    "equals": "step=1 " + "a=" * 2000,
    "quotes": "step=1 " + "'a" * 2000,
    "dots": "step=1 a=1" + ".1" * 2000,
    "words": "step 1 " + "a b " * 1000,
    "escapes": "step \x1b[" + "\x1b[" * 2000,
    "brackets": "step 1 loss 1" + " (" * 2000,
    "keras": "1/2 " + "- " * 2000,
    "splits": "step 1\t" + "train " * 680,
    "slashes": "epoch 1 " + " 1/" * 1300,
    "open": '{"step": 1, ' + '{"a":' * 800 + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lines_take_no_longer_than_others(name: str) -> None:
    # A pattern that backtracks would take minutes for one of these, and the test run with it.
    line = HOSTILE[name][:MAX_LINE_CHARS]
    reader = MetricLines()
    found = [reader.find(line) for _ in range(20)]
    assert all(metric is None or len(metric.values) <= MAX_LINE_CHARS // 3 for metric in found)


def test_noise_is_never_an_error() -> None:
    dice = random.Random(0)
    parts = ["step", "=", "1", "loss", ":", " ", ",", "0.5", "/", "[", "]", "epoch", "nan", "e9"]
    parts += ["\x1b[", "{'", "'", "%", "|", "it", "\x00", "é", "-", "(", ")", "1,000", "."]
    reader = MetricLines()
    found = 0
    for _ in range(5000):
        start = dice.choice(["", "step=1 loss=2 ", "epoch 3 "])
        line = start + "".join(dice.choices(parts, k=dice.randrange(1, 20)))
        metric = reader.find(line)
        found += metric is not None
        assert metric is None or (metric.values and 0 <= metric.step < 2**63)
    assert found > 50
