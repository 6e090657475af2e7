"""What each door of the registry costs to open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = ("torch", "numpy", "textual", "typer", "rich", "alembic", "psutil", "platformdirs", "tsx")


def loaded(code):
    """Return the top-level packages that are loaded after running some code."""
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["queries", "store", "recover", "sinks", "liveness"])
def test_nothing_heavy(module):
    assert not loaded(f"import registry.{module}") & set(HEAVY)


@pytest.mark.parametrize("module", ["journal", "sinks", "liveness", "captured", "redact", "home"])
def test_the_trainers_side_needs_no_database(module):
    assert "sqlalchemy" not in loaded(f"import registry.{module}")


@pytest.mark.parametrize("module", ["views", "errors", "home"])
def test_the_standard_library_is_enough(module):
    assert not loaded(f"import registry.{module}") & {*HEAVY, "sqlalchemy", "msgspec"}


def test_making_and_reading_a_registry_needs_no_alembic(tmp_path):
    code = (
        "from registry.connection import open_engine\n"
        "from registry.queries import Reader\n"
        f"url = 'sqlite:///{tmp_path / 'r.db'}'\n"
        "open_engine(url, readonly=False).dispose()\n"
        "with Reader.open(url) as reader: reader.list_runs()"
    )
    assert "alembic" not in loaded(code)
    assert (tmp_path / "r.db").exists()
