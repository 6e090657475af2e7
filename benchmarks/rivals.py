"""The registry beside its rivals: `make rivals`, or `python -m benchmarks.rivals`.

trackio, MLflow on SQLite, TensorBoard and W&B offline, each in processes of its own, with the same
values at the same pace; rounds are interleaved, figures are medians. Everything is offline: the
rivals are told so, proxies lead nowhere, and sockets of the processes that measure reach this
machine only. A rival that is not installed or breaks is said to, and the others go on. Nothing else
should run meanwhile. About 15 minutes; `--quick` shows in three that all of it works.

The table goes to stdout and, after every part, to `table.md` in the folder, with every answer in
`answers.json` and what the rivals printed in `logs`. Exit status 1 when tsx misses a target.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import rivals_table
from benchmarks.rivals_adapters import RIVALS
from benchmarks.rivals_contract import Rival
from benchmarks.rivals_plan import QUICK, Scale, Task, iter_tasks

ROOT = Path(__file__).resolve().parent.parent
_NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
_FOREIGN = ("WANDB_", "MLFLOW_", "TRACKIO_", "TSX_", "HF_", "GRADIO_")  # a user's own settings


def main() -> int:
    """Measure, print the table, and say whether tsx keeps its targets."""
    options = _parse()
    chosen = [rival for rival in RIVALS if not options.only or rival.name in options.only]
    rivals = [rival for rival in chosen if rival.is_installed()]
    answers = Answers(options.folder, [r.name for r in chosen if r not in rivals], options.quick)
    scale = QUICK if options.quick else Scale()
    if options.kills is not None:
        scale = dataclasses.replace(scale, kills=options.kills)
    data = options.folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    try:
        _run_all(rivals, scale, answers)
    except KeyboardInterrupt:
        print("\ninterrupted: the table holds what was measured", file=sys.stderr)
    finally:
        if not options.keep:
            shutil.rmtree(data, ignore_errors=True)
    text, missed = rivals_table.render(rivals, answers.found, answers.failed, answers.about)
    print(text)
    return 1 if missed or not rivals else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--kills", type=int, help="kills of each rival while it is paced")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="of: " + ", ".join(_names())
    )
    parser.add_argument(
        *("--folder",), type=Path, default=ROOT / "build" / "rivals", help="on the disk to measure"
    )
    parser.add_argument("--keep", action="store_true", help="leave what was recorded in the folder")
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(_names())
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))}: it is one of {', '.join(_names())}")
    options.folder = options.folder.resolve()
    (options.folder / "logs").mkdir(parents=True, exist_ok=True)
    return options


def _names() -> list[str]:
    return [rival.name for rival in RIVALS]


class Answers:
    """What was measured so far: by part and rival, a list of answers, one a round."""

    def __init__(self, folder: Path, absent: list[str], quick: bool) -> None:
        self.folder = folder
        self.found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.failed: dict[tuple[str, str], str] = {}
        self.about = rivals_table.describe_machine(absent, quick)

    def add(self, task: Task, answer: dict[str, Any] | str) -> None:
        """Keep an answer, or the reason why there is none."""
        name = task.rival.name
        if isinstance(answer, str):
            self.failed[task.part.removesuffix(" made"), name] = answer
            print(f"  {name}, {task.part}: {answer}", file=sys.stderr)
        else:
            self.found.setdefault(task.part, {}).setdefault(name, []).append(answer)

    def save(self, rivals: Sequence[type[Rival]]) -> None:
        """Write the table and the answers as they stand."""
        text, _ = rivals_table.render(rivals, self.found, self.failed, self.about)
        (self.folder / "table.md").write_text(text + "\n")
        (self.folder / "answers.json").write_text(json.dumps(self.found, indent=1))


def _run_all(rivals: Sequence[type[Rival]], scale: Scale, answers: Answers) -> None:
    """Carry out every task, with progress on stderr."""
    tasks = list(iter_tasks(rivals, scale))
    total, done, began = sum(task.seconds for task in tasks), 0.0, time.monotonic()
    for number, task in enumerate(tasks, start=1):
        passed = time.monotonic() - began
        # The plan's seconds are those of one machine; how they compare shows as it goes.
        left = (total - done) * (passed / done if done > 60 else 1.0)
        print(
            f"[{number}/{len(tasks)}] {passed / 60:.0f} min, about {left / 60:.0f} left: "
            f"{task.rival.name}, {task.part}",
            file=sys.stderr,
        )
        if (task.part.removesuffix(" made"), task.rival.name) not in answers.failed:
            answers.add(task, _carry_out(task, answers.folder))
            answers.save(rivals)
        done += task.seconds


def _carry_out(task: Task, base: Path) -> dict[str, Any] | str:
    """Run one task in a fresh process; return its answer, or what went wrong in one line."""
    place = base / "data" / task.rival.name.replace(" ", "-")
    folder, answer = place / task.folder, place / "answer.json"
    folder.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    order = task.options | {"rival": task.rival.name, "what": task.what}
    order |= {"folder": str(folder), "answer": str(answer)}
    log = base / "logs" / f"{place.name}-{task.part.replace(' ', '-')}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rivals_measures", json.dumps(order)],
            cwd=place,
            env=_make_environment(task.rival, folder),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            status = process.wait(task.limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped after {task.limit_s:g} s"
        finally:
            _end_session(process)
    if status or not answer.is_file():
        lines = log.read_text(errors="replace").strip().splitlines()
        return f"failed ({status}): {lines[-1][:120] if lines else 'no output'}"
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End what the process has left behind, helper processes of a rival included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _make_environment(rival: type[Rival], folder: Path) -> dict[str, str]:
    """Return an environment that is offline and knows no folder but the task's."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), _NOWHERE)
    return {
        **inherited,
        **proxies,
        **{name.upper(): value for name, value in proxies.items()},
        **{"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"},
        **{"DO_NOT_TRACK": "true", "HOME": str(folder.parent), "MPLCONFIGDIR": str(folder.parent)},
        **{name: str(folder.parent) for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")},
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        **rival.list_settings(folder),
    }


if __name__ == "__main__":
    sys.exit(main())
