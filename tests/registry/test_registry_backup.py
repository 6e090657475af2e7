"""A backup is whole, of one moment, and never over another file."""

from __future__ import annotations

import errno
import os
import re
import sqlite3

import pytest

from registry import backup as backups
from registry.backup import back_up
from registry.check import check
from registry.connection import get_default_url
from registry.errors import StoreError, StoreUnavailable
from registry.events import Metrics
from registry.queries import Reader
from registry.recover import recover
from registry.store import Recorder

RUN = "aaaa0000"


@pytest.fixture
def folder(write_run, home, url):
    """Record one run, in the database too."""
    folder = write_run(RUN)
    recover(home, url)
    return folder


def test_the_copy_is_a_registry(folder, home, url, tmp_path):
    target = tmp_path / "copy" / "registry.db"
    target.parent.mkdir()
    made = back_up(url, target)
    assert (made.path, made.num_runs, made.size_bytes) == (target, 1, target.stat().st_size)
    copy = f"sqlite:///{target}"
    with Reader.open(url) as ours, Reader.open(copy) as theirs:
        assert theirs.list_runs() == ours.list_runs()
        assert theirs.get_series(RUN, "train/loss") == ours.get_series(RUN, "train/loss")
    assert check(home, copy).faults == ()


def test_its_name_has_the_time_and_nothing_else_is_left(folder, home, url):
    made = back_up(url)
    assert re.fullmatch(r"registry\.db\.backup-\d{8}T\d{6}Z", made.path.name)
    left = {name.removesuffix("-wal").removesuffix("-shm") for name in os.listdir(home)}
    assert left == {"registry.db", "runs", made.path.name}


def test_a_run_goes_on_meanwhile(write_run, home, url, monkeypatch):
    folder = write_run(RUN, steps=3, ended=False)
    recorder = Recorder(folder, url)
    recorder.emit(Metrics(time=1500.0, step=4, values={"train/loss": 1.0}))
    recover(home, url)
    verify = backups._verify

    def write_and_verify(found, partial):
        for step in range(5, 50):
            recorder.emit(Metrics(time=1500.0, step=step, values={"train/loss": 1.0}))
        return verify(found, partial)

    monkeypatch.setattr(backups, "_verify", write_and_verify)
    first, second = back_up(url, home / "a.db"), back_up(url, home / "b.db")
    recorder.close()
    for made in (first, second):
        assert check(home, f"sqlite:///{made.path}").faults == ()
    with Reader.open(url) as reader:
        assert reader.get_run(RUN).step == 49


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_replaced(folder, url, tmp_path, kind):
    target = tmp_path / "there"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="exists"):
        back_up(url, target)
    assert sorted(os.listdir(tmp_path)) == ["there", "tsx-home"]
    if kind == "file":
        assert target.read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_replaced(folder, url, tmp_path, monkeypatch):
    target = tmp_path / "there"
    verify = backups._verify

    def appear(found, partial):
        target.write_text("mine")
        return verify(found, partial)

    monkeypatch.setattr(backups, "_verify", appear)
    with pytest.raises(StoreError, match="exists"):
        back_up(url, target)
    assert target.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["there", "tsx-home"]


def test_a_full_disk_leaves_nothing(folder, url, tmp_path, monkeypatch):
    def refuse(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreUnavailable, match="No space left on device; nothing of it is left"):
        back_up(url, tmp_path / "copy.db")
    assert os.listdir(tmp_path) == ["tsx-home"]


def test_a_file_that_may_not_grow_leaves_nothing(folder, url, tmp_path, start_python):
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from registry.backup import back_up\n"
        "from registry.errors import StoreUnavailable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n    back_up(sys.argv[1], Path(sys.argv[2]))\n"
        "except StoreUnavailable as error:\n    print(error.message)\n"
    )
    process = start_python(script, url, tmp_path / "copy.db")
    said, _ = process.communicate(timeout=60)
    assert "cannot be written" in said
    assert os.listdir(tmp_path) == ["tsx-home"]


def test_a_folder_that_is_not_there_is_named(folder, url, tmp_path):
    with pytest.raises(StoreUnavailable, match="nowhere"):
        back_up(url, tmp_path / "nowhere" / "copy.db")


def test_a_copy_that_is_not_whole_is_deleted(folder, url, tmp_path, monkeypatch):
    fsync = os.fsync

    def damage(fd):
        path = os.readlink(f"/proc/self/fd/{fd}")
        with open(path, "r+b") as file:
            file.seek(4096 + 8)
            file.write(b"\xa5" * 200)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(StoreError, match="not whole"):
        back_up(url, tmp_path / "copy.db")
    assert os.listdir(tmp_path) == ["tsx-home"]


def test_no_registry_is_no_backup(home, url):
    with pytest.raises(StoreUnavailable, match="no registry"):
        back_up(url)
    assert not home.exists()


def test_a_server_has_tools_of_its_own(home):
    with pytest.raises(StoreError) as caught:
        back_up("postgresql://me:hunter2hunter2@db.example/tsx")
    assert "hunter2" not in caught.value.message
    assert caught.value.next_command == "pg_dump"


def test_another_programs_database_is_refused(home, tmp_path):
    home.mkdir()
    connection = sqlite3.connect(home / "registry.db")
    connection.execute("CREATE TABLE other (a)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError):
        back_up(get_default_url(home), tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
