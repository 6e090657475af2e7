"""Real programs through `tsx exec`: what passes through, what is kept, and who survives whom."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry.events import Event, Finding, Metrics, Output, RunEnded, RunStarted, Status
from registry.journal import iter_events
from registry.liveness import RunLock, is_locked
from tests.tsx.launch.open_files import list_holders

pytestmark = pytest.mark.slow

WAIT_S = 120.0
LOOP = """
for i in $(seq 1 30); do
  echo "{\\"step\\": $i, \\"loss\\": 0.$i}" >> "$TSX_EVENTS"
  echo "said $i"
  %s
done
"""


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    out: bytes
    err: bytes
    events: list[Event]
    folder: Path

    def list_points(self) -> list[tuple[int, dict[str, float]]]:
        return [(event.step, event.values) for event in self.events if isinstance(event, Metrics)]

    def get_end(self) -> RunEnded:
        (ended,) = [event for event in self.events if isinstance(event, RunEnded)]
        return ended


def restore_signals() -> None:
    """Undo what a starter of the tests may ignore: children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Home:
    """A TSX_HOME and the commands given in it."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        root = str(Path(__file__).resolve().parents[3])
        self.env = {**os.environ, "TSX_HOME": str(path), "NO_COLOR": "1", "PYTHONPATH": root}
        self.env.pop("PYTHONUNBUFFERED", None)

    def start(self, *words: str, **given: Any) -> subprocess.Popen[bytes]:
        fixed = {"env": self.env, "cwd": self.path, "preexec_fn": restore_signals}
        streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tsx", *words],
            **({"stdin": subprocess.DEVNULL} | streams | fixed | given),
        )

    def exec(self, *words: str, **given: Any) -> Done:
        said = given.pop("input", None)
        if said is not None:
            given["stdin"] = subprocess.PIPE
        process = self.start("exec", *words, **given)
        out, err = process.communicate(said, timeout=WAIT_S)
        folder = self.get_folder()
        return Done(process.returncode, out, err, self.read(), folder)

    def get_folder(self) -> Path:
        (folder,) = (self.path / "runs").iterdir()
        return folder

    def read(self) -> list[Event]:
        return [event for event, _ in iter_events(self.get_folder() / "events.jsonl")]

    def count_points(self) -> int:
        runs = self.path / "runs"
        if not runs.is_dir() or not any(runs.glob("*/events.jsonl")):
            return 0
        return sum(isinstance(event, Metrics) for event in self.read())

    def get_run(self) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tsx", "runs", "--json"],
            env=self.env,
            cwd=self.path,
            capture_output=True,
            timeout=WAIT_S,
            check=True,
        )
        (run,) = json.loads(done.stdout)["runs"]
        found: dict[str, Any] = run
        return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("what was waited for did not happen")


class TestPassingThrough:
    def test_output_comes_byte_for_byte_and_is_kept(self, home: Home) -> None:
        code = (
            "import os,sys\n"
            "os.write(1, b'\\xff\\x00 a\\r b\\x1b[31m\\n no newline')\n"
            "os.write(2, b'to stderr')"
        )
        done = home.exec("--name", "bytes", "--", sys.executable, "-c", code)
        assert done.out == b"\xff\x00 a\r b\x1b[31m\n no newline"
        first, middle, *_ = done.err.split(b"\n")
        assert first.startswith(f"run {done.folder.name} 'bytes': ".encode())
        assert middle.startswith(f"to stderrrun {done.folder.name} completed in".encode())
        assert done.err.count(b"\n") == 2
        kept = {event.stream: event.text for event in done.events if isinstance(event, Output)}
        assert kept["stdout"] == "\ufffd\x00 a\r b\x1b[31m\n no newline"
        assert kept["stderr"] == "to stderr"
        assert done.status == 0

    def test_it_has_the_users_folder_stdin_and_environment(self, home: Home) -> None:
        code = (
            "import os,sys,json;"
            "names = ('TSX_EVENTS', 'TSX_RUN', 'PYTHONUNBUFFERED', 'MINE');"
            "print(json.dumps([os.getcwd(), sys.stdin.read(), *map(os.environ.get, names)]))"
        )
        home.env["MINE"] = "x"
        done = home.exec("--", sys.executable, "-c", code, input=b"typed")
        assert json.loads(done.out) == [
            *(str(home.path), "typed", str(done.folder / "inbox.jsonl"), done.folder.name, "1", "x")
        ]

    def test_what_was_asked_for_is_recorded(self, home: Home) -> None:
        (home.path / "c.toml").write_text('[optim]\nlr = 0.5\nname = "sgd"\n')
        flags = ("--project", "p", "--tag", "a", "--tag", "b", "--note", "n", "--steps", "9")
        done = home.exec(*flags, "--config", "c.toml", "--", "true", "--name", "x")
        started = done.events[0]
        assert isinstance(started, RunStarted)
        assert (started.name, started.project, started.tags) == ("true", "p", ("a", "b"))
        assert (started.note, started.steps) == ("n", 9)
        assert started.config == {"optim": {"lr": 0.5, "name": "sgd"}}
        assert started.command[-4:] == ("--", "true", "--name", "x")
        assert started.cwd == str(home.path)

    def test_a_slow_reader_misses_nothing(self, home: Home) -> None:
        code = "import sys; sys.stdout.buffer.write(b'0123456789' * 30_000)"
        process = home.start("exec", "--", sys.executable, "-c", code)
        wait_for(lambda: home.path.joinpath("runs").is_dir())
        time.sleep(2.5)  # the program is gone by now, and the grace for others is over
        out, _ = process.communicate(timeout=WAIT_S)
        assert out == b"0123456789" * 30_000

    def test_nobody_reads_and_the_program_goes_on(self, home: Home) -> None:
        code = "import time\nfor i in range(20): print('step', i, 'loss', 1.0)\ntime.sleep(.2)"
        read, write = os.pipe()
        os.close(read)
        done = home.exec("--", sys.executable, "-c", code, stdout=write)
        os.close(write)
        assert done.status == 0
        assert len(done.list_points()) == 20

    def test_logs_are_capped_and_lose_their_secrets(self, home: Home) -> None:
        home.env["MY_API_KEY"] = "verysecret123"
        code = (
            "import os\nprint(os.environ['MY_API_KEY'])\nfor _ in range(120_000): print('x' * 49)"
        )
        done = home.exec("--", sys.executable, "-c", code)
        assert len(done.out) == 14 + 120_000 * 50
        assert done.out.startswith(b"verysecret123\n")
        kept = (done.folder / "stdout.log").read_bytes()
        assert kept.startswith(b"[redacted]\n")
        assert 4_000_000 < len(kept) < 4 * 2**20 + 200
        assert kept.endswith(b"bytes dropped at the cap]\n")


class TestMetrics:
    def test_the_inbox_and_then_stdout_no_more(self, home: Home) -> None:
        script = (
            "echo step=1 loss=9; sleep 0.5;"
            'echo \'{"step": 2, "loss": 2}\' >> $TSX_EVENTS; sleep 0.5;'
            "echo step=2 loss=9; printf 'step=3 loss=9'"
        )
        done = home.exec("--", "sh", "-c", script)
        assert done.list_points() == [(1, {"loss": 9.0}), (2, {"loss": 2.0})]
        assert done.get_end().step == 2

    def test_stdout_alone(self, home: Home) -> None:
        script = "echo step=1 loss=9; echo hello; echo step=2 loss=9 >&2; printf 'step=3 loss=8'"
        done = home.exec("--", "sh", "-c", script)
        assert done.list_points() == [(1, {"loss": 9.0}), (3, {"loss": 8.0})]

    def test_stdout_left_alone(self, home: Home) -> None:
        done = home.exec("--no-parse", "--", "echo", "step=1", "loss=9")
        assert done.out == b"step=1 loss=9\n"
        assert done.list_points() == []

    def test_wrong_lines_are_told_and_the_rest_is_kept(self, home: Home) -> None:
        script = (
            'for i in 1 2 3 4 5 6 7; do echo "{\\"loss\\": $i}" >> $TSX_EVENTS;'
            'echo "bad \\033[2J $i" >> $TSX_EVENTS; done; printf \'{"loss": 8}\' >> $TSX_EVENTS'
        )
        done = home.exec("--", "bash", "-c", script)
        assert [step for step, _ in done.list_points()] == list(range(1, 9))
        told = [line for line in done.err.splitlines() if line.startswith(b"inbox.jsonl")]
        assert [line.split(b":")[0] for line in told] == [
            *(f"inbox.jsonl line {number}".encode() for number in (2, 4, 6, 8, 10)),
            b"inbox.jsonl",
        ]
        assert b"2 more" in told[-1]
        findings = [event for event in done.events if isinstance(event, Finding)]
        assert sum(finding.count for finding in findings) == 7
        assert {finding.kind for finding in findings} == {"bad-event"}

    def test_a_hundred_thousand_lines(self, home: Home) -> None:
        awk = (
            "BEGIN { for (i = 1; i <= 100000; i++)"
            ' printf "{\\"loss\\": %g}\\n", 1 / i >> ENVIRON["TSX_EVENTS"] }'
        )
        done = home.exec("--", "awk", awk)
        assert [step for step, _ in done.list_points()] == list(range(1, 100_001))


class TestEnds:
    @pytest.mark.parametrize(
        ("script", "status", "kept", "reason"),
        [
            ("exit 0", 0, Status.COMPLETED, ""),
            (
                "echo first >&2; echo boom >&2; exit 3",
                3,
                Status.FAILED,
                "the program exited with status 3: boom",
            ),
            ("kill -SEGV $$", 139, Status.FAILED, "the program ended with SIGSEGV"),
            ("kill -KILL $$", 137, Status.KILLED, "the process was killed with SIGKILL"),
            ("kill -TERM $$", 143, Status.INTERRUPTED, "the program ended with SIGTERM"),
            ("kill -INT $$", 130, Status.INTERRUPTED, "the program ended with SIGINT"),
        ],
    )
    def test_every_end_has_a_name(
        self, home: Home, script: str, status: int, kept: Status, reason: str
    ) -> None:
        done = home.exec("--", "bash", "-c", script)
        ended = done.get_end()
        assert (done.status, ended.exit_code) == (status, status)
        assert (ended.status, ended.reason) == (kept, reason)
        assert f"run {done.folder.name} {kept} in".encode() in done.err

    def test_a_program_that_cannot_start_leaves_no_run(self, home: Home) -> None:
        (home.path / "plain").write_text("echo hi")
        for words, status in ((["nowhere"], 127), (["./plain"], 126), (["./absent"], 127)):
            process = home.start("exec", "--", *words)
            _, err = process.communicate(timeout=WAIT_S)
            assert process.returncode == status, err
            assert err.startswith(b"error: ")
        assert not (home.path / "runs").exists()

    def test_a_script_without_its_first_line(self, home: Home) -> None:
        path = home.path / "plain"
        path.write_text("echo hi")
        path.chmod(0o755)
        done = home.exec("--", "./plain")
        assert (done.status, done.get_end().status) == (126, Status.FAILED)
        assert "#!" in done.get_end().reason

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal_to_tsx_alone_is_passed_on_once(
        self, home: Home, number: signal.Signals
    ) -> None:
        script = (
            f"trap 'n=$((n+1)); echo got $n; sleep 0.5; exit 7' {number.name[3:]};"
            "echo ready; while :; do sleep 0.05; done"
        )
        process = home.start("exec", "--", "bash", "-c", script)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out) == (7, b"got 1\n"), err
        (ended,) = [event for event in home.read() if isinstance(event, RunEnded)]
        assert ended.status is Status.INTERRUPTED
        assert ended.reason == f"{number.name}; the program exited with status 7"

    def test_a_message_is_passed_on_and_ends_nothing(self, home: Home) -> None:
        script = "trap 'echo got it; exit 0' USR1; echo ready; while :; do sleep 0.05; done"
        process = home.start("exec", "--", "bash", "-c", script)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out) == (0, b"got it\n"), err

    def test_whom_it_leaves_behind_is_not_waited_for(self, home: Home) -> None:
        script = "sleep 600 & echo $!; (sleep 0.2; echo late) &"
        done = home.exec("--", "bash", "-c", script)
        pid, late = done.out.split()
        assert late == b"late"
        assert Path(f"/proc/{int(pid)}").exists()
        try:
            assert is_locked(done.folder) is False  # though the one left behind has a copy
            RunLock.acquire(done.folder).release()
        finally:
            os.kill(int(pid), signal.SIGKILL)


class TestTerminal:
    """A terminal of our own, with tsx in its foreground: Ctrl-C comes from the kernel."""

    def start(self, home: Home, script: str) -> tuple[int, int]:
        words = [sys.executable, "-P", "-m", "tsx", "exec", "--", "bash", "-c", script]
        pid, terminal = pty.fork()
        if pid == 0:
            restore_signals()
            os.chdir(home.path)
            os.execvpe(words[0], words, home.env)
        return pid, terminal

    def read_until(self, terminal: int, word: bytes) -> bytes:
        seen = b""
        while word not in seen:
            seen += os.read(terminal, 4096)
        return seen

    def read_rest(self, terminal: int) -> bytes:
        seen = b""
        try:
            while piece := os.read(terminal, 4096):
                seen += piece
        except OSError:  # the terminal's other side is closed
            pass
        return seen

    def test_ctrl_c_reaches_the_program_once(self, home: Home) -> None:
        script = (
            "trap 'n=$((n+1)); echo got $n; sleep 0.5; exit 9' INT;"
            "echo ready; while :; do sleep 0.05; done"
        )
        pid, terminal = self.start(home, script)
        self.read_until(terminal, b"ready\r\n")
        os.write(terminal, b"\x03")
        seen = self.read_rest(terminal)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(status) == 9
        assert b"got 1" in seen
        assert b"got 2" not in seen
        assert b"Ctrl-C again kills it" in seen

    def test_a_second_ctrl_c_kills(self, home: Home) -> None:
        pid, terminal = self.start(home, "trap '' INT; echo ready; while :; do sleep 0.05; done")
        self.read_until(terminal, b"ready\r\n")
        os.write(terminal, b"\x03")
        self.read_until(terminal, b"again kills")
        time.sleep(0.3)
        os.write(terminal, b"\x03")
        self.read_rest(terminal)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(status) == 137
        (ended,) = [event for event in home.read() if isinstance(event, RunEnded)]
        assert ended.status is Status.KILLED


class TestKills:
    def test_a_loop_that_is_killed_with_its_recorder_keeps_every_point(self, home: Home) -> None:
        script = LOOP % ":" + "sleep 600"
        process = home.start("exec", "--", "bash", "-c", script, start_new_session=True)
        inbox = wait_for(lambda: list(home.path.glob("runs/*/inbox.jsonl")))[0]
        wait_for(lambda: inbox.read_bytes().count(b"\n") == 30)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=WAIT_S)
        wait_for(lambda: is_locked(home.get_folder()) is False)
        run = home.get_run()
        assert (run["status"], run["step"]) == ("killed", 30)
        points = [event for event in home.read() if isinstance(event, Metrics)]
        assert [(point.step, point.values) for point in points] == [
            (number, {"loss": float(f"0.{number}")}) for number in range(1, 31)
        ]

    def test_a_program_outlives_its_recorder(self, home: Home) -> None:
        process = home.start("exec", "--", "bash", "-c", LOOP % "sleep 0.1")
        wait_for(lambda: home.count_points() >= 2)
        process.kill()
        assert home.get_run()["status"] == "running"  # the program has the lock
        out, _ = process.communicate(timeout=WAIT_S)  # and whoever stands by passes its words on
        assert process.returncode == -signal.SIGKILL
        assert out.splitlines()[-1] == b"said 30"
        folder = home.get_folder()
        wait_for(lambda: is_locked(folder) is False)
        run = home.get_run()
        assert (run["status"], run["step"]) == ("killed", 30)
        points = [event for event in home.read() if isinstance(event, Metrics)]
        assert [point.step for point in points] == list(range(1, 31))
        assert (folder / "stdout.log").read_text().splitlines()[-1] == "said 30"

    def test_nobody_stands_by_after_a_good_end(self, home: Home) -> None:
        done = home.exec("--", "true")
        assert list_holders(done.folder / "lock") == []
        guards = [
            entry
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and str(done.folder).encode() in read_command(entry)
        ]
        assert guards == []


def read_command(entry: Path) -> bytes:
    """Return the command line of a process, empty when it is gone."""
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
