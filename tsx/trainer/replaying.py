"""The step of a recipe's run that was not finite, run again from what was kept of it.

Forward and backward, with the weights, the batch and the random state of then, eagerly; the
optimizer is not asked. A setting may be changed to see whether the step is finite then: one that
has a say in forward and backward and leaves the weights what they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from registry.events import Finding
from tsx import config as configs
from tsx.config import Precision, RunConfig
from tsx.data.windows import Batch
from tsx.diagnostics.nonfinite.bad_step import describe, is_finite_step
from tsx.diagnostics.nonfinite.dump import (
    Dump,
    DumpDamagedError,
    DumpFolder,
    load_dump,
    name_number,
)
from tsx.diagnostics.nonfinite.origin import describe_origin
from tsx.diagnostics.tracing.replay import Rewinder
from tsx.errors import ConfigError
from tsx.model.forecaster import Forecaster, build_forecaster
from tsx.perf.attention_kernel import find_kernel, forced_kernel
from tsx.perf.device import resolve_device, resolve_precision
from tsx.trainer import optim
from tsx.trainer.memory_errors import check_capacity, explain_out_of_memory
from tsx.trainer.objective import accumulate_gradients
from tsx.trainer.step_origin import find_step_origin

# Beside all of [model] but how it is drawn: what else has a say in one forward and backward pass.
KEYS = ("train.precision", "train.device", "perf.attn_backend")
DRAWN_KEYS = ("model.init_std",)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a step came to when it was run again.

    Attributes:
        step: its number.
        path: of the dump.
        loss: of the whole step, here.
        grad_norm: before clipping, here.
        recorded_loss: then; the name of a number that is not finite.
        recorded_grad_norm: then.
        device: here, and then.
        precision: here, and then.
        changed: key to [then, here] of what --set has changed.
        finding: what is not finite, and where it comes from; None where all is finite.
        remarks: what else is other than it was.
    """

    step: int
    path: Path
    loss: float
    grad_norm: float
    recorded_loss: float | str
    recorded_grad_norm: float | str
    device: tuple[str, str]
    precision: tuple[str, str]
    changed: dict[str, list[Any]]
    finding: Finding | None
    remarks: list[str] = field(default_factory=list)

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient norm are finite now."""
        return is_finite_step(self.loss, self.grad_norm)

    @property
    def is_same(self) -> bool:
        """Whether the loss is the recorded one, to the last bit."""
        return name_number(self.loss) == self.recorded_loss


def get_dump(run_folder: Path, step: int | None = None) -> Dump:
    """Return what a run has kept of a step; the one kept last by default.

    Raises:
        ConfigError: nothing is kept, or not of that step; the message lists those there are.
        DumpDamagedError: it cannot be read.
    """
    folder, name = DumpFolder(run_folder), run_folder.name
    steps = folder.list_steps()
    if not steps:
        raise ConfigError(
            f"run {name} has kept no step: none was seen to be not finite, or tsx gc deleted it",
            next_command=f"tsx diagnose {name}",
        )
    if step is not None and step not in steps:
        listed = ", ".join(map(str, steps))
        raise ConfigError(
            f"run {name} has kept nothing of step {step}; there is: {listed}",
            next_command=f"tsx replay {name} --step {steps[-1]}",
        )
    return load_dump(folder.get_path(steps[-1] if step is None else step))


def replay_step(dump: Dump, changes: Mapping[str, Any]) -> Replayed:
    """Run a kept step of a recipe's run again.

    Args:
        dump: of a run of the trainer.
        changes: "section.key" to value, laid over the config of then.

    Raises:
        ConfigError: a change that says nothing here, or with which the weights do not fit.
        DumpDamagedError: the dump is no step of a recipe's run.
        OutOfMemory: the model or the step does not fit.
    """
    config, changed = _change(dump, changes)
    device = resolve_device(config.train.device)
    precision = resolve_precision(config.train.precision, device)
    check_capacity(config, device)
    find_kernel(config, device, precision)
    batches = _list_batches(dump)
    with torch.device("meta"):
        _check_fits(dump, Forecaster(config.model, num_tokens=0), changed)
    with explain_out_of_memory(config), forced_kernel(config.perf.attn_backend):
        model = build_forecaster(
            config.model,
            seed=config.train.seed,
            device=device,
            num_tokens=batches[0].input_BC.shape[1] // config.model.patch_len,
        )
        dump.restore(model)
        loss = accumulate_gradients(model, batches, precision, device)
        norm = float(optim.measure_grad_norm(model.parameters()))
        total = float(loss.pred) + config.model.aux_loss_weight * float(loss.aux)
        finding = None
        if not is_finite_step(total, norm):
            finding = _explain(dump, config, model, batches, precision, device, total, norm)
    facts = dump.facts
    return Replayed(
        step=facts.step,
        path=dump.path,
        loss=total,
        grad_norm=norm,
        recorded_loss=facts.loss,
        recorded_grad_norm=facts.grad_norm,
        device=(facts.device, str(device)),
        precision=(facts.precision, str(precision)),
        changed=changed,
        finding=finding,
        remarks=_list_remarks(dump, config, device),
    )


def _change(dump: Dump, changes: Mapping[str, Any]) -> tuple[RunConfig, dict[str, list[Any]]]:
    """Return the config of then with changes laid over it, and what they really change."""
    facts = dump.facts
    before = configs.to_plain(configs.decode(facts.config, place=str(dump.path)))
    if facts.precision in tuple(Precision):  # what "auto" came to on that device
        before["train"]["precision"] = facts.precision
    after = {section: dict(keys) for section, keys in before.items()}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        after.setdefault(section, {})[name] = value
    config = configs.decode(after, place="--set")
    plain = configs.to_plain(config)
    changed = {}
    for key in changes:
        section, _, name = key.partition(".")
        if key not in KEYS and (section != "model" or key in DRAWN_KEYS):
            raise ConfigError(
                f"--set {key}: has no say in this step: its batch and its weights are those that "
                "were kept, and no update is made",
                next_command=f"one of model.*, {', '.join(KEYS)}",
            )
        if plain[section][name] != before[section][name]:
            changed[key] = [before[section][name], plain[section][name]]
    return config, changed


def _check_fits(dump: Dump, model: Forecaster, changed: Mapping[str, Any]) -> None:
    """Refuse changes with which the weights do not fit."""
    try:
        dump.check_fits(model)
    except ConfigError as error:
        keys = ", ".join(changed)
        raise ConfigError(
            f"with {keys}: {error.message}" if keys else error.message,
            next_command="leave out what decides the shape of the model" if keys else "",
        ) from error


def _list_batches(dump: Dump) -> list[Batch]:
    """Return the micro-batches of a dump, checked.

    Raises:
        DumpDamagedError: they are no batches of windows.
    """
    names = tuple(Batch.__dataclass_fields__)
    batches: list[Batch] = []
    for held in dump.args:
        tensors = list(held.values()) if isinstance(held, dict) and set(held) == set(names) else []
        kinds = {name: torch.bool if "mask" in name else torch.float32 for name in names}
        if not tensors or any(
            not isinstance(held[name], Tensor)
            or held[name].dtype is not kinds[name]
            or held[name].ndim != 2
            or held[name].shape != dump.args[0][names[0]].shape
            for name in names
        ):
            raise DumpDamagedError(f"{dump.path}: micro-batch {len(batches)} is no batch")
        arrays = {name: np.ascontiguousarray(held[name].numpy()) for name in names}
        batches.append(Batch(**arrays))
    if not batches or not batches[0].input_BC.size:
        raise DumpDamagedError(f"{dump.path}: holds no batch")
    return batches


def _explain(
    dump: Dump,
    config: RunConfig,
    model: Forecaster,
    batches: Sequence[Batch],
    precision: Precision,
    device: torch.device,
    loss: float,
    norm: float,
) -> Finding:
    """Return the finding of a step that is not finite again."""
    described = describe(
        model,
        loss=loss,
        grad_norm=norm,
        inputs=[array for batch in batches for array in (batch.input_BC, batch.target_BC)],
        step=dump.facts.step,
        time=time.time(),
    )
    dump.rewind()
    rewinder = Rewinder(model)
    found = find_step_origin(
        model,
        batches,
        precision,
        device,
        rewinder=rewinder,
        moment=rewinder.take(whole=True),
        seed=config.train.seed,
        is_gradient=math.isfinite(loss),
    )
    if found is None:
        return described
    evidence = {**found.evidence, **described.evidence}
    return describe_origin(
        found.origin, step=described.step, time=described.time, evidence=evidence
    )


def _list_remarks(dump: Dump, config: RunConfig, device: torch.device) -> list[str]:
    """Return what is other here than in the run, beside what was asked for."""
    facts, version = dump.facts, str(torch.__version__)
    remarks = []
    if facts.device.partition(":")[0] != device.type:
        remarks.append(f"the run was on {facts.device}, this is {device}: kernels differ")
    if facts.versions.get("torch", version) != version:
        remarks.append(f"the run had torch {facts.versions['torch']}, this is {version}")
    if config.perf.compile:
        remarks.append("the run was compiled, here the step is run eagerly")
    return remarks
