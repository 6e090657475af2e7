"""`tsx data download`: what a person sees, what a script gets, what is left after a break."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tsx.cli.transfer import TransferView
from tsx.config import DataConfig
from tsx.data.corpus import open_corpus
from tsx.data.partitions import PATTERNS, PartitionSet, render_sets
from tsx.data.parts import Progress

DEBUG = ("--partition-set", "debug")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where the reader looks by default."""
    return tmp_path / "tsx-home" / "data" / "time300b"


@pytest.fixture
def start(hub, tmp_path: Path):
    """Return a starter of the command in a process of its own."""

    started: list[subprocess.Popen[str]] = []

    def go(*words: str, **extra: str) -> subprocess.Popen[str]:
        environ = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint}
        process = subprocess.Popen(
            [sys.executable, "-m", "tsx", "data", "download", *words],
            env=environ | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever starts the tests in the background ignores SIGINT, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        with contextlib.suppress(ValueError):  # its output was read to the end
            process.communicate()


def wait_for(found, seconds: float = 30.0) -> None:
    """Wait until something is so; the fixture takes `time.sleep` away."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_the_notes_command_ends_in_a_corpus_that_runs_read(hub, tsx, folder):
    done = tsx("data", "download", *DEBUG)
    assert done.status == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["partition", "files", "size", "on", "disk", "to", "fetch"]
    assert [row[0] for row in rows[1:]] == sorted(PATTERNS[PartitionSet.DEBUG])
    assert "no finance series" in done.err
    assert "9 files" in done.err
    assert f"at {hub.head[:12]} (main)" in done.err
    assert "verified: 3 data sets, 3 series, 1,800 points" in done.err
    assert "next: tsx run sanity" in done.err
    corpus = open_corpus(DataConfig(), home=folder.parents[1])
    assert corpus.source == "time300b"


def test_a_rehearsal_counts_and_writes_nothing(hub, tsx, folder):
    done = tsx("data", "download", *DEBUG, "--dry-run")
    assert done.status == 0
    assert "9 files" in done.err
    assert "free in" in done.err
    assert "dry run: nothing was fetched" in done.err
    assert not folder.exists()
    assert hub.count("/resolve/") == 0


def test_json_names_commit_sizes_and_what_was_opened(hub, tsx, tmp_path):
    target = tmp_path / "elsewhere"
    words = ("data", "download", "--partitions", "energy,web/wiki", "--json")
    rehearsed = json.loads(tsx(*words, "--time300b-dir", str(target), "--dry-run").out)
    assert rehearsed["dry_run"] is True
    assert rehearsed["bytes_to_fetch"] == rehearsed["bytes"] > 0
    done = tsx(*words, "--time300b-dir", str(target))
    document = json.loads(done.out)
    assert (document["commit"], document["files"]) == (hub.head, 6)
    assert document["directory"] == str(target)
    assert [one["name"] for one in document["partitions"]] == ["energy/etth1", "web/wiki"]
    assert document["partitions"][0]["points"] == 600
    assert f"next: tsx run sanity --data {target}" in done.err
    again = json.loads(tsx(*words, "--time300b-dir", str(target)).out)
    assert again["bytes_to_fetch"] == 0


def test_train_leaves_finance_out_and_says_why(hub, tsx):
    done = tsx("data", "download", "--partition-set", "train", "--dry-run")
    names = [line.split()[0] for line in done.out.splitlines()[1:]]
    chosen = ("energy/etth1", "nature/weather", "sales/dominick", "synthetic/waves", "web/wiki")
    assert tuple(names) == chosen
    assert "the very series that they used as OOD" in done.err


def test_several_sets_may_be_given(hub, tsx):
    done = tsx("data", "download", *DEBUG, "--partition-set", "finance", "--dry-run")
    assert "finance/exchange_rate" in done.out
    assert "given 2 times" not in done.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "nothing is asked for"),
        (("--partition-set", "all"), "'all' is none of debug, train, finance"),
        (("--partitions", "energy/etth2"), "nearest: energy/etth1"),
        ((*DEBUG, "--revision", "v9"), "no revision 'v9'"),
        ((*DEBUG, "--repo", "Maple728/Time-400B"), "does not exist"),
        ((*DEBUG, "--repo", "a b"), "--repo 'a b'"),
    ],
)
def test_what_the_user_got_wrong_is_usage(hub, tsx, words, text):
    done = tsx("data", "download", *words)
    assert done.status == 2
    assert text in done.err
    assert "next: " in done.err


def test_the_old_variable_is_named_and_its_value_is_not(hub, tsx, monkeypatch):
    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", "hf_secret_value")
    hub.token = "hf_secret_value"
    done = tsx("data", "download", *DEBUG)
    assert done.status == 1
    assert "warning: HUGGINGFACE_HUB_TOKEN is set, but huggingface_hub does not read it" in done.err
    assert 'next: check --repo, or export HF_TOKEN="$HUGGINGFACE_HUB_TOKEN"' in done.err
    assert "hf_secret" not in done.out + done.err
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    done = tsx("data", "download", *DEBUG)
    assert done.status == 0
    assert "HUGGINGFACE_HUB_TOKEN" not in done.err


def test_offline_says_so_and_what_is_on_disk(hub, tsx, monkeypatch):
    assert tsx("data", "download", *DEBUG).status == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = tsx("data", "download", *DEBUG)
    assert done.status == 0
    assert "cannot reach http://127.0.0.1:9" in done.err
    assert "on disk: other/m4_daily" in done.out
    done = tsx("data", "download", "--partition-set", "train")
    assert done.status == 1
    assert "on disk: other/m4_daily" in done.out
    document = json.loads(tsx("data", "download", "--partitions", "web", "--json").out)
    assert document["complete"] is False
    assert len(document["on_disk"]) == 3


def test_offline_with_nothing_on_disk(hub, tsx, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = tsx("data", "download", *DEBUG)
    assert done.status == 1
    assert "on disk: nothing in" in done.err
    assert "next: the same command when the network is back" in done.err


def test_names_from_the_hub_are_inert(hub, tsx):
    served = hub.commits[hub.head]["web/wiki/meta.json"]
    hub.commits[hub.head]["web/\x1b[31mred/meta.json"] = served
    done = tsx("data", "download", "--partitions", "web")
    assert done.status == 1
    assert "leads elsewhere" in done.err
    assert "\x1b" not in done.out + done.err


def test_a_failure_says_what_is_kept(hub, tsx):
    hub.fail("other/m4_daily/data-1-of-2.bin", status=403, times=9)
    done = tsx("data", "download", "--partitions", "other")
    assert done.status == 1
    assert "kept: " in done.err
    assert "the same command goes on from there" in done.err


def test_lines_tell_speed_and_remaining_time(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress("fetching", bytes_total=40 << 20, bytes_before=10 << 20, files_total=4)
    progress.bytes_done = progress.bytes_before
    with TransferView() as view:
        view.watch(progress)
        assert capsys.readouterr().err == ""
        now[0] += 10
        progress.move(10 << 20)
        view.watch(progress)
        line = capsys.readouterr().err
        assert line == "fetching 50%: 20.0 MiB of 40.0 MiB, 0 of 4 files, 1.0 MiB/s, eta 20s\n"
    assert "fetched 10.0 MiB in 10s, 1.0 MiB/s" in capsys.readouterr().err


def test_a_killed_download_is_refused_by_readers_and_gone_on_with(hub, start, tsx, folder):
    shard = "other/m4_daily/data-1-of-2.bin"
    # Every time: on a busy machine the client may give up waiting and ask again.
    where = f"GET /cdn/{hub.head}/{shard}"
    hub.fail(where, after=500, held=hub_event(), times=100)
    process = start(*DEBUG)
    wait_for(lambda: hub.count(where) > 0 and len(list(folder.glob("[!.]*/*/*"))) == 8)
    process.kill()
    process.communicate()
    refused = tsx("run", "sanity", "--dry-run", "--set", "data.val_split=0")
    assert refused.status == 2
    assert "data-1-of-2.bin is missing" in refused.err
    offered = refused.err.rpartition("next: tsx ")[2].strip()
    assert "--partitions other/m4_daily,healthcare/hospital,sales/dominick" in offered
    hub.seen.clear()
    done = tsx(*shlex.split(offered))
    assert done.status == 0, done.err
    assert (folder / shard).read_bytes() == (hub.repository / shard).read_bytes()
    assert {Path(seen.path).name for seen in hub.seen if "/cdn/" in seen.path} == {
        "data-1-of-2.bin"
    }


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(hub, start, folder):
    shard = "other/m4_daily/data-1-of-2.bin"
    # Every time: on a busy machine the client may give up waiting and ask again.
    where = f"GET /cdn/{hub.head}/{shard}"
    hub.fail(where, after=500, held=hub_event(), times=100)
    process = start(*DEBUG)
    wait_for(lambda: hub.count(where) > 0 and len(list(folder.glob("[!.]*/*/*"))) == 8)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "kept: " in err
    assert "error: interrupted" in err
    assert "Traceback" not in err


def test_offline_mode_is_obeyed(hub, start):
    process = start(*DEBUG, HF_HUB_OFFLINE="1")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "HF_HUB_OFFLINE is set" in err
    assert hub.seen == []


def hub_event():
    """Return an event that holds a connection until the server closes."""
    return threading.Event()


def test_the_page_holds_the_sets_as_they_are():
    page = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()
    assert render_sets() in page


def test_offline_another_revision_is_not_what_is_on_disk(hub, tsx, monkeypatch):
    assert tsx("data", "download", *DEBUG).status == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert tsx("data", "download", *DEBUG).status == 0
    assert tsx("data", "download", *DEBUG, "--revision", "v2").status == 1


def test_a_home_of_nobody_is_a_folder_of_that_name(hub, tsx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = tsx("data", "download", *DEBUG, "--time300b-dir", "~nobody-here/x", "--dry-run")
    assert done.status == 0
    assert str(tmp_path / "~nobody-here" / "x") in done.err
