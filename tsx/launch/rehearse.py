"""A dry run: a worker prepares data, model and device, says what it found, and trains nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from registry.events import Event
from registry.journal import decode
from tsx import config as configs
from tsx.config import RunConfig
from tsx.errors import ConfigError, Exit, OutOfMemory, TsxError
from tsx.launch.process import make_line
from tsx.launch.worker import Order

ERROR_OF_EXIT: dict[int, type[TsxError]] = {
    Exit.USAGE: ConfigError,
    Exit.OUT_OF_MEMORY: OutOfMemory,
}


def iter_rehearsal(config: RunConfig, home: Path, *, examine: bool = False) -> Iterator[Event]:
    """Yield the events a run of this config would begin with.

    Args:
        config: of the run.
        home: where caches and the demo corpus live.
        examine: look at one small step as well; see `tsx.trainer.preflight`.

    Raises:
        ConfigError: config or data do not hold.
        OutOfMemory: the model does not fit.
        TsxError: the worker failed in another way.
    """
    order = Order(config=configs.to_plain(config), home=str(home), dry_run=True, examine=examine)
    done = subprocess.run(
        make_line("tsx.launch.worker"),
        input=msgspec.json.encode(order),
        capture_output=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        yield decode(line)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1] if said else f"the worker exited with status {done.returncode}"
        raise ERROR_OF_EXIT.get(done.returncode, TsxError)(reason)
