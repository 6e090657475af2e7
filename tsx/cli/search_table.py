"""What a search found, read back from the registry: a row a trial, and the largest value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from registry.events import Status
from tsx.cli import output
from tsx.cli.output import Cell, Column

if TYPE_CHECKING:
    from registry.queries import Reader
    from registry.views import RunDetail

# Short, so that a row is whole on a screen of 80 cells; the prediction is in GiB too.
_RIGHT = ("step ms", "tokens/s", "points/s", "MFU %", "peak GiB", "predicted")


@dataclass(frozen=True, slots=True)
class Row:
    """One trial. None is what was not measured; `peak_gib` of a trial out of memory is a part."""

    value: int
    status: str  # of the run, or "not tried"
    reason: str
    run: str
    step_time_ms: float | None
    toks_per_sec: float | None
    points_per_sec: float | None
    mfu: float | None  # percent
    peak_gib: float | None
    predicted_gib: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the value fits; None where the trial does not tell."""
        if self.status == Status.COMPLETED:
            return True
        return False if self.status in (Status.OOM, "not tried") else None


@dataclass(frozen=True, slots=True)
class SearchTable:
    """A search, its trials by value."""

    search: str
    key: str
    device: str
    budget_gib: float | None
    rows: tuple[Row, ...]

    @property
    def largest(self) -> Row | None:
        """The largest value that fits."""
        return max((row for row in self.rows if row.fits), key=lambda row: row.value, default=None)

    @property
    def next_tried(self) -> Row | None:
        """The smallest value above that does not fit."""
        above = self.largest.value if self.largest else 0
        rows = (row for row in self.rows if row.fits is False and row.value > above)
        return min(rows, key=lambda row: row.value, default=None)


def find_search(reader: Reader, reference: str) -> SearchTable | None:
    """Return the search of an id; None where there is none."""
    from tsx.launch.search import KEY_TAG, SEARCH_PREFIX

    if not reference.startswith(SEARCH_PREFIX):
        return None
    trials = [reader.get_detail(run.id) for run in reader.list_runs(parent=reference)]
    tags = {tag for trial in trials for tag in trial.run.tags if tag.startswith(KEY_TAG)}
    if not tags:
        return None
    key = min(tags).removeprefix(KEY_TAG)
    rows = [row for row in (_make_row(trial, key) for trial in trials) if row is not None]
    devices = [trial.run.device for trial in trials if trial.run.device]
    return SearchTable(
        search=reference,
        key=key,
        device=devices[0] if devices else "",
        budget_gib=_find_value(trials[0].config, "perf.memory_budget_gib"),
        rows=tuple(sorted(rows, key=lambda row: row.value)),
    )


def show(table: SearchTable) -> None:
    """Show the rows, and below them the largest value that fits."""
    columns = [Column(table.key.partition(".")[2], right=True), Column("status")]
    columns += [Column(name, right=True) for name in _RIGHT]
    output.table(columns, [_make_cells(row) for row in table.rows])
    output.data("")
    output.data(describe(table), style="strong")


def to_plain(table: SearchTable) -> dict[str, Any]:
    """Return a search as plain data for JSON."""
    largest, next_tried = table.largest, table.next_tried
    return {
        "search": table.search,
        "key": table.key,
        "device": table.device,
        "budget_gib": table.budget_gib,
        "largest": largest.value if largest else None,
        "next_tried": next_tried.value if next_tried else None,
        "sentence": describe(table),
        "trials": [asdict(row) for row in table.rows],
    }


def describe(table: SearchTable) -> str:
    """Return the sentence that names the largest value that fits, and what stopped the next."""
    place = f"on {table.device}" if table.device else "here"
    place = f"in {table.budget_gib:.3g} GiB" if table.budget_gib else place
    largest, above = table.largest, table.next_tried
    ended = {row.fits for row in table.rows}
    if largest is None:
        if above is None:
            return f"no {table.key} is known to fit {place}: no trial got that far"
        return f"no {table.key} fits {place}: {_explain(above, 'the smallest tried')}"
    sentence = f"largest {table.key} that fits {place}: {largest.value}"
    if above is None:
        cut = [row for row in table.rows if row.fits is None and row.value > largest.value]
        last = min(cut, key=lambda row: row.value, default=None)
        stopped = f"the trial of {last.value} was {last.status}" if last else ""
        return f"{sentence}; {stopped or 'nothing larger was tried'}"
    between = "; values in between were not tried" if None in ended else ""
    return f"{sentence}; {_explain(above, 'the next tried')}{between}"


def _explain(row: Row, name: str) -> str:
    """Say why a value does not fit."""
    if row.status == Status.OOM:
        return f"{name}, {row.value}, ran out of memory"
    return f"{name}, {row.value}, was {row.reason}"


def _make_row(trial: RunDetail, key: str) -> Row | None:
    """Return the row of a trial; None where its config has no such number."""
    from tsx.launch.search import NOT_TRIED

    value = _find_value(trial.config, key)
    if not isinstance(value, int):
        return None
    metrics = trial.run.metrics
    return Row(
        value=value,
        status="not tried" if NOT_TRIED in trial.run.tags else trial.run.status,
        reason=trial.run.reason,
        run=trial.run.id,
        step_time_ms=metrics.get("train/step_time_ms"),
        toks_per_sec=metrics.get("train/toks_per_sec"),
        points_per_sec=metrics.get("train/points_per_sec"),
        mfu=metrics.get("train/mfu"),
        peak_gib=find_peak(metrics),
        predicted_gib=_predict(trial),
    )


def find_peak(metrics: dict[str, float]) -> float | None:
    """Return what model and training took at most, without what the process held before them."""
    peak = metrics.get("sys/peak_mem_gib")
    return None if peak is None else peak - metrics.get("sys/base_mem_gib", 0.0)


def _make_cells(row: Row) -> list[Cell]:
    """Return a row's cells; memory that was reached before it ran out is a lower bound."""
    part = ">" if row.fits is False else ""
    style: output.Style = "good" if row.fits else "bad" if row.status != "not tried" else "warning"
    numbers = [
        (row.step_time_ms, ",.1f", ""),
        (row.toks_per_sec, ",.0f", ""),
        (row.points_per_sec, ",.0f", ""),
        (row.mfu, ".2f", ""),
        (row.peak_gib, ".2f", part),
        (row.predicted_gib, ".2f", ""),
    ]
    cells = [Cell("" if n is None else f"{sign}{n:{form}}") for n, form, sign in numbers]
    return [Cell(row.value), Cell("fits" if row.fits else row.status, style), *cells]


def _find_value(config: dict[str, Any], key: str) -> Any:
    """Return the value of "section.key" in a recorded config; None where it is not there."""
    section, _, name = key.partition(".")
    keys = config.get(section)
    return keys.get(name) if isinstance(keys, dict) else None


def _predict(trial: RunDetail) -> float | None:
    """Return the predicted peak of a recorded run; None for a config of another version."""
    from tsx.config import Precision, decode
    from tsx.errors import ConfigError
    from tsx.perf.footprint import predict_peak_gib

    is_bf16 = trial.run.precision == Precision.BF16
    try:
        config = decode(trial.config)
    except ConfigError:
        return None
    return predict_peak_gib(config, Precision.BF16 if is_bf16 else Precision.FP32)
