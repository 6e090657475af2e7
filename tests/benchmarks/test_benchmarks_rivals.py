"""The benchmark of the registry and its rivals: what it measures with, not what it finds."""

from __future__ import annotations

import json
import math
import socket
import struct
import sys

import pytest

from benchmarks import rivals, rivals_measures, rivals_processes, rivals_table, rivals_wandb
from benchmarks.rivals_adapters import RIVALS, Tsx, get_rival
from benchmarks.rivals_contract import KEYS, Curve, Rival, make_values
from benchmarks.rivals_plan import QUICK, Task, iter_tasks


class Absent(Rival):
    """A rival that nobody has."""

    name = "absent"
    modules = ("no_such_module_at_all",)


class Kept(Rival):
    """A rival that is there and gives back what its table is made of."""

    name = "kept"
    promises = True

    @classmethod
    def list_versions(cls):
        return "kept 1"


class Forgetful(Rival):
    """Gives back every step but these, and one wrong value."""

    name = "forgetful"
    wrong = 5
    missing = (2, 9)

    def load_reader(self):
        pass

    def read_series(self, run, key):
        if run == "torn":
            raise ValueError("no such run")
        steps = [step for step in range(1, 11) if step not in self.missing]
        values = [make_values(step)[key] + (step == self.wrong) for step in steps]
        return Curve(steps, values)


@pytest.fixture
def tsx_rival(tmp_path, monkeypatch):
    for name, value in Tsx.list_settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TSX_REGISTRY", raising=False)
    found = Tsx(tmp_path)
    found.load()
    found.load_reader()
    return found


def carry_out(tmp_path, what, options, **limits):
    """Return the answer of a task of tsx, from a process of its own."""
    (tmp_path / "logs").mkdir(exist_ok=True)
    return rivals._carry_out(Task(Tsx, what, what, "here", options, **limits), tmp_path)


def test_the_adapter_reads_back_what_it_has_logged(tsx_rival):
    tsx_rival.fill("first", (make_values(step) for step in range(1, 51)))
    curve = tsx_rival.read_series("first", KEYS[3])
    assert list(curve.steps) == list(range(1, 51))
    assert list(curve.values) == [make_values(step)[KEYS[3]] for step in range(1, 51)]
    assert list(tsx_rival.read_outline("first", KEYS[3], 1000).values) == list(curve.values)
    assert tsx_rival.list_runs(10) == {"first": make_values(50)}
    assert min(tsx_rival.count_bytes().values()) > 1000


def test_kills_of_tsx_are_made_and_checked_in_processes(tmp_path):
    order = {"run": "kill", "kills": 2, "pace_ms": 1.0, "between_s": [0.01, 0.05]}
    made = carry_out(tmp_path, "kills", order | {"seed": 1, "settle_s": 0.0})
    assert made["kills"] == 2
    found = carry_out(tmp_path, "check_kills", {})
    assert found["acknowledged"] >= 2
    assert (found["lost"], found["unreadable_runs"]) == (0, 0)


def test_points_that_are_missing_or_wrong_are_lost(tmp_path):
    told = {"whole": 10, "short": 1, "torn": 7}
    (tmp_path / "acknowledged.json").write_text(json.dumps(told))
    found = rivals_processes.check_kills(Forgetful(tmp_path), {})
    assert found["acknowledged"] == 18
    assert found["lost"] == 3 + 0 + 7
    assert (found["unreadable_runs"], found["most_lost"]) == (1, 7)


def test_a_crowd_loses_nothing_of_tsx(tmp_path):
    order = {"writers": 2, "readers": 1, "pace_ms": 5.0, "seconds": 0.2, "start_s": 0.2}
    found = carry_out(tmp_path, "crowd", order)
    assert found["expected"] >= 2 * len(KEYS)
    assert (found["found"], found["errors"], found["died"]) == (found["expected"], 0, 0)


def test_a_rival_that_breaks_is_told_in_a_line(tmp_path):
    assert "KeyError" in carry_out(tmp_path, "juggle", {})


def test_a_rival_that_hangs_is_stopped(tmp_path):
    order = {"run": "slow", "paces": [[60_000.0, 5]]}
    assert carry_out(tmp_path, "pace", order, limit_s=0.5) == "stopped after 0.5 s"


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", socket.socket.connect)  # both are put back
    monkeypatch.setattr(socket, "getaddrinfo", socket.getaddrinfo)
    return rivals_measures.refuse_connections()


def test_nobody_leaves_the_machine(guarded):
    with pytest.raises(ConnectionRefusedError, match="offline"), socket.socket() as outside:
        outside.connect(("192.0.2.1", 443))
    with pytest.raises(socket.gaierror, match="offline"):
        socket.getaddrinfo("api.wandb.ai", 443)
    assert guarded == ["('192.0.2.1', 443)", "api.wandb.ai"]


def test_this_machine_may_be_reached(guarded):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert guarded == []


def test_settings_of_the_user_do_not_reach_a_rival(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("TSX_REGISTRY", "sqlite:////elsewhere.db")
    for rival in RIVALS:
        found = rivals._make_environment(rival, tmp_path / "here")
        assert "WANDB_API_KEY" not in found
        assert "TSX_REGISTRY" not in found
        assert found["HOME"] == str(tmp_path)
        assert found["https_proxy"] == found["HTTPS_PROXY"] == "http://127.0.0.1:9"


def test_a_rival_that_is_not_installed_is_said_to_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rivals, "RIVALS", (Absent,))
    monkeypatch.setattr(sys, "argv", ["rivals", "--quick", "--folder", str(tmp_path)])
    assert rivals.main() == 1
    assert "not measured: absent" in capsys.readouterr().out


def test_an_unknown_rival_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rivals", "--only", "neptune"])
    with pytest.raises(SystemExit, match="2"):
        rivals.main()
    assert "neptune" in capsys.readouterr().err


FOUND = {
    "start": {"kept": [{"import_ms": i, "init_ms": 10 * i, "finish_ms": 1} for i in (9, 1, 3)]},
    "pace": {"kept": [{"times_us": {"1 ms sleep": [4.0, 5.0, 600.0]}}]},
    "kills": {"kept": [{"kills": 5, "acknowledged": 1234, "lost": 1, "unreadable_runs": 0}]},
    "series": {"kept": [{"ms": [50.0, 20.0, 20.0], "of": 100_000, "points": 9, "missing": 3}]},
    "long outline": {
        "kept": [{"ms": [10.0, 9.0], "of": 1_000_000, "points": 3128, "spike": False}]
    },
    "size": {"kept": [{"bytes_per_point": {"store": 31.96, "journal": 40.0}, "points": 800_000}]},
}


def test_the_table_tells_figures_and_missed_targets():
    text, missed = rivals_table.render([Kept], FOUND, {}, "here, today.")
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if " | " in line)
    assert rows["what"] == "kept | limit for tsx"
    assert rows["import, ms"].split()[0] == "2"
    assert rows["start of a run, ms (the first of all)"].startswith("20 (90)")
    case = "log call of 8 values, 1 ms sleep between: median (99th percentile), us"
    assert rows[case] == "5.0 (600) | 10 us"
    assert rows["lost at SIGKILL, a call every 2 ms"].endswith("in 5 kills | 0: **missed**")
    missed_120 = "120 ms: **missed**"  # in time, but not whole
    assert rows["a curve of 100,000 points, ms"] == f"20.0 (50), 3 points missing | {missed_120}"
    outline = rows["1,000,000 points for a chart of 1,000 columns, ms"]
    assert outline == "9.0 (10), the spike **lost**; 3,128 points | 10 ms: **missed**"
    assert rows["bytes a point"] == "32.0, journal 40.0 (800,000 points) | 40 bytes"
    assert missed == 3


def test_the_table_tells_who_broke_and_who_wanted_out():
    found = {
        "kills": {"kept": [FOUND["kills"]["kept"][0] | {"connections": ["telemetry.example"]}]}
    }
    failed = {("kills", "forgetful"): "failed (1): ValueError"}
    text, _ = rivals_table.render([Kept, Forgetful], found, failed, "here, today.")
    assert "1 of 1,234 in 5 kills | broke |" in text
    assert "Broke: forgetful, kills: failed (1): ValueError." in text
    assert "kept (telemetry.example)" in text


def test_every_task_can_be_carried_out():
    tasks = list(iter_tasks(RIVALS, QUICK))
    assert {task.what for task in tasks} == set(rivals_measures.MEASURES)
    assert all(json.loads(json.dumps(task.options)) for task in tasks if task.options)
    shown = {row.part for row in rivals_table._list_rows({})}
    measured = {task.part for task in tasks if not task.part.endswith(" made")} - {"pace"}
    assert measured == shown


def test_values_are_exact_in_single_precision():
    values = [*make_values(100_000).values(), rivals_measures.SPIKE]
    assert [struct.unpack("f", struct.pack("f", value))[0] for value in values] == values
    assert len(set(values)) == len(values)
    assert all(map(math.isfinite, values))


def frame(kind, body):
    return struct.pack("<IHB", 0, len(body), kind) + body


def test_messages_of_wandb_cross_blocks_and_may_be_torn():
    head = b":W&B\xe1\xbe\x00"
    first = b"a" * (32768 - len(head) - 7 - 7 - 3)
    data = head + frame(1, first) + frame(2, b"bcd") + frame(3, b"ef") + frame(4, b"g")
    data += frame(1, b"h") + frame(1, b"torn")[:-1]
    assert list(rivals_wandb.iter_messages(data)) == [first, b"bcdefg", b"h"]


def test_a_name_finds_its_adapter():
    assert get_rival("tsx") is Tsx
    assert Absent.is_installed() is False
    assert Tsx.is_installed() is True
