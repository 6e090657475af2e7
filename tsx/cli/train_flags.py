"""The flags of the research notes' training command: what each sets, its default, its help.

One table. `tsx train` reads its command line, its help and the values of a config from it, and
docs/moving.md is generated from it. What several flags decide together is `tsx.cli.train_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from inspect import Parameter
from typing import Annotated, Any, NamedTuple

import typer


class Group(StrEnum):
    """A heading of `tsx train --help`."""

    DATA = "Data"
    MODEL = "Model"
    OPTIMIZER = "Optimizer"
    TRAINING = "Training"
    EVALUATION = "Evaluation"
    SPEED = "Speed"


class Flag(NamedTuple):
    """One flag, as the notes spell it."""

    name: str
    group: Group
    kind: type  # of the value; bool is a flag without one
    keys: tuple[str, ...]  # config keys that it decides
    help: str
    default: Any = None  # where the flag is not typed; None: decided elsewhere, see `said`
    said: str = ""  # a default that is not a plain value, for people
    notes: str = ""  # the notes' default, where it is another
    metavar: str = ""
    convert: Callable[[Any], Any] | None = None  # typed value -> config value, where they differ

    @property
    def parameter(self) -> str:
        """Return the flag's name as Python has it."""
        return self.name.lstrip("-").replace("-", "_")


class Retired(NamedTuple):
    """A flag that the notes' program has and tsx has not."""

    name: str
    instead: str
    has_value: bool = True

    @property
    def parameter(self) -> str:
        """Return the flag's name as Python has it."""
        return self.name.lstrip("-").replace("-", "_")


DATA, MODEL, OPTIMIZER = Group.DATA, Group.MODEL, Group.OPTIMIZER
TRAINING, EVALUATION, SPEED = Group.TRAINING, Group.EVALUATION, Group.SPEED
INTERVAL = "or --steps-per-epoch x --epochs, if less"

FLAGS = (
    Flag("--dataset-path", DATA, str, ("data.path",), "Series to train on.", metavar="PATH",
         said="Time-300B where it is on disk, else the demo corpus"),
    Flag("--seq-max-len", DATA, int, ("data.context_length",), "Points a model sees.", 4096),
    Flag("--seq-stride", DATA, int, ("data.stride",), "Points between window starts.", 4096),
    Flag("--normalization-func", DATA, str, ("data.scaling",), "Scaling of a series: zero (zero "
         "mean, unit variance), max or none.", "zero", metavar="NAME"),
    Flag("--val-split", DATA, float, ("data.val_split",), "Share of the series held out.", 0.01),
    Flag("--ood-val-dataset-path", DATA, str, ("data.ood_path",), "Series scored apart, never "
         "trained on.", said="none", metavar="PATH"),
    Flag("--hidden-size", MODEL, int, ("model.hidden_size",), "Width of the model.", 256),
    Flag("--n-decoder-layers", MODEL, int, ("model.num_layers",), "Layers.", 4),
    Flag("--n-head", MODEL, int, ("model.num_heads",), "Attention heads.", 8),
    Flag("--num-experts", MODEL, int, ("model.num_experts",), "Routed experts of a layer.", 4),
    Flag("--num-expert-layers", MODEL, int, (), "Mixtures in a layer: Time-MoE has 1.", said="1"),
    Flag("--k", MODEL, int, ("model.top_k",), "Experts a token is sent to.", 2),
    Flag("--d-ff", MODEL, int, ("model.d_ff",), "Width of the shared expert.",
         said="4 x --hidden-size", notes="hidden size / 2"),
    Flag("--d-expert", MODEL, int, ("model.d_expert",), "Width of a routed expert.",
         said="--d-ff / --k", notes="hidden size / 2"),
    Flag("--patch", MODEL, bool, ("model.patch_len",), "A token is a patch of points.",
         said="a token is one point"),
    Flag("--patch-len", MODEL, int, ("model.patch_len",), "Points of a patch, with --patch.",
         said="32"),
    Flag("--patch-stride", MODEL, int, (), "Points between patches: as many as --patch-len.",
         said="--patch-len", notes="32"),
    Flag("--learning-rate", OPTIMIZER, float, ("optim.lr",), "Highest learning rate.", 1e-3),
    Flag("--weight-decay", OPTIMIZER, float, ("optim.weight_decay",), "Of AdamW.", 0.1),
    Flag("--beta1", OPTIMIZER, float, ("optim.beta1",), "Of AdamW.", 0.9),
    Flag("--beta2", OPTIMIZER, float, ("optim.beta2",), "Of AdamW.", 0.95),
    Flag("--aux-loss-weight", OPTIMIZER, float, ("model.aux_loss_weight",), "Of the "
         "load-balancing loss.", 0.02),
    Flag("--warmup-steps", OPTIMIZER, int, ("optim.warmup_steps",), "Until the learning rate is "
         "reached.", said="10,000 or a tenth of the run, whichever is less", notes="10,000"),
    Flag("--max-grad-norm", OPTIMIZER, float, ("optim.max_grad_norm",), "Gradients are clipped to "
         "it; 0 is off.", 1.0),
    Flag("--steps-per-epoch", TRAINING, int, ("train.steps",), "Optimizer steps of an epoch.",
         said="100000"),
    Flag("--epochs", TRAINING, int, ("train.steps",), "How many times as many steps.", said="1"),
    Flag("--batch-size", TRAINING, int, ("train.batch_size",), "Windows of a micro-batch.", 1024),
    Flag("--grad-accum-steps", TRAINING, int, ("train.grad_accum_steps",), "Micro-batches of a "
         "step.", 1),
    Flag("--log-every", TRAINING, int, ("train.log_every",), "Steps between lines.",
         said=f"50, {INTERVAL}", notes="50"),
    Flag("--checkpoint-every", TRAINING, int, ("train.checkpoint_every",), "Steps between "
         "checkpoints; 0 writes none.", said=f"2000, {INTERVAL}", notes="2000"),
    Flag("--resume-checkpoint", TRAINING, str, (), "Go on with this run; every other flag may "
         "then be left out.", said="a new run", metavar="RUN|FOLDER"),
    Flag("--max-wall-time-s", TRAINING, float, ("train.max_wall_time_s",), "Stop after so many "
         "seconds.", said="no limit"),
    Flag("--no-amp", TRAINING, bool, ("train.precision",), "Train in fp32.",
         said="bf16 on CUDA, fp32 elsewhere", notes="bf16", convert=lambda _: "fp32"),
    Flag("--no-bf16", TRAINING, bool, ("train.precision",), "Train in fp32.",
         said="bf16 on CUDA, fp32 elsewhere", notes="bf16", convert=lambda _: "fp32"),
    Flag("--val-every", EVALUATION, int, ("eval.every",), "Steps between validations; 0 is never.",
         said=f"1000, {INTERVAL}; never where nothing is held out", notes="1000"),
    Flag("--val-max-batches", EVALUATION, int, ("eval.max_batches",), "Batches of a validation; "
         "0 is all.", said="10"),
    Flag("--ood-val-max-batches", EVALUATION, int, ("eval.ood_max_batches",), "The same for "
         "--ood-val-dataset-path.", said="10"),
    Flag("--compile", SPEED, bool, ("perf.compile",), "torch.compile, block by block.",
         said="off"),
    Flag("--compile-mode", SPEED, str, ("perf.compile_mode",), "With --compile: default, "
         "reduce-overhead, max-autotune, max-autotune-no-cudagraphs.", said="default",
         metavar="MODE"),
    Flag("--attn-backend", SPEED, str, ("perf.attn_backend",), "Kernel of the attention: auto, "
         "flash, efficient, cudnn, math.", said="auto", metavar="NAME"),
    Flag("--profile", SPEED, bool, ("perf.profile",), "Write a Chrome trace of one step after 20.",
         said="off"),
    Flag("--log-perf-metrics", SPEED, bool, ("perf.log_metrics", "perf.count_kernels"),
         "Print TFLOP/s, MFU, step times and kernels beside the loss.", said="off"),
    Flag("--mfu-peak-tflops", SPEED, float, ("perf.mfu_peak_tflops",), "Dense peak of the device, "
         "for MFU.", said="by device name, else measured", notes="none: no MFU"),
)  # fmt: skip

NO_LOADERS = "windows are cut from mapped files, without loader processes"
ONE_MIXTURE = "there is one implementation, and it drops no token"
RETIRED = (
    Retired("--run-name", "use --name"),
    Retired("--microbatch-size", "use --batch-size"),
    Retired("--global-batch-size", "use --batch-size times --grad-accum-steps"),
    Retired("--checkpoint-dir", "set TSX_HOME: checkpoints lie in $TSX_HOME/runs/<id>/checkpoints"),
    Retired(
        "--profile-dir", "set TSX_HOME: the trace lies in the run's folder, `tsx show` names it"
    ),
    Retired("--final-val-on-budget", "every run is validated at its end", False),
    Retired("--num-workers", NO_LOADERS),
    Retired("--prefetch-factor", NO_LOADERS),
    Retired("--pin-memory", NO_LOADERS, False),
    Retired("--no-pin-memory", NO_LOADERS, False),
    Retired("--moe-impl", ONE_MIXTURE),
    Retired("--moe-m-tile", ONE_MIXTURE),
    Retired("--pack-sequences", "series are not packed; see --seq-max-len", False),
    Retired("--pack-buckets", "series are not packed; see --seq-max-len"),
    Retired("--qk-norm", "Time-MoE's attention has no norm of queries and keys", False),
    Retired("--attn-window", "Time-MoE's attention sees the whole context"),
)


def iter_parameters() -> Iterator[Parameter]:
    """Yield a parameter of a command line for each flag, those that are refused hidden."""
    for flag in FLAGS:
        default = flag.said or f"{flag.default}"
        metavar = None if flag.kind is bool else flag.metavar or "N"
        option = typer.Option(
            flag.name,
            metavar=metavar,
            help=flag.help if flag.kind is bool else f"{flag.help} [{default}]",
            rich_help_panel=flag.group,
        )
        yield _make_parameter(flag.parameter, flag.kind, option)
    for retired in RETIRED:
        option = typer.Option(retired.name, hidden=True)
        yield _make_parameter(retired.parameter, str if retired.has_value else bool, option)


def list_flags_of(key: str) -> list[str]:
    """Return the names of the flags that decide a config key, named without its section."""
    return [flag.name for flag in FLAGS if any(path.endswith(f".{key}") for path in flag.keys)]


def render_flags() -> str:
    """Return the flags as a Markdown table, for the documentation."""
    rows = [
        f"| `{flag.name}` | {' '.join(f'`{key}`' for key in flag.keys)} "
        f"| {flag.said or flag.default} | {flag.notes} |"
        for flag in FLAGS
    ]
    return "\n".join(["| flag | config key | default | in the notes |", "|---|---|---|---|", *rows])


def render_retired() -> str:
    """Return the flags that are refused as a Markdown table, for the documentation."""
    rows = [f"| `{flag.name}` | {flag.instead} |" for flag in RETIRED]
    return "\n".join(["| flag | here |", "|---|---|", *rows])


def _make_parameter(name: str, kind: type, option: Any) -> Parameter:
    """Return a parameter that is None where nobody typed it."""
    annotation: Any = Annotated[kind | None, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
