"""The registry and its rivals behind one small class each: start, log, finish, read, list.

Every library is used as its documentation shows, offline and in a folder of its own; only what
would measure something else than logging is switched off (console capture, machine statistics,
git). Nothing is imported before `load`, so a rival that is not installed costs the others nothing.
W&B ships no reader of its offline files: `benchmarks.rivals_wandb` decodes them with W&B's own
messages.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rivals_contract import KEYS, PROJECT, Curve, Rival, list_files


class Tsx(Rival):
    """This project, through its public API; read after `recover`, as every command reads."""

    name = "tsx"
    modules = ("msgspec", "sqlalchemy", "psutil")
    shares = True
    promises = True
    outline_note = "minima, maxima and non-finite points of every column"

    @classmethod
    def list_versions(cls) -> str:
        """Return this tree's version."""
        return f"tsx {importlib.import_module('tsx').__version__}"

    @classmethod
    def list_settings(cls, folder: Path) -> dict[str, str]:
        """Return what keeps it in its folder and silent."""
        return {"TSX_HOME": str(folder), "TSX_QUIET": "1"}

    def load(self) -> None:
        """Import the library and what is behind its lazy door."""
        import tsx

        self._init = tsx.init

    def load_reader(self) -> None:
        """Import the reader and what folds in what a dead process left."""
        from registry import queries, recover

        self._queries, self._recover = queries, recover
        self._reader: Any = None

    @property
    def url(self) -> str:
        """The registry's URL."""
        return f"sqlite:///{self.folder / 'registry.db'}"

    def start(self, run: str) -> None:
        """Begin a run."""
        self._run = self._init(project=PROJECT, name=run)

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values of one step."""
        self._run.log(values, step=step)

    def finish(self) -> None:
        """End the run."""
        self._run.finish()

    def read_series(self, run: str, key: str) -> Curve:
        """Return one whole curve."""
        series = self._open().get_series(self._get_id(run), key)
        return Curve(series.steps, series.values)

    def read_outline(self, run: str, key: str, width: int) -> Curve:
        """Return the points that a chart needs."""
        series = self._open().get_outline(self._get_id(run), key, width)
        return Curve(series.steps, series.values)

    def list_runs(self, limit: int) -> dict[str, dict[str, float]]:
        """Return the newest runs."""
        runs = self._open().list_runs(limit=limit)
        return {run.name: run.metrics for run in runs}

    def count_bytes(self) -> dict[str, int]:
        """Return the registry's bytes and the journals' apart."""
        found = {"store": 0, "journal": 0}
        for path in list_files(self.folder):
            kind = "store" if path.name.startswith("registry.db") else "journal"
            found[kind] += path.stat().st_size
        return found

    def _open(self) -> Any:
        """Return a reader as a command opens it; it stays open, as the dashboard's does."""
        if self._reader is None:
            self._recover.recover(self.folder, self.url)
            self._reader = self._queries.Reader.open(self.url)
        return self._reader

    def _get_id(self, run: str) -> str:
        return str(self._open().get_run(run).id)


class Trackio(Rival):
    """trackio without its server: the SQLite file that its dashboard reads."""

    name = "trackio"
    packages = ("trackio",)
    modules = ("trackio",)
    shares = True
    outline_note = "every n-th step (`max_points`)"

    @classmethod
    def list_settings(cls, folder: Path) -> dict[str, str]:
        """Return what keeps it in its folder and off the Hub."""
        return {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}

    def load(self) -> None:
        """Import the library and the storage that its own Api reads from."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self._trackio, self._storage = trackio, SQLiteStorage

    def start(self, run: str) -> None:
        """Begin a run that samples no machine statistics."""
        self._run = self._trackio.init(
            PROJECT, name=run, embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values of one step."""
        self._run.log(values, step=step)

    def finish(self) -> None:
        """End the run, which writes what is queued."""
        self._run.finish()

    def read_series(self, run: str, key: str) -> Curve:
        """Return one whole curve; trackio reads every key of the run."""
        return self._to_curve(self._storage.get_logs(PROJECT, run), key)

    def read_outline(self, run: str, key: str, width: int) -> Curve:
        """Return as many points as its dashboard asks for at this width."""
        return self._to_curve(self._storage.get_logs(PROJECT, run, max_points=width), key)

    def list_runs(self, limit: int) -> dict[str, dict[str, float]]:
        """Return the newest runs; there is no query for the last values of several."""
        found = {}
        for record in self._storage.get_run_records(PROJECT)[-limit:]:
            rows = self._storage.get_logs(PROJECT, run_id=record["id"], max_points=1)
            last = rows[-1] if rows else {}
            found[str(record["name"])] = {key: last[key] for key in KEYS if key in last}
        return found

    def _to_curve(self, rows: list[dict[str, Any]], key: str) -> Curve:
        return Curve(
            [row["step"] for row in rows if key in row], [r[key] for r in rows if key in r]
        )


class Mlflow(Rival):
    """MLflow on SQLite, without a server. An empty database takes it seconds: one is copied."""

    name = "MLflow"
    packages = ("mlflow",)
    modules = ("mlflow", "sqlalchemy")
    slow = True
    shares = True
    outline_note = "every n-th point (`get_metric_history_bulk_interval`)"
    _BATCH = 1000  # what one log_batch takes at most

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._database = folder / "mlflow.db"
        self._template = folder.parent / "mlflow.db"

    @classmethod
    def list_settings(cls, folder: Path) -> dict[str, str]:
        """Return what keeps it silent."""
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "GIT_PYTHON_REFRESH": "quiet",
        }

    def load(self) -> None:
        """Import the library."""
        import mlflow

        if self._template.exists() and not self._database.exists():
            shutil.copy(self._template, self._database)
        self._mlflow = mlflow

    def start(self, run: str) -> None:
        """Begin a run."""
        self._mlflow.set_tracking_uri(f"sqlite:///{self._database}")
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=run)

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values of one step, synchronously, as is MLflow's default."""
        self._mlflow.log_metrics(values, step=step)

    def finish(self) -> None:
        """End the run; the first database of all becomes the others' template."""
        self._mlflow.end_run()
        if not self._template.exists():
            shutil.copy(self._database, self._template)

    def fill(self, run: str, rows: Iterator[dict[str, float]]) -> None:
        """Record in batches: its log call would take an hour."""
        from mlflow.entities import Metric

        self.start(run)
        run_id = self._mlflow.active_run().info.run_id
        now, batch, client = int(time.time() * 1000), [], self._get_client()
        for step, values in enumerate(rows, start=1):
            batch += [Metric(key, value, now + step, step) for key, value in values.items()]
            if len(batch) + len(values) > self._BATCH:
                client.log_batch(run_id, batch)
                batch = []
        if batch:
            client.log_batch(run_id, batch)
        self.finish()

    def read_series(self, run: str, key: str) -> Curve:
        """Return one whole curve."""
        client = self._get_client()
        return self._to_curve(client.get_metric_history(self._get_run_id(run), key))

    def read_outline(self, run: str, key: str, width: int) -> Curve:
        """Return what its server's chart is given."""
        store = self._get_client()._tracking_client.store
        run_id = self._get_run_id(run)
        return self._to_curve(
            store.get_metric_history_bulk_interval([run_id], key, width, None, None)
        )

    def list_runs(self, limit: int) -> dict[str, dict[str, float]]:
        """Return the newest runs."""
        return {
            run.info.run_name: dict(run.data.metrics)
            for run in self._get_client().search_runs([self._get_experiment()], max_results=limit)
        }

    def _get_client(self) -> Any:
        return self._mlflow.MlflowClient(f"sqlite:///{self._database}")

    def _get_experiment(self) -> str:
        return str(self._get_client().get_experiment_by_name(PROJECT).experiment_id)

    def _get_run_id(self, run: str) -> str:
        named = f"attributes.run_name = '{run}'"
        found = self._get_client().search_runs([self._get_experiment()], named)
        return str(found[0].info.run_id)

    def _to_curve(self, found: list[Any]) -> Curve:
        return Curve([metric.step for metric in found], [metric.value for metric in found])


class TensorBoard(Rival):
    """Event files by tensorboardX, read by TensorBoard's own accumulator."""

    name = "TensorBoard"
    packages = ("tensorboardX", "tensorboard")
    modules = ("tensorboardX", "tensorboard")
    outline_note = "a random sample (`size_guidance`)"

    def load(self) -> None:
        """Import the writer."""
        import tensorboardX

        self._writing = tensorboardX

    def load_reader(self) -> None:
        """Import the reader."""
        from tensorboard.backend.event_processing import event_accumulator

        self._reading = event_accumulator

    def start(self, run: str) -> None:
        """Begin a run: a folder of event files."""
        self._writer = self._writing.SummaryWriter(str(self.folder / run))

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values of one step, a call each, as its users do."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()

    def read_series(self, run: str, key: str) -> Curve:
        """Return one whole curve; the file holds all keys."""
        return self._read(run, key, 0)

    def read_outline(self, run: str, key: str, width: int) -> Curve:
        """Return a sample of this size; the file is read to its end all the same."""
        return self._read(run, key, width)

    def list_runs(self, limit: int) -> dict[str, dict[str, float]]:
        """Return the last values of every folder."""
        found: dict[str, dict[str, float]] = {}
        for folder in sorted(self.folder.iterdir())[:limit]:
            events = self._open(folder.name, 1)
            tags = events.Tags()["scalars"]
            found[folder.name] = {key: events.Scalars(key)[-1].value for key in tags}
        return found

    def _open(self, run: str, size: int) -> Any:
        folder = str(self.folder / run)
        return self._reading.EventAccumulator(folder, size_guidance={"scalars": size}).Reload()

    def _read(self, run: str, key: str, size: int) -> Curve:
        events = self._open(run, size)
        found = events.Scalars(key) if key in events.Tags()["scalars"] else []
        return Curve([event.step for event in found], [event.value for event in found])


class Wandb(Rival):
    """W&B offline: its core process writes one file a run."""

    name = "W&B offline"
    packages = ("wandb",)
    modules = ("wandb",)
    lists = False  # offline runs can only be listed once they are uploaded

    @classmethod
    def list_settings(cls, folder: Path) -> dict[str, str]:
        """Return what keeps it offline and in its folder."""
        folders = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
        offline = {
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
        }
        return offline | {name: str(folder) for name in folders}

    def load(self) -> None:
        """Import the library."""
        import wandb

        self._wandb = wandb

    def load_reader(self) -> None:
        """Import the messages of its files."""
        from benchmarks import rivals_wandb

        importlib.import_module("wandb.proto.wandb_internal_pb2")
        self._files = rivals_wandb

    def start(self, run: str) -> None:
        """Begin a run that looks at nothing but what is logged."""
        settings = self._wandb.Settings(
            console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True
        )
        self._run = self._wandb.init(
            project=PROJECT, id=run, name=run, dir=str(self.folder), settings=settings
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values of one step."""
        self._run.log(values, step=step)

    def finish(self) -> None:
        """End the run, which waits for its core process."""
        self._run.finish()

    def read_series(self, run: str, key: str) -> Curve:
        """Return one whole curve; the file holds all keys."""
        (path,) = self.folder.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb")
        points = list(self._files.iter_points(path, key))
        return Curve([step for step, _ in points], [value for _, value in points])


RIVALS: tuple[type[Rival], ...] = (Tsx, Trackio, Mlflow, TensorBoard, Wandb)


def get_rival(name: str) -> type[Rival]:
    """Return the adapter of this name.

    Raises:
        KeyError: there is none.
    """
    return {rival.name: rival for rival in RIVALS}[name]
