"""RunConfig: everything that decides what a training run computes, as frozen structs.

Owns the sections, their types, ranges and defaults, the canonical JSON and the fingerprint.
A config is built only by `decode` (from a recipe's plain dict); an unknown key is an error that
names the nearest valid one. No torch, no numpy: reading commands import this.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import types
import typing
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from tsx.errors import ConfigError

MAX_COUNT = 2**31 - 1
MAX_SHOWN = 80  # characters of a value in a message
MIN_BUDGET_GIB = 1 / 32  # in less, a process has no room for the stacks of its own threads

PositiveInt = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]


class Source(StrEnum):
    """Which corpus a run reads when no path is given."""

    AUTO = "auto"  # Time-300B where it is on disk, else demo
    TIME300B = "time300b"
    DEMO = "demo"


class Scaling(StrEnum):
    """How the values of a window are scaled."""

    ZERO = "zero"  # zero mean, unit variance
    MAX = "max"  # by the largest absolute value
    NONE = "none"


class ScalingScope(StrEnum):
    """Which points the scaling statistics are taken over."""

    SERIES = "series"  # the whole series, as the reference does (looks ahead)
    CONTEXT = "context"  # the points of the window's own input


class AuxReduction(StrEnum):
    """How the load-balancing loss is reduced over layers."""

    PER_LAYER = "per_layer"  # mean over layers of E * sum_e f_e r_e
    CONCATENATED = "concatenated"  # the official code: layers joined before the product


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; parameters stay fp32."""

    AUTO = "auto"  # bf16 autocast on CUDA, fp32 elsewhere
    FP32 = "fp32"
    BF16 = "bf16"


class Device(StrEnum):
    """Where a run trains."""

    AUTO = "auto"  # CUDA, then MPS, then CPU
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Schedule(StrEnum):
    """Shape of the learning rate after warm-up."""

    COSINE = "cosine"
    CONSTANT = "constant"


class OnNonFinite(StrEnum):
    """What a run does when its loss or gradient is not finite."""

    HALT = "halt"
    SKIP = "skip"
    CONTINUE = "continue"


class CompileMode(StrEnum):
    """What torch.compile aims at."""

    DEFAULT = "default"
    REDUCE_OVERHEAD = "reduce-overhead"
    MAX_AUTOTUNE = "max-autotune"
    MAX_AUTOTUNE_NO_CUDAGRAPHS = "max-autotune-no-cudagraphs"


class AttnBackend(StrEnum):
    """Which kernel of scaled_dot_product_attention may run."""

    AUTO = "auto"  # torch's own choice
    FLASH = "flash"
    EFFICIENT = "efficient"
    CUDNN = "cudnn"
    MATH = "math"


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: frozen, unknown keys refused."""


class DataConfig(_Section, frozen=True, kw_only=True):
    """Which series are read and how windows are cut from them."""

    source: Source = Source.AUTO
    path: str | None = None  # a file or folder; overrides `source`
    include: tuple[str, ...] = ()  # globs over "<domain>/<dataset>"; empty is all
    exclude: tuple[str, ...] = ()
    ood_path: str | None = None  # series scored apart and never trained on
    ood_include: tuple[str, ...] = ()  # globs over the training folder, when ood_path is not given
    context_length: PositiveInt = 512  # points a model sees
    stride: PositiveInt = 512  # points between window starts
    scaling: Scaling = Scaling.ZERO
    scaling_scope: ScalingScope = ScalingScope.SERIES
    val_split: Fraction = 0.01  # share of the series held out (never of the windows)
    allow_nonfinite: bool = False  # mask non-finite points instead of refusing them
    # Series per demo data set, when the demo corpus is used. 10,000 are about a gigabyte on disk.
    demo_series: Annotated[int, Meta(ge=1, le=10_000)] = 64


class ModelConfig(_Section, frozen=True, kw_only=True):
    """Time-MoE (arXiv 2409.16040); FACTS of sizes in docs/model.md."""

    hidden_size: PositiveInt = 384
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    num_experts: PositiveInt = 8
    top_k: PositiveInt = 2
    d_ff: PositiveInt | None = None  # width of the shared expert; default 4 * hidden_size
    d_expert: PositiveInt | None = None  # width of a routed expert; default d_ff / top_k
    patch_len: PositiveInt = 1  # points per token; 1 is pointwise
    horizons: tuple[PositiveInt, ...] = (1, 8, 32, 64)
    rope_theta: PositiveFloat = 10000.0
    norm_eps: PositiveFloat = 1e-6
    init_std: PositiveFloat = 0.02
    huber_delta: PositiveFloat = 2.0
    aux_loss_weight: NonNegativeFloat = 0.02
    aux_reduction: AuxReduction = AuxReduction.PER_LAYER

    @property
    def ff_width(self) -> int:
        """Width of the shared expert, `d_ff` or its default."""
        return self.d_ff or 4 * self.hidden_size

    @property
    def expert_width(self) -> int:
        """Width of a routed expert, `d_expert` or its default."""
        return self.d_expert or self.ff_width // self.top_k

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


class OptimConfig(_Section, frozen=True, kw_only=True):
    """AdamW, its schedule and clipping."""

    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: PositiveFloat = 1e-8
    warmup_steps: NonNegativeInt | None = None  # default min(10000, steps // 10)
    schedule: Schedule = Schedule.COSINE
    min_lr_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.0  # of `lr`, where the cosine ends
    max_grad_norm: NonNegativeFloat = 1.0  # 0 turns clipping off


class TrainConfig(_Section, frozen=True, kw_only=True):
    """How long, how much and how often; every interval counts optimizer steps."""

    steps: NonNegativeInt = 200  # 0 scores the model and trains nothing
    batch_size: PositiveInt = 32  # windows per micro-batch
    grad_accum_steps: PositiveInt = 1
    log_every: PositiveInt = 10
    checkpoint_every: NonNegativeInt = 0  # 0 writes none at all
    fixed_batches: NonNegativeInt = 0  # train on the first N batches again and again; 0 is off
    max_wall_time_s: NonNegativeFloat = 0.0  # 0 is no limit
    init_from: str | None = None  # folder of official weights to start from; default: drawn
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO


class EvalConfig(_Section, frozen=True, kw_only=True):
    """Validation on held-out series and on out-of-distribution series."""

    every: NonNegativeInt = 50  # 0 is never
    max_batches: NonNegativeInt = 2  # 0 is all
    ood_max_batches: NonNegativeInt = 2
    batch_size: PositiveInt | None = None  # default train.batch_size
    # Points between the origins that are scored; default every token's last point. A pointwise
    # model scored every patch_len points is judged where a patch model is.
    origin_stride: PositiveInt | None = None


class DiagnosticsConfig(_Section, frozen=True, kw_only=True):
    """What is watched while a run trains."""

    on_nonfinite: OnNonFinite = OnNonFinite.HALT
    watch: bool = True  # detectors look at calls, operations, steps and lines as the run trains


class PerfConfig(_Section, frozen=True, kw_only=True):
    """What speed is measured against."""

    mfu_peak_tflops: PositiveFloat | None = None  # dense; default: by device name, or measured
    sample_every_s: NonNegativeFloat = 2.0  # period of system samples; 0 turns them off
    compile: bool = False  # torch.compile, block by block
    compile_mode: CompileMode = CompileMode.DEFAULT
    attn_backend: AttnBackend = AttnBackend.AUTO
    profile: bool = False  # Chrome trace of one step after 20
    log_metrics: bool = False  # print TFLOP/s, step times and where they go beside the loss
    count_kernels: bool = False  # kernels per step, counted on one step an interval
    # Stands in for a smaller device; default: none.
    memory_budget_gib: Annotated[float, Meta(ge=MIN_BUDGET_GIB)] | None = None


class RunConfig(_Section, frozen=True, kw_only=True):
    """One training run, whole."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    perf: PerfConfig = PerfConfig()

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up: what the config says, or its default."""
        if self.optim.warmup_steps is not None:
            return self.optim.warmup_steps
        return min(10_000, self.train.steps // 10)


def decode(raw: dict[str, Any], *, place: str = "config") -> RunConfig:
    """Build a RunConfig from plain data and check what no single field can.

    Args:
        raw: sections to keys to values, as a recipe gives them.
        place: where `raw` came from, put in front of every error ("recipe 'sanity'").

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a wrong type or range, or
            values that contradict each other. The message has key path and value.
    """
    _check_keys(raw, place)
    try:
        config = msgspec.convert(raw, RunConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(error, raw, place)) from None
    _check(config, place)
    return config


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return the config as plain dicts, lists and scalars, every default filled in."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    return plain


def canonical_json(config: RunConfig) -> str:
    """Return the config as JSON with sorted keys: equal configs give equal text."""
    return msgspec.json.encode(to_plain(config), order="deterministic").decode()


def fingerprint(config: RunConfig) -> str:
    """Return 16 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def list_keys() -> dict[str, type]:
    """Return every key path ("model.top_k") with its declared type."""
    hints = typing.get_type_hints(RunConfig, include_extras=True)
    return {
        f"{section}.{field.name}": field.type
        for section, struct in hints.items()
        for field in msgspec.structs.fields(struct)
    }


def _check_keys(raw: object, place: str) -> None:
    """Raise ConfigError for a section or key that no struct has, and for a value none can take."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{place} is {_show(raw)}; expected sections such as [model]")
    sections = {field.name: field.type for field in msgspec.structs.fields(RunConfig)}
    for section, keys in raw.items():
        if section not in sections:
            name = str(section)[:MAX_SHOWN]
            raise ConfigError(f"{place}: unknown section [{name}]{_nearest(name, sections)}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{place} [{section}] is {_show(keys)}; expected a table of keys")
        valid = [field.name for field in msgspec.structs.fields(sections[section])]
        for key, value in keys.items():
            name = str(key)[:MAX_SHOWN]
            where = f"{place} [{section}] {name}={_show(value)}"
            if key not in valid:
                raise ConfigError(f"{where}: unknown key{_nearest(name, valid)}")
            for item in value if isinstance(value, list | tuple) else [value]:
                _check_value(item, where)


def _check_value(value: object, where: str) -> None:
    """Refuse what JSON and file systems cannot hold: NaN, infinity, NUL, lone surrogates."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number")
    if isinstance(value, str) and ("\0" in value or (not value.isascii() and _is_broken(value))):
        raise ConfigError(f"{where}: expected text without NUL or broken Unicode")


def _is_broken(text: str) -> bool:
    """Return whether `text` has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _show(value: object) -> str:
    """Return a value's repr, cut to what fits in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a nest
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _nearest(name: str, valid: typing.Iterable[str]) -> str:
    """Return '; did you mean ...?' or the list of valid names."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(names)}"


def _explain(error: msgspec.ValidationError, raw: dict[str, Any], place: str) -> str:
    """Turn msgspec's message and JSON path into key path, value and what was expected."""
    text, _, path = str(error).partition(" - at `$.")
    keys = path.rstrip("`").split(".")
    value: Any = raw
    for key in keys:
        name = key.partition("[")[0]
        value = value.get(name) if isinstance(value, dict) else value
    if len(keys) < 2:
        return f"{place}: {text}"
    wanted = text[0].lower() + text[1:]
    wanted = wanted.replace("`array`", "a list").replace(" | null`", "`")
    key = keys[1].partition("[")[0]
    return f"{place} [{keys[0]}] {key}={_show(value)}: {wanted}{_choices(keys)}"


def _choices(keys: list[str]) -> str:
    """Return the valid values of an enum key as text, or nothing for any other key."""
    declared = list_keys().get(".".join(keys[:2]))
    options = typing.get_args(declared) if isinstance(declared, types.UnionType) else (declared,)
    for option in options:
        if isinstance(option, type) and issubclass(option, StrEnum):
            return f"; valid: {', '.join(option)}"
    return ""


def _check(config: RunConfig, place: str) -> None:
    """Raise ConfigError where two values contradict each other."""
    model, data = config.model, config.data
    if model.top_k > model.num_experts:
        raise ConfigError(
            f"{place} [model] top_k={model.top_k} exceeds num_experts={model.num_experts}"
        )
    if model.hidden_size % model.num_heads:
        raise ConfigError(
            f"{place} [model] hidden_size={model.hidden_size} is not divisible by "
            f"num_heads={model.num_heads}"
        )
    if model.head_dim % 2:
        raise ConfigError(
            f"{place} [model] hidden_size={model.hidden_size} / num_heads={model.num_heads} gives "
            f"head_dim={model.head_dim}; rotary embedding needs an even one"
        )
    if not model.expert_width:
        raise ConfigError(
            f"{place} [model] top_k={model.top_k} leaves no width for an expert of "
            f"d_ff={model.ff_width}; set d_expert"
        )
    if not model.horizons or len(set(model.horizons)) != len(model.horizons):
        raise ConfigError(
            f"{place} [model] horizons={list(model.horizons)}: one or more, each once"
        )
    stride = config.eval.origin_stride
    if stride is not None and (stride % model.patch_len or stride > data.context_length):
        raise ConfigError(
            f"{place} [eval] origin_stride={stride} is not a multiple of [model] "
            f"patch_len={model.patch_len} up to [data] context_length={data.context_length}"
        )
    if data.context_length % model.patch_len:
        raise ConfigError(
            f"{place} [data] context_length={data.context_length} is not a multiple of "
            f"[model] patch_len={model.patch_len}"
        )
