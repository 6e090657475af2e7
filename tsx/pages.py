"""A run as lines to read: head, metrics, findings, config, environment. Pure.

The command line prints these and the dashboard scrolls them. Everything that comes from a run is
made inert here (`clean`), so nobody downstream meets an escape code.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from registry.views import (
    ArtifactRow,
    FindingRow,
    HistogramRow,
    MetricSummary,
    RunDetail,
    RunRow,
)
from tsx.chart import draw_bars
from tsx.cli.output import clean
from tsx.compare.configdiff import find_changes, flatten, is_run_config, show_value
from tsx.compare.direction import find_best
from tsx.curve_groups import group_keys
from tsx.ink import SEVERITIES, SEVERITY_GLYPHS, STATUS_GLYPHS, Line, Piece, find_status_kind
from tsx.text import (
    ABSENT,
    count_cells,
    format_age,
    format_bytes,
    format_count,
    format_duration,
    format_step,
    format_value,
    format_when,
    pad,
)

_COLUMNS = (("last", 11), ("best", 11), ("at step", 9), ("min", 11), ("max", 11), ("points", 8))
_BAR = 24  # cells of the progress bar
_MAX_TEXT = 2000  # characters of one cause or fix
_MAX_COMMAND = 4000  # characters of the command line
_MAX_KERNELS = 20  # operations listed of a trace


def list_head_lines(run: RunRow, now: float) -> list[Line]:
    """Return the name, the status with its reason, the progress and what the run trained on."""
    kind = find_status_kind(run.status)
    facts = [clean(fact) for fact in (run.recipe, run.device, run.precision, run.data_source)]
    facts[:0] = [f"project {clean(run.project)}"] if run.project else []
    facts += [f"seed {run.seed}"] if run.recipe or run.seed else []
    facts += ["smoke"] if run.smoke else []
    status = [Piece(f"{STATUS_GLYPHS.get(run.status, '✗')} {clean(run.status)}", kind)]
    if run.reason:
        status.append(Piece(f"  {clean(run.reason)}", "text"))
    name = Piece(clean(run.name or run.id), "strong")
    lines = [
        Line((name, Piece(f"  {clean(run.id)}", "muted")), (_show_when(run, now),)),
        Line(tuple(status), tuple(_list_progress(run))),
        Line((Piece(" · ".join(fact for fact in facts if fact), "muted"),)),
    ]
    remarks = [f"#{clean(tag)}" for tag in run.tags]
    remarks += [f"sweep {clean(run.parent)}"] if run.parent else []
    remarks += [clean(run.note)] if run.note else []
    if remarks:
        lines.append(Line((Piece("  ".join(remarks), "muted"),)))
    return lines


def list_metric_lines(metrics: Mapping[str, MetricSummary], width: int = 120) -> list[Line]:
    """Return a table: key, last value, best with its step, extremes, number of points.

    Extremes go first where `width` cells are too few.
    """
    if not metrics:
        return [Line((Piece("No metrics yet.", "muted"),))]
    name_width = min(max(count_cells(clean(key)) for key in metrics), 44)
    names = [name for name, _ in _COLUMNS]
    if name_width + sum(size for _, size in _COLUMNS) > width:
        names = [name for name in names if name not in ("min", "max")]
    head = "".join(pad(name, size, right=True) for name, size in _COLUMNS if name in names)
    lines = [Line((Piece(pad("metric", name_width) + head, "head"),))]
    ordered = [key for group in group_keys(metrics) for _, key in group.members]
    return lines + [_make_metric_line(metrics[key], name_width, names) for key in ordered]


def list_histogram_lines(rows: Iterable[HistogramRow], *, by_step: bool = False) -> list[Line]:
    """Return one line per histogram: its key, or its step, and the counts over their range."""
    listed = [*rows]
    names = [f"step {row.step}" if by_step else clean(row.key) for row in listed]
    width = min(max(map(count_cells, names), default=0), 44)
    return [
        Line(
            (
                Piece(pad(name, width) + "  ", "text"),
                Piece(draw_bars(row.counts, _BAR), "hint"),
                Piece(f"  {_show_range(row)}", "strong"),
                Piece(f"  {sum(row.counts)} values", "muted"),
                Piece("" if by_step else f"  step {row.step}", "muted"),
                *_list_nonfinite(row.nonfinite_count),
            )
        )
        for name, row in zip(names, listed, strict=True)
    ]


def list_finding_lines(findings: Iterable[FindingRow], width: int, run_id: str = "") -> list[Line]:
    """Return each finding: what and where, its cause, what to do; the gravest first.

    With the run's id it is said how to take a step again that was kept.
    """
    rank = {name: place for place, name in enumerate(reversed(SEVERITIES))}
    ordered = sorted(findings, key=lambda row: (rank.get(row.severity, 0), row.step))
    if not ordered:
        return [Line((Piece("No findings.", "muted"),))]
    lines: list[Line] = []
    for row in ordered:
        kind = row.severity if row.severity in SEVERITIES else "error"
        head = f"{SEVERITY_GLYPHS[kind]} {clean(row.kind)}"
        place = [f"step {row.step}" if row.step else "", clean(row.phase), clean(row.where)]
        place += [clean(row.module), f"x{row.count}" if row.count > 1 else ""]
        where = "  ".join(part for part in place if part)
        lines.append(Line((Piece(head, kind), Piece(f"  {where}", "muted"))))
        lines += _wrap(clean(row.cause, limit=_MAX_TEXT), "    ", width, "text")
        if row.fix:
            lines += _wrap(f"→ {clean(row.fix, limit=_MAX_TEXT)}", "    ", width, "hint")
        if run_id and row.evidence.get("dump"):
            lines += _wrap(f"→ tsx replay {clean(run_id)}", "    ", width, "hint")
        lines.append(Line())
    return lines[:-1]


def list_change_lines(config: Mapping[str, Any]) -> list[Line]:
    """Return the config keys that are not at their default, with the default beside them.

    Of a config that is not ours all keys are returned.
    """
    if not is_run_config(config):
        flat = {key: show_value(value) for key, value in flatten(config).items() if config}
        if not flat:
            return [Line((Piece("The program said nothing of its config.", "muted"),))]
        width = min(max((count_cells(clean(key)) for key in flat), default=0) + 2, 40)
        return [
            Line((Piece(pad(clean(key), width), "muted"), Piece(clean(text, limit=300), "text")))
            for key, text in flat.items()
        ]
    changes = find_changes(config)
    if not changes:
        return [Line((Piece("Every key is at its default.", "muted"),))]
    width = min(max(count_cells(clean(change.key)) for change in changes) + 2, 40)
    return [
        Line(
            (
                Piece(pad(clean(change.key), width), "muted"),
                Piece(clean(change.values[1]), "text"),
                Piece(f"  default {clean(change.values[0])}", "faint"),
            )
        )
        for change in changes
    ]


def list_config_lines(config: Mapping[str, Any]) -> list[Line]:
    """Return the whole config by sections; keys that are not at their default stand out."""
    changed = {change.key for change in find_changes(config)}
    lines: list[Line] = []
    section = None
    for path, value in flatten(config).items():
        head, _, key = path.rpartition(".")
        if head != section:
            lines += [Line()] if lines else []
            lines += [Line((Piece(f"[{clean(head)}]", "strong"),))] if head else []
            section = head
        kind = "accent" if path in changed else "text"
        label = Piece(pad(clean(key), 22) + " ", "muted")
        lines.append(Line((label, Piece(clean(show_value(value), limit=200), kind))))
    return lines or [Line((Piece("No config recorded.", "muted"),))]


def list_environment_lines(environment: Mapping[str, Any]) -> list[Line]:
    """Return what the run ran on and with, one fact a line; a long one is cut.

    The command is whole and quoted for a shell, to be run again.
    """
    lines = []
    for path, value in flatten(environment).items():
        if value in ("", None, 0, [], {}) or path == "git_diff":
            continue
        is_command = path == "command" and _is_words(value)
        text = shlex.join(value) if is_command else show_value(value)
        shown = clean(text, limit=_MAX_COMMAND if is_command else 300)
        lines.append(Line((Piece(pad(clean(path), 22) + " ", "muted"), Piece(shown, "text"))))
    diff = environment.get("git_diff")
    if isinstance(diff, str) and diff:
        count = f"{len(diff.splitlines())} lines, not committed"
        lines.append(Line((Piece(pad("git_diff", 22) + " ", "muted"), Piece(count, "warning"))))
    return lines


def list_artifact_lines(artifacts: Iterable[ArtifactRow]) -> list[Line]:
    """Return the files a run wrote; below a trace, what took most of the time in it."""
    lines = []
    for row in artifacts:
        pieces = (
            Piece(pad(clean(row.kind), 12), "muted"),
            Piece(pad(f"step {row.step}", 14), "text"),
            Piece(pad(format_bytes(row.size_bytes), 12, right=True) + "  ", "muted"),
            Piece(clean(row.path), "text"),
            Piece("  best" if row.metadata.get("best") else "", "completed"),
            Piece("  deleted by tsx gc" if row.metadata.get("removed") else "", "warning"),
        )
        lines.append(Line(pieces))
        lines += _list_kernel_lines(row.metadata.get("kernels"))
    return lines or [Line((Piece("No files.", "muted"),))]


def list_resume_lines(detail: RunDetail) -> list[Line]:
    """Return when the run was resumed, and from which step."""
    return [
        Line((Piece(f"{format_when(when)}  from step {start} to {steps}", "text"),))
        for when, start, steps in detail.resumes
    ]


def _list_kernel_lines(kernels: object) -> list[Line]:
    """Return share of the time, milliseconds, calls and name of each operation of a trace."""
    lines = []
    for kernel in kernels[:_MAX_KERNELS] if isinstance(kernels, list) else []:
        cells = kernel if isinstance(kernel, dict) else {}
        share, took = cells.get("share_pct"), cells.get("total_ms")
        if not isinstance(share, int | float) or not isinstance(took, int | float):
            continue
        figures = f"{pad(f'{share:.1f}%', 8, right=True)}{pad(f'{took:.2f} ms', 13, right=True)}"
        calls = pad(f"x{clean(str(cells.get('calls')), limit=8)}", 10, right=True)
        name = clean(str(cells.get("name")), limit=80)
        lines.append(Line((Piece(f"  {figures}{calls}  ", "muted"), Piece(name, "text"))))
    return lines


def _show_when(run: RunRow, now: float) -> Piece:
    """Return when the run began, and how long it took."""
    age = format_age(run.created, now)
    text = f"{format_when(run.created)} · {age if age == 'now' else f'{age} ago'}"
    if run.ended is not None:
        text += f" · took {format_duration(run.ended - run.created)}"
    return Piece(text, "muted")


def _list_progress(run: RunRow) -> list[Piece]:
    """Return a bar, the steps and, while the run goes on, the time that is left."""
    if not run.steps:
        return [Piece(f"step {run.step}", "text")]
    full = min(_BAR * run.step // run.steps, _BAR)
    pieces = [
        Piece("━" * full, find_status_kind(run.status)),
        Piece("━" * (_BAR - full), "faint"),
        Piece(f" {format_step(run.step, run.steps)}", "text"),
    ]
    step_ms = run.metrics.get("train/step_time_ms", 0.0)
    if run.status == "running" and 0 < step_ms < float("inf"):
        left = (run.steps - run.step) * step_ms / 1000
        pieces.append(Piece(f" · {format_duration(left)} left", "muted"))
    speed = run.metrics.get("train/toks_per_sec")
    if speed is not None and abs(speed) < float("inf"):
        pieces.append(Piece(f" · {format_count(speed)} tok/s", "muted"))
    return pieces


def _list_nonfinite(count: int) -> list[Piece]:
    """Return how many values are not finite, where any is."""
    return [Piece(f"  {count} not finite", "error")] if count else []


def _show_range(row: HistogramRow) -> str:
    """Return from where to where the values of a histogram reach."""
    if not row.edges:
        return "nothing finite"
    return f"{format_value(row.edges[0])} .. {format_value(row.edges[-1])}"


def _make_metric_line(summary: MetricSummary, width: int, names: list[str]) -> Line:
    """Return one line of the metrics table."""
    best = find_best(summary)
    has_best = best is not None and summary.count > summary.nonfinite_count
    cells = {
        "last": Piece(format_value(summary.last), "strong"),
        "best": Piece(format_value(best[0]) if best else ABSENT, "hint" if best else "faint"),
        "at step": Piece(str(best[1]) if best and has_best else ABSENT, "muted"),
        "min": Piece(format_value(summary.min), "muted"),
        "max": Piece(format_value(summary.max), "muted"),
        "points": Piece(str(summary.count), "muted"),
    }
    pieces = [Piece(pad(clean(summary.key), width), "text")]
    for name, size in _COLUMNS:
        if name in names:
            pieces.append(Piece(pad(cells[name].text, size, right=True), cells[name].kind))
    return Line((*pieces, *_list_nonfinite(summary.nonfinite_count)))


def _wrap(text: str, indent: str, width: int, kind: str) -> list[Line]:
    """Return the text in lines of at most `width` cells."""
    room = max(width - len(indent), 20)
    return [Line((Piece(indent + part, kind),)) for part in textwrap.wrap(text, room)]


def _is_words(value: object) -> bool:
    """Return whether the value is a command line."""
    return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)
