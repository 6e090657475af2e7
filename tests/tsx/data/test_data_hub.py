"""A Hub that lies, an address or token that is none, and what is said of them without secrets."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tsx.data.download import download, is_complete
from tsx.data.download_plan import make_plan
from tsx.data.hub import DEFAULT_REPO, Hub
from tsx.data.partitions import find_partitions
from tsx.errors import ConfigError, TsxError

SHARD = "web/wiki/data-1-of-2.bin"

pytestmark = pytest.mark.trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where downloads go."""
    return tmp_path / "time300b"


@pytest.fixture
def fetch(hub, folder):
    """Return a download into `folder`: patterns, revision -> data sets."""

    def go(*patterns: str, revision: str = "main"):
        client = Hub(DEFAULT_REPO, lambda _: None)
        with client.session():
            plan = make_plan(folder, client.list_files(revision), patterns)
            return download(plan, client, lambda _: None, lambda _: None)

    return go


@pytest.fixture
def forge(hub, monkeypatch):
    """Return a way to change what the server answers in JSON."""
    handler = hub._server.RequestHandlerClass
    right = handler._send_json

    def go(change) -> None:
        monkeypatch.setattr(
            handler,
            "_send_json",
            lambda self, document, headers=None: right(self, change(document), headers),
        )

    return go


def change_shard(document, **values):
    """Change a shard's entry of the listing."""
    for entry in document if isinstance(document, list) else []:
        if entry["path"] == SHARD:
            entry["lfs"].update(values)
    return document


@pytest.mark.parametrize(
    "values",
    [
        {"oid": "/../../../../ab" + "0" * 49},
        {"oid": "\x1b[31mred"},
        {"oid": None},
        {"oid": "A" * 64},
        {"size": -5},
        {"size": "1200"},
        {"size": None},
        {"size": 1200.5},
        {"size": True},
    ],
)
def test_a_digest_or_size_that_is_none_is_refused_before_anything_is_written(
    folder, fetch, forge, values
):
    forge(lambda document: change_shard(document, **values))
    with pytest.raises(TsxError, match=f"does not answer as a Hub does .*{SHARD}"):
        fetch("web")
    assert not folder.exists()


def test_a_file_that_is_listed_twice_is_refused(folder, fetch, forge):
    forge(lambda found: found + found[:1] if isinstance(found, list) else found)
    with pytest.raises(TsxError, match="listed twice"):
        fetch("web")
    assert not folder.exists()


@pytest.mark.parametrize("commit", ["\x1b[31m", "../../x", "", None, "main"])
def test_a_commit_that_is_none_is_refused(fetch, forge, commit):
    forge(lambda found: found | {"sha": commit} if isinstance(found, dict) else found)
    with pytest.raises(TsxError, match=r"does not answer as a Hub does .*a commit"):
        fetch("web")


def test_a_file_below_another_file_is_refused(hub, folder, fetch):
    hub.commits[hub.head][f"{SHARD}/x"] = hub.commits[hub.head][SHARD]
    with pytest.raises(TsxError, match="both as a file and as the folder"):
        fetch("web")
    assert not folder.exists()


def test_hidden_partitions_are_none():
    files = [".git/meta.json", "web/.old/meta.json", "web/wiki/meta.json", "../x/meta.json"]
    assert find_partitions(files) == ("../x", "web/wiki")


def test_a_refused_request_is_not_taken_for_no_hub(hub, fetch):
    hub.fail("/api/datasets", status=400, times=9)
    with pytest.raises(TsxError, match="answers 400 for revision 'main'"):
        fetch("web")


@pytest.mark.parametrize(
    "address", ["nonsense", "ftp://host", "http://", "http://[::1", "http://h:x"]
)
def test_an_address_that_is_none_is_named(monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(ConfigError, match=r"HF_ENDPOINT=.* is no address"):
        Hub(DEFAULT_REPO, print)


def test_a_password_in_the_address_is_never_shown(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://user:pass-of-mine@127.0.0.1:9")
    with pytest.raises(TsxError, match="cannot reach http://user:") as raised:
        fetch("web")
    assert "pass-of-mine" not in raised.value.message + raised.value.next_command


def test_a_token_that_no_header_carries_is_named_and_not_shown(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_gehe\u00efm")
    with pytest.raises(TsxError, match="the token is none") as raised:
        fetch("web")
    assert "gehe" not in raised.value.message


def test_another_revision_is_not_complete(hub, folder, fetch):
    fetch("web")
    ask = ("web",)
    assert is_complete(folder, DEFAULT_REPO, ask, "main")
    assert is_complete(folder, DEFAULT_REPO, ask, hub.head)
    assert not is_complete(folder, DEFAULT_REPO, ask, "v2")


def test_partitions_of_a_later_commit_leave_an_earlier_request_incomplete(
    hub, folder, fetch, put_partition
):
    older = hub.head
    fetch("*")
    put_partition(hub.repository / "web" / "wiki", seed=50)
    newer = hub.publish(hub.repository)
    fetch("web")
    assert is_complete(folder, DEFAULT_REPO, ("web",), "main")
    assert is_complete(folder, DEFAULT_REPO, ("web",), newer)
    assert not is_complete(folder, DEFAULT_REPO, ("*",), older)
    assert not is_complete(folder, DEFAULT_REPO, ("*",), "main")


def test_a_domain_may_be_a_link_to_another_disk(hub, folder, fetch, monkeypatch, tmp_path):
    (tmp_path / "disk").mkdir()
    folder.mkdir()
    (folder / "web").symlink_to(tmp_path / "disk")
    right = Path.replace

    def replace(self, target):
        if ".download" in self.parts and ".download" not in Path(target).parts:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return right(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    fetch("web")
    there = sorted(path.name for path in (tmp_path / "disk" / "wiki").iterdir())
    assert there == ["data-1-of-2.bin", "data-2-of-2.bin", "meta.json"]
    assert (folder / SHARD).read_bytes() == (hub.repository / SHARD).read_bytes()
    assert not [path for path in (folder / ".download" / "parts").rglob("*") if path.is_file()]
