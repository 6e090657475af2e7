"""`tsx replay RUN`: run the step that was not finite again, as it was or with other settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsx.cli import output

if TYPE_CHECKING:
    from tsx.diagnostics.nonfinite.dump import Dump
    from tsx.trainer.replaying import Replayed

EXAMPLES = (
    "tsx replay @last",
    "tsx replay @last --set train.precision=fp32",
    "tsx replay sanity --set model.norm_eps=1e-5 --json",
)


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id, prefix, name, @last or @-2.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Does it still happen with this: model.*, train.precision, train.device, "
            "perf.attn_backend.",
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="Which step; default the one kept last.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Run the step that was not finite again, as it was or otherwise.

    Weights, batch and random state are those of then; forward and backward run once, and what is
    not finite is traced to where it comes from. No update is made, nothing is recorded.

    Exit status 0 where the step is finite now, 4 where it is not. Of a program's own run (tsx.init)
    it shows what was kept and how to load it: its code is not ours to run.
    """
    from recipes.overrides import parse_overrides
    from registry.home import find_home
    from tsx.cli.reading import open_reader
    from tsx.errors import ConfigError

    given = parse_overrides(list(overrides or []))
    for key in given.repeated:
        output.warn(f"{key} is given more than once; the last one wins")
    with open_reader() as reader:
        run_id = reader.get_run(run).id

    from tsx.trainer.replaying import get_dump, replay_step

    dump = get_dump(find_home() / "runs" / run_id, step)
    if dump.facts.source != "trainer":
        if given.values:
            raise ConfigError(
                f"run {run_id} is a program's own: --set has no say in its code",
                next_command=f"tsx replay {run_id}",
            )
        _show_kept(run_id, dump, as_json=as_json)
        return 0
    return _show(run_id, replay_step(dump, given.values), as_json=as_json)


def _show(run_id: str, replayed: Replayed, *, as_json: bool) -> int:
    """Show what a step came to; return the exit status."""
    from tsx.cli.doctor import to_row
    from tsx.cli.finding_lines import show_finding
    from tsx.compare.configdiff import show_value
    from tsx.errors import Exit

    status = Exit.OK if replayed.is_finite else Exit.DIVERGED
    if as_json:
        output.json(_to_plain(run_id, replayed))
        return status
    settings = ", ".join(
        f"{key}={show_value(new)} (was {show_value(old)})"
        for key, (old, new) in replayed.changed.items()
    )
    style: output.Style = "good" if replayed.is_finite else "bad"
    verdict = _judge(replayed)
    output.data(
        f"step {replayed.step} is {verdict}{f' with {settings}' if settings else ''}", style=style
    )
    rows = [
        ("loss", replayed.recorded_loss, replayed.loss),
        ("gradient norm", replayed.recorded_grad_norm, replayed.grad_norm),
        ("device", *replayed.device),
        ("precision", *replayed.precision),
    ]
    heads = [output.Column(name, right=bool(name)) for name in ("", "in the run", "here")]
    output.table(heads, [(name, _show_side(then), _show_side(now)) for name, then, now in rows])
    if replayed.finding is not None:
        output.data("")
        show_finding(to_row(replayed.finding))
    for remark in replayed.remarks:
        output.talk(remark)
    return status


def _show_side(value: object) -> str:
    """Return a number or a word of one side."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return str(output.to_strict(value))


def _judge(replayed: Replayed) -> str:
    """Say what became of the step."""
    if replayed.is_finite:
        return "finite now" if replayed.changed else "finite now, as it was: it does not show again"
    return "still not finite" if replayed.changed else "not finite again"


def _to_plain(run_id: str, replayed: Replayed) -> dict[str, Any]:
    """Return what a step came to as plain data."""
    from dataclasses import asdict

    from tsx.cli.doctor import to_row

    finding = replayed.finding
    sides = ("recorded", "here")
    return {
        "run": run_id,
        "step": replayed.step,
        "finite": replayed.is_finite,
        "same_loss": replayed.is_same,
        "loss": replayed.loss,
        "grad_norm": replayed.grad_norm,
        "recorded": {"loss": replayed.recorded_loss, "grad_norm": replayed.recorded_grad_norm},
        "device": dict(zip(sides, replayed.device, strict=True)),
        "precision": dict(zip(sides, replayed.precision, strict=True)),
        "changed": replayed.changed,
        "finding": None if finding is None else asdict(to_row(finding)),
        "remarks": replayed.remarks,
        "path": str(replayed.path),
    }


def _show_kept(run_id: str, dump: Dump, *, as_json: bool) -> None:
    """Show what was kept of a call of a program's own, and how to call it again."""
    facts = dump.facts
    tensors = list_tensors({"args": dump.args, "kwargs": dump.kwargs})
    if as_json:
        plain = {
            "run": run_id,
            "step": facts.step,
            "path": str(dump.path),
            "function": facts.function,
            "where": facts.where,
            "tensors": tensors,
            "left_out": facts.left_out,
            "weights": facts.why_no_weights or "kept",
            "snippet": make_snippet(dump),
        }
        output.json(plain)
        return
    place = f" ({facts.where})" if facts.where else ""
    output.data(f"step {facts.step}: a call of {facts.function}{place} was kept in {dump.path}")
    rows = [(t["name"], t["dtype"], t["shape"], t["not_finite"]) for t in tensors]
    output.table(["argument", "type", "shape", output.Column("not finite", right=True)], rows)
    for what in facts.left_out:
        output.data(f"not kept: {what}")
    if facts.why_no_weights:
        output.data(f"no weights: {facts.why_no_weights}")
    output.talk("its code is not ours to run; in the program, once the model is built:")
    output.data("")
    output.data(make_snippet(dump))


def list_tensors(value: Any, name: str = "") -> list[dict[str, Any]]:
    """Return name, type, shape and number of bad values of the tensors in arguments."""
    if hasattr(value, "dtype"):
        is_number = value.is_floating_point() or value.is_complex()
        bad = int((~value.isfinite()).sum()) if is_number else 0
        kind = str(value.dtype).removeprefix("torch.")
        return [{"name": name, "dtype": kind, "shape": list(value.shape), "not_finite": bad}]
    if not isinstance(value, dict | list | tuple):
        return []
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found += list_tensors(inner, f"{name}.{key}" if name else str(key))
    return found


def make_snippet(dump: Dump) -> str:
    """Return the lines that load a dump and make its call again."""
    name = dump.facts.function.rpartition(".")[2]
    call = name if name.isidentifier() else "compute_loss"
    lines = [
        "from tsx.diagnostics.nonfinite.dump import load_dump",
        f"dump = load_dump({str(dump.path)!r})",
    ]
    if dump.facts.why_no_weights:
        lines.append("dump.rewind()  # random generators; load the weights of then yourself")
    else:
        lines.append("dump.restore(model)  # weights, buffers, random generators before the call")
    return "\n".join([*lines, f"loss = {call}(*dump.args, **dump.kwargs)"])
