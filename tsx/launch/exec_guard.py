"""Stands by while `tsx exec` records: should that be killed, the program keeps its output.

A program whose pipes nobody reads would die of SIGPIPE at its next line. This process holds the
same pipes, sleeps until the recorder's end of a third one closes, and then passes stdout and stderr
on, and into the logs, until nobody writes them any more. The recorder kills it when all went well.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> int:
    """Wait for the recorder's end, then stand in for it."""
    out_fd, err_fd, life_fd = map(int, sys.argv[1:4])
    folder = Path(sys.argv[4])
    os.read(life_fd, 1)

    from registry.redact import Redactor
    from tsx.launch.exec_streams import Pump, StreamLog

    redactor = Redactor.from_environ(os.environ)
    pumps = [
        Pump(source, target, StreamLog(folder / f"{name}.log", redactor))
        for source, target, name in ((out_fd, 1, "stdout"), (err_fd, 2, "stderr"))
    ]
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
        pump.log.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
