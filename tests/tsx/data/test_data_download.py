"""Downloads: whole or not at all, gone on with where they broke off, checked against lies."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tsx.data import download as download_module
from tsx.data import parts as parts_module
from tsx.data.catalog import list_entries
from tsx.data.download import download, is_complete, list_on_disk
from tsx.data.download_plan import check_space, make_plan
from tsx.data.hub import DEFAULT_REPO, Hub, Unreachable
from tsx.data.partitions import (
    PATTERNS,
    PartitionSet,
    list_notices,
    list_patterns,
    parse_sets,
    select_partitions,
)
from tsx.data.record import find_record, hold_lock
from tsx.data.series import MapPool, open_dataset
from tsx.errors import ConfigError, DataError, TsxError

DEBUG = PATTERNS[PartitionSet.DEBUG]
SHARD = "other/m4_daily/data-1-of-2.bin"
SIZE = 1200  # bytes of a shard of the fixture

pytestmark = pytest.mark.trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where downloads go."""
    return tmp_path / "time300b"


@pytest.fixture
def fetch(hub, folder):
    """Return a download into `folder`: patterns, repo, revision -> data sets; notes are kept."""
    notes: list[str] = []

    def go(*patterns: str, repo: str = DEFAULT_REPO, revision: str = "main"):
        client = Hub(repo, notes.append)
        with client.session():
            plan = make_plan(folder, client.list_files(revision), patterns or DEBUG)
            return download(plan, client, lambda _: None, notes.append)

    go.notes = notes
    return go


def same(hub, folder: Path, name: str) -> bool:
    return (folder / name).read_bytes() == (hub.repository / name).read_bytes()


def list_files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".download" not in path.parts
    }


# What is asked for


def test_the_notes_sets_are_closed_against_the_leak():
    assert DEBUG == ("other/m4_daily", "healthcare/hospital", "sales/dominick")
    train = PATTERNS[PartitionSet.TRAIN]
    assert train == ("energy*", "nature*", "synthetic*", "web*", "sales*")
    there = ["energy/a", "finance/b", "nature/c", "synthetic/d", "web/e", "sales/f", "other/g"]
    chosen = select_partitions(there, train, "the Hub")
    assert not [name for name in chosen if name.startswith("finance")]
    assert len(chosen) == 5


def test_the_leak_and_the_missing_series_are_named():
    (debug,) = list_notices(parse_sets(["debug"]))
    assert "no finance series" in debug
    assert "--partition-set finance" in debug
    assert "OOD" in list_notices(parse_sets(["train"]))[0]
    assert any("data.exclude" in notice for notice in list_notices(parse_sets(["train,finance"])))
    assert list_notices(parse_sets(["finance"])) == []
    assert list_notices(()) == []


def test_sets_and_names_add_up_each_once():
    sets = parse_sets(["debug,finance", "debug"])
    assert list_patterns(sets, ["energy/, other/m4_daily", "web/*"]) == (
        *DEBUG,
        "finance*",
        "energy",
        "web/*",
    )


@pytest.mark.parametrize(("sets", "names"), [([], []), ([], [" , "])])
def test_nothing_asked_for_is_an_error(sets, names):
    with pytest.raises(ConfigError, match="debug\\|train\\|finance"):
        list_patterns(parse_sets(sets), names)


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(ConfigError, match="'all' is none of debug, train, finance"):
        parse_sets(["all"])


def test_a_pattern_without_partition_names_the_nearest(fetch):
    with pytest.raises(ConfigError, match="'other/m4_dayly'; nearest: other/m4_daily"):
        fetch("other/m4_dayly")
    with pytest.raises(ConfigError, match="domains: energy, finance"):
        fetch("zzz")


def test_a_repository_without_partitions_says_so(hub, fetch):
    for meta in hub.repository.rglob("meta.json"):
        meta.unlink()
    hub.publish(hub.repository)
    with pytest.raises(TsxError, match="holds no partition"):
        fetch()


# A download


def test_what_is_asked_for_comes_and_nothing_else(hub, folder, fetch):
    names = [dataset.name for dataset in fetch()]
    assert names == sorted(DEBUG)
    wanted = {name for name in list_files(hub.repository) if name.startswith(DEBUG)}
    assert list_files(folder) == wanted
    assert all(same(hub, folder, name) for name in wanted)
    assert [entry.name for entry in list_entries(folder)] == sorted(DEBUG)
    assert not list((folder / ".download").rglob("*.bin.*"))


def test_the_resolved_revision_is_recorded(hub, folder, fetch):
    fetch("energy")
    record = find_record(folder)
    assert (record.repo, record.revision, record.commit) == (DEFAULT_REPO, "main", hub.head)
    assert record.partitions["energy/etth1"].commit == hub.head
    assert record.partitions["energy/etth1"].files == 3
    assert record.completed == {"energy": hub.head}


def test_a_plan_counts_before_anything_is_written(hub, folder):
    client = Hub(DEFAULT_REPO, print)
    plan = make_plan(folder, client.list_files("main"), DEBUG)
    assert len(plan.files) == len(plan.missing) == 9
    assert plan.count_missing(plan.missing) == plan.bytes > 6 * SIZE
    assert not folder.exists()


def test_the_second_time_nothing_is_fetched_or_read(hub, fetch, monkeypatch):
    fetch()
    before = hub.count("/resolve/")
    monkeypatch.setattr(download_module, "holds", lambda *_: pytest.fail("hashed again"))
    assert len(fetch()) == 3
    assert hub.count("/resolve/") == before


def test_files_that_came_by_other_means_are_hashed_and_kept(hub, folder, fetch):
    shutil.copytree(hub.repository / "other", folder / "other")
    content = bytearray((folder / SHARD).read_bytes())
    content[7] ^= 1
    (folder / SHARD).write_bytes(content)
    fetch("other")
    assert same(hub, folder, SHARD)
    assert hub.count(f"/cdn/{hub.head}/other") == 1
    assert any("checking 3 files" in note for note in fetch.notes)


def test_a_touched_file_is_hashed_again(hub, folder, fetch):
    fetch("other")
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-1] + b"\xff")
    fetch("other")
    assert same(hub, folder, SHARD)


def test_a_new_commit_replaces_what_changed(hub, folder, fetch, put_partition):
    fetch()
    put_partition(hub.repository / "other" / "m4_daily", seed=50)
    newer = hub.publish(hub.repository)
    fetch("other")
    assert same(hub, folder, SHARD)
    record = find_record(folder)
    assert record.partitions["other/m4_daily"].commit == newer
    assert record.partitions["sales/dominick"].commit != newer


def test_an_older_commit_can_be_asked_for(hub, folder, fetch, put_partition):
    older = hub.head
    kept = (hub.repository / SHARD).read_bytes()
    repository = hub.repository.parent / "newer"
    shutil.copytree(hub.repository, repository)
    put_partition(repository / "other" / "m4_daily", seed=50)
    hub.publish(repository)
    fetch("other", revision=older)
    assert (folder / SHARD).read_bytes() == kept
    assert find_record(folder).commit == older


def test_a_broken_update_leaves_no_mixture(hub, folder, fetch, put_partition):
    fetch("other")
    put_partition(hub.repository / "other" / "m4_daily", seed=50)
    hub.publish(hub.repository)
    hub.fail("/cdn/", status=403, times=9)
    with pytest.raises(TsxError):
        fetch("other")
    assert list_files(folder) == {"other/m4_daily/meta.json"}
    with pytest.raises(DataError, match="missing"):
        open_dataset("other/m4_daily", folder / "other" / "m4_daily", MapPool())


# Breaks


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_goes_on_at_its_byte(hub, folder, fetch, reset):
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", after=500, reset=reset)
    fetch()
    ranges = [seen.range for seen in hub.seen if seen.path.endswith(SHARD)]
    assert same(hub, folder, SHARD)
    if not reset:  # a reset may take the bytes along that were under way
        assert "bytes=500-" in ranges


def test_a_break_keeps_the_part_for_the_next_command(hub, folder, fetch):
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", after=500)
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", status=403)
    with pytest.raises(TsxError, match="403"):
        fetch()
    assert not (folder / SHARD).exists()
    hub.seen.clear()
    fetch()
    assert same(hub, folder, SHARD)
    assert {seen.range for seen in hub.seen if seen.path.endswith(SHARD)} == {"bytes=500-"}


def test_readers_refuse_what_a_break_left(hub, folder, fetch):
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", status=403)
    with pytest.raises(TsxError):
        fetch()
    assert "other/m4_daily" in [entry.name for entry in list_entries(folder)]
    with pytest.raises(DataError, match=r"data-1-of-2\.bin is missing"):
        open_dataset("other/m4_daily", folder / "other" / "m4_daily", MapPool())
    faults = dict(list_on_disk(folder))
    assert "missing" in faults["other/m4_daily"]
    assert not is_complete(folder, DEFAULT_REPO, DEBUG, "main")


def test_a_part_of_another_commit_is_not_gone_on_with(hub, folder, fetch, put_partition):
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", after=500)
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", status=403)
    with pytest.raises(TsxError):
        fetch("other")
    put_partition(hub.repository / "other" / "m4_daily", seed=50)
    hub.publish(hub.repository)
    fetch("other")
    assert same(hub, folder, SHARD)
    assert not [path for path in (folder / ".download" / "parts").rglob("*") if path.is_file()]


def test_a_part_with_a_wrong_byte_is_fetched_anew(hub, folder, fetch):
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", after=500)
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", status=403)
    with pytest.raises(TsxError):
        fetch("other")
    (part,) = (folder / ".download" / "parts").rglob("data-1-of-2.bin.*")
    part.write_bytes(b"\xff" * 500)
    fetch("other")
    assert same(hub, folder, SHARD)


def test_a_server_without_ranges_starts_the_file_again(hub, folder, fetch, monkeypatch):
    import huggingface_hub.file_download as client

    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", after=500)
    monkeypatch.setattr(client, "_adjust_range_header", lambda *_: "none")
    fetch("other")
    assert same(hub, folder, SHARD)


# Lies


def test_a_flipped_byte_is_fetched_once_more_and_then_refused(hub, folder, fetch):
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", flip=True)
    fetch("other")
    assert same(hub, folder, SHARD)
    hub.fail(f"GET /cdn/{hub.head}/web/wiki/data-2-of-2.bin", flip=True, times=2)
    with pytest.raises(TsxError, match="came twice with another content"):
        fetch("web")
    assert "web/wiki/data-2-of-2.bin" not in list_files(folder)


def test_a_flipped_byte_of_a_small_file_is_found_by_its_git_hash(hub, fetch):
    hub.fail("GET /datasets/Maple728/Time-300B/resolve", flip=True, times=2)
    with pytest.raises(TsxError, match=r"meta.json came twice .*git:"):
        fetch("web")


def test_a_body_longer_than_listed_is_cut_off(hub, fetch):
    import dataclasses

    files = hub.commits[hub.head]
    longer = hub.repository / "longer.bin"
    longer.write_bytes(bytes(5000))
    files[SHARD] = dataclasses.replace(files[SHARD], path=longer)
    sizes = files[SHARD].size
    assert sizes == SIZE
    with pytest.raises(TsxError):
        fetch("other")


def test_a_meta_that_does_not_fit_the_listing_stops_before_the_shards(hub, folder, fetch):
    meta = hub.repository / "other" / "m4_daily" / "meta.json"
    said = json.loads(meta.read_text())
    said["files"]["data-2-of-2.bin"] = 299
    said["scales"][0]["length"] = 599
    meta.write_text(json.dumps(said))
    hub.publish(hub.repository)
    with pytest.raises(DataError, match=r"1,196 bytes for data-2-of-2.bin, the Hub lists 1200"):
        fetch("other")
    assert hub.count("/cdn/") == 0
    assert list_files(folder) == set()


@pytest.mark.parametrize("name", ["other/m4_daily/../../../x", "other/m4_daily//x"])
def test_a_name_that_leads_elsewhere_is_refused(hub, folder, fetch, name):
    hub.commits[hub.head][name] = hub.commits[hub.head][SHARD]
    with pytest.raises(TsxError, match="leads elsewhere"):
        fetch("other")
    assert not folder.exists()


def test_hidden_files_are_left_there(hub, folder, fetch):
    hub.commits[hub.head]["other/m4_daily/.hidden"] = hub.commits[hub.head][SHARD]
    fetch("other")
    assert "other/m4_daily/.hidden" not in list_files(folder)


def test_a_file_beyond_the_hubs_limit_is_refused(hub, fetch, monkeypatch):
    monkeypatch.setattr("tsx.data.download_plan.MAX_FILE_BYTES", SIZE - 1)
    with pytest.raises(TsxError, match="xet"):
        fetch("other")


# The Hub refuses


def test_a_server_error_is_asked_again_and_then_explained(hub, folder, fetch):
    hub.fail(f"GET /cdn/{hub.head}/{SHARD}", status=503, times=3)
    fetch("other")
    assert same(hub, folder, SHARD)
    assert any("answers 503; again in" in note for note in fetch.notes)
    hub.fail("/cdn/", status=503, times=99)
    with pytest.raises(TsxError, match="answers 503 for web/wiki") as raised:
        fetch("web")
    assert "goes on where it broke off" in raised.value.next_command


@pytest.mark.parametrize("where", ["/api/datasets", "/cdn/"])
def test_too_many_requests_wait_as_long_as_they_are_told(hub, fetch, where):
    hub.fail(where, status=429, headers={"Retry-After": "7"})
    fetch("other")
    assert any(7 <= wait <= 8 for wait in hub.waits)


def test_a_limit_that_lasts_is_named_with_its_time(hub, fetch):
    hub.fail("/api/datasets", status=429, headers={"Retry-After": "1800"}, times=99)
    with pytest.raises(TsxError, match="try again in 1800 s"):
        fetch("other")
    assert hub.waits == []


@pytest.mark.parametrize(
    ("status", "code", "error", "text"),
    [
        (401, {}, TsxError, "no token was sent"),
        (403, {}, TsxError, "lacks the right"),
        (403, {"X-Error-Code": "GatedRepo"}, TsxError, "gated"),
        (401, {"X-Error-Code": "GatedRepo"}, TsxError, "gated"),
        (404, {}, ConfigError, "not found"),
        (418, {}, TsxError, "answers 418"),
    ],
)
def test_refusals_are_explained(hub, fetch, status, code, error, text):
    hub.fail("/api/datasets", status=status, headers=code, times=99)
    with pytest.raises(error, match=text) as raised:
        fetch("other")
    assert raised.value.next_command


def test_a_repository_or_revision_that_is_not_there(fetch):
    with pytest.raises(ConfigError, match=r"Maple728/Time-400B on .* does not exist"):
        fetch("other", repo="Maple728/Time-400B")
    with pytest.raises(ConfigError, match="no revision 'v9'"):
        fetch("other", revision="v9")
    with pytest.raises(ConfigError, match="--repo 'a/b/c'"):
        fetch("other", repo="a/b/c")


def test_an_answer_that_is_no_hubs(hub, fetch):
    hub._server.RequestHandlerClass._route = lambda self, *_: self._send_json([1])
    with pytest.raises(TsxError, match="does not answer as a Hub does"):
        fetch("other")


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.token = "hf_right"
    fetch("other")
    assert {seen.token for seen in hub.seen if not seen.path.startswith("/cdn/")} == {"hf_right"}
    assert {(seen.host, seen.token) for seen in hub.seen if seen.path.startswith("/cdn/")} == {
        ("localhost", "")
    }


def test_a_wrong_token_is_never_shown(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    hub.token = "hf_right"
    with pytest.raises(TsxError, match="does not suffice") as raised:
        fetch("other")
    assert "hf_wrong" not in raised.value.message + "".join(fetch.notes)


def test_no_way_to_the_hub_is_said_at_once(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"cannot reach http://127\.0\.0\.1:9"):
        fetch("other")
    assert hub.waits == []


def test_offline_asks_nobody(hub, fetch, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE is set"):
        fetch("other")
    assert hub.seen == []


def test_a_finished_request_is_known_without_the_hub(hub, folder, fetch):
    assert not is_complete(folder, DEFAULT_REPO, DEBUG, "main")
    fetch()
    assert is_complete(folder, DEFAULT_REPO, DEBUG, "main")
    assert not is_complete(folder, DEFAULT_REPO, [*DEBUG, "web*"], "main")
    assert not is_complete(folder, "other/repo", DEBUG, "main")
    (folder / SHARD).unlink()
    assert not is_complete(folder, DEFAULT_REPO, DEBUG, "main")


# The disk


def test_too_little_room_is_known_before(hub, folder, monkeypatch):
    plan = make_plan(folder, Hub(DEFAULT_REPO, print).list_files("main"), DEBUG)
    usage = shutil.disk_usage(folder.parent)._replace(free=plan.bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TsxError, match="1 missing"):
        check_space(plan)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=plan.bytes))
    assert check_space(plan) == plan.bytes


def test_a_disk_that_fills_up_keeps_what_came(hub, folder, fetch, monkeypatch):
    right = parts_module.Part.write

    def full(part, chunk: bytes) -> int:
        if part._remote.path == SHARD and part.size + len(chunk) > 700:
            right(part, chunk[: 700 - part.size])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return right(part, chunk)

    monkeypatch.setattr(parts_module.Part, "write", full)
    with pytest.raises(TsxError, match="the disk is full"):
        fetch()
    assert SHARD not in list_files(folder)
    monkeypatch.setattr(parts_module.Part, "write", right)
    hub.seen.clear()
    fetch()
    assert same(hub, folder, SHARD)
    assert {seen.range for seen in hub.seen if seen.path.endswith(SHARD)} == {"bytes=700-"}


def test_a_folder_that_cannot_be_written_is_named(folder, fetch):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file")
    with pytest.raises(TsxError, match=r"cannot write .*time300b"):
        fetch()


def test_two_downloads_do_not_share_a_folder(folder, fetch):
    with hold_lock(folder), pytest.raises(TsxError, match="another tsx data download"):
        fetch()


def test_another_repository_is_not_mixed_in(hub, hub_server, folder, fetch, monkeypatch):
    fetch("other")
    with hub_server.Hub(repo="a/b") as second:
        second.publish(hub.repository)
        monkeypatch.setenv("HF_ENDPOINT", second.endpoint)
        with pytest.raises(ConfigError, match="holds Maple728/Time-300B; a/b would be mixed"):
            fetch("other", repo="a/b")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"repo": 1}', "\x00\xff"])
def test_a_record_that_cannot_be_read_is_none(hub, folder, fetch, text):
    fetch("other")
    (folder / ".download" / "record.json").write_text(text)
    assert find_record(folder) is None
    before = hub.count("/cdn/")
    fetch("other")
    assert hub.count("/cdn/") == before
    assert find_record(folder).partitions["other/m4_daily"].commit == hub.head
