"""Running one command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tsx.cli.main import main


class Done(NamedTuple):
    """What a command line left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def tsx(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `tsx WORDS...` and return its status, stdout and stderr."""

    def invoke(*words: str) -> Done:
        capsys.readouterr()
        status = main(list(words))
        captured = capsys.readouterr()
        return Done(int(status), captured.out, captured.err)

    return invoke
