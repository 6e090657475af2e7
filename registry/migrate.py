"""Bring an older registry to this version's schema, with a copy of it beside.

The one module that imports Alembic; needs no alembic.ini on disk.
"""

from __future__ import annotations

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine
from sqlalchemy.engine import URL

import registry.migrations
from registry.faults import get_path, is_sqlite


def make_config() -> Config:
    """Return Alembic's configuration with the scripts of this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(registry.migrations.__path__[0])))
    config.set_main_option("path_separator", "os")
    return config


def migrate(engine: Engine, url: URL, stored: str) -> None:
    """Upgrade to the newest schema in one transaction; an SQLite file is copied first."""
    if is_sqlite(url):
        _back_up(engine, get_path(url), stored)
    config = make_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _back_up(engine: Engine, path: Path, stored: str) -> None:
    """Copy the database as it stands to `<name>.schema-<revision>-<utc>` beside it."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    copy = path.with_name(f"{path.name}.schema-{stored}-{stamp}")
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("VACUUM INTO ?", (str(copy),))
    finally:
        raw.close()
