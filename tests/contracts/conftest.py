"""Every file of this folder is a contract: one class of tests, run against every implementation."""

from __future__ import annotations

import os
import uuid

import pytest

pytest.register_assert_rewrite("tests.contracts.event_sink")


def pytest_collect_file(file_path, parent):
    """Collect a contract by its plain name."""
    if file_path.suffix == ".py" and not file_path.name.startswith(("test_", "conftest")):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture
def postgresql_url():
    """Return the URL of an empty schema on the server that TSX_TEST_POSTGRESQL names."""
    server = os.environ.get("TSX_TEST_POSTGRESQL")
    if not server:
        pytest.skip("TSX_TEST_POSTGRESQL names no server")
    sqlalchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip("psycopg")
    schema = f"tsx_{uuid.uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    url = sqlalchemy.make_url(server).update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()
