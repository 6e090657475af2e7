"""A supervisor in the background: `tsx run --detach` starts it and leaves.

It reads its plans from stdin, answers one line once the first run is in the registry (or why it
cannot be), ignores SIGHUP, and writes what nobody foresaw to `sweeps/<id>.log` under TSX_HOME.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from registry.errors import StoreError
from registry.events import Event
from tsx.config import RunConfig
from tsx.errors import RegistryError, TsxError
from tsx.launch.exit_reason import Ending
from tsx.launch.plan import RunPlan, decode_plans, encode_plans
from tsx.launch.process import make_line
from tsx.launch.provenance import Provenance
from tsx.launch.supervise import Supervisor

STARTED = "started"


class Handover(msgspec.Struct, frozen=True):
    """What the background supervisor is given."""

    home: str
    url: str
    plans: msgspec.Raw
    provenance: dict[str, Any]


class SilentView:
    """Tells the starter that the first run stands; shows nothing."""

    def __init__(self) -> None:
        self._told = False

    def begin(self, run_id: str, name: str, config: RunConfig) -> None:
        """Answer the starter once."""
        if not self._told:
            answer(STARTED)
        self._told = True

    def see(self, event: Event) -> None:
        """Nobody watches."""

    def tick(self) -> None:
        """Nobody watches."""

    def finish(self, run_id: str, ending: Ending) -> None:
        """Nobody watches."""


def start_detached(plans: Sequence[RunPlan], provenance: Provenance, home: Path, url: str) -> int:
    """Start a background supervisor and return its process id once the first run is recorded.

    Raises:
        RegistryError: it could not record the first run.
        TsxError: it died without a word; the message names its log.
    """
    log = home / "sweeps" / f"{plans[0].parent or plans[0].run_id}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("ab")
    except OSError as error:
        raise RegistryError(
            f"cannot write {log}: {error.strerror}",
            next_command="TSX_HOME=/a/folder/with/room tsx run ...",
        ) from error
    with stream:
        process = subprocess.Popen(
            make_line("tsx.launch.detached"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    handover = Handover(str(home), url, msgspec.Raw(encode_plans(plans)), asdict(provenance))
    process.stdin.write(msgspec.json.encode(handover))
    process.stdin.close()
    said = process.stdout.readline().decode("utf-8", "replace").strip()
    process.stdout.close()
    if said == STARTED:
        process.returncode = 0  # it goes on without us: nobody waits for it
        return process.pid
    raise RegistryError(said) if said else TsxError(f"the supervisor died; see {log}")


def answer(line: str) -> None:
    """Say one line to the starter, who may be gone."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:
        return


def main() -> int:
    """Supervise the plans that come on stdin."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handover = msgspec.json.decode(sys.stdin.buffer.read(), type=Handover)
    supervisor = Supervisor(Path(handover.home), handover.url, SilentView(), detached=True)
    plans = decode_plans(bytes(handover.plans))
    try:
        endings = supervisor.run_all(plans, Provenance(**handover.provenance))
    except (StoreError, TsxError) as error:
        answer(error.message)
        raise
    return next((ending.exit_code for ending in endings if ending.exit_code), 0)


if __name__ == "__main__":
    sys.exit(main())
