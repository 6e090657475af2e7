"""tsx dashboard: what surrounds the app."""

from pathlib import Path

import pytest

from registry.connection import find_url
from tsx.cli.dashboard import find_file, shorten


def test_without_a_terminal_it_says_so_and_names_the_list(tsx):
    done = tsx("dashboard")
    assert done.status == 2
    assert "needs a terminal" in done.err
    assert "tsx runs" in done.err


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////tmp/a/registry.db", Path("/tmp/a/registry.db")),
        ("sqlite:///relative.db", Path("relative.db")),
        ("sqlite+pysqlite:////tmp/b.db?timeout=3", Path("/tmp/b.db")),
        ("sqlite://", None),
        ("postgresql://me:secret@host:5432/tsx", None),
    ],
)
def test_only_sqlite_has_a_file(url, file):
    assert find_file(url) == file


def test_the_first_frame_shows_the_place_the_registry_opens(tsx, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("tsx.cli.output.is_terminal", lambda stream: True)
    monkeypatch.setattr("tsx.dashboard.app.DashboardApp.run", lambda app: seen.update(vars(app)))
    assert tsx("dashboard").status == 0
    home = tmp_path / "tsx-home"
    assert seen["_place"] == str(find_file(find_url(home))) == str(home / "registry.db")


def test_places_under_home_are_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shorten(tmp_path / "x" / "registry.db") == "~/x/registry.db"
    assert shorten(Path("/elsewhere/registry.db")) == "/elsewhere/registry.db"


@pytest.mark.parametrize(
    "url", [None, "postgresql://me:secret@host/tsx", "postgresql:me:secret@host"]
)
def test_the_app_is_handed_the_registry(tsx, monkeypatch, url):
    seen = {}

    def start(self, **more):
        seen.update(vars(self))

    monkeypatch.setattr("tsx.cli.output.is_terminal", lambda stream: True)
    monkeypatch.setattr("tsx.dashboard.app.DashboardApp.run", start)
    if url is not None:
        monkeypatch.setenv("TSX_REGISTRY", url)
    assert tsx("dashboard").status == 0
    assert "secret" not in seen["_place"]
    poller = seen["_poller"]
    assert poller._recover is not None
    if url is None:
        assert poller._recover() == ()
        reader = poller._open_reader()
        assert reader.list_runs() == []
        reader.close()
