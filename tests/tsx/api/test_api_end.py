"""However a program ends, its run says how, with every point."""

from __future__ import annotations

import shutil
import signal
import sys

import pytest

import tsx
from tsx.errors import ConfigError

HEAD = """
import os, signal, sys, time
import tsx
run = tsx.init(name="end")
run.log({"x": 1.0})
"""


@pytest.mark.parametrize(
    ("body", "code", "status", "reason", "recorded"),
    [
        ("", 0, "completed", "", 0),
        ("run.finish()", 0, "completed", "", 0),
        ("run.finish('diverged', 'the loss\\nis NaN')", 0, "diverged", "the loss\\nis NaN", 4),
        ("sys.exit(0)", 0, "completed", "", 0),
        ("sys.exit(3)", 3, "failed", "sys.exit(3)", 3),
        ("sys.exit('no data')", 1, "failed", "no data", 1),
        ("exit(3)", 3, "failed", "sys.exit(3)", 3),
        ("quit()", 0, "completed", "", 0),
        ("raise ValueError('a\\nb')", 1, "failed", "ValueError: a b (train.py:6)", 1),
        ("raise MemoryError", 1, "oom", "MemoryError (train.py:6)", 1),
        ("raise KeyboardInterrupt", -2, "interrupted", "SIGINT", 130),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", -15, "interrupted", "SIGTERM", 143),
        ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(9)", -1, "interrupted", "SIGHUP", 129),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "killed", "is gone", 137),
        ("os._exit(5)", 5, "killed", "is gone", 137),
        ("with run: raise ValueError('x')", 1, "failed", "ValueError: x (train.py:6)", 1),
        ("with run: raise SystemExit(4)", 4, "failed", "sys.exit(4)", 4),
        ("with run: raise KeyboardInterrupt", -2, "interrupted", "SIGINT", 130),
        ("with run: run.log({'x': 2.0})", 0, "completed", "", 0),
    ],
)
def test_every_ending_has_its_name(body, code, status, reason, recorded, run_program, read):
    done = run_program(HEAD + body)
    assert done.returncode == code, done.stderr
    found = read()
    assert found.run.status == status
    assert reason in found.run.reason
    assert ("\n" in found.run.reason) is False
    assert found.environment["exit_code"] == recorded
    assert found.metrics["x"].count == (2 if "2.0" in body else 1)


def test_what_a_traceback_says_is_still_said(run_program):
    done = run_program(HEAD + "raise ValueError('said')")
    assert done.stderr.count("ValueError: said") == 1
    assert "Error in sys.excepthook" not in done.stderr


def test_hooks_of_the_program_are_called_and_kept(run_program, read):
    done = run_program(
        """
        import sys
        def mine(kind, error, trace): print("mine", kind.__name__)
        sys.excepthook = mine
        import tsx
        run = tsx.init(name="end")
        raise ValueError("x")
        """
    )
    assert done.stdout == "mine ValueError\n"
    assert read().run.status == "failed"


def test_an_exit_that_was_caught_is_forgotten(run_program, read):
    done = run_program(
        HEAD + "try:\n    sys.exit(3)\nexcept SystemExit:\n    pass\nrun.log({'x': 2.0})"
    )
    assert done.returncode == 0
    assert read().run.status == "completed"


def test_a_handler_of_the_program_is_left_alone(run_program, read):
    done = run_program(
        """
        import os, signal, sys
        def mine(*_): print("mine"); sys.exit(7)
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        import tsx
        run = tsx.init(name="end")
        os.kill(os.getpid(), signal.SIGHUP)
        run.log({"x": 1.0})
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert (done.returncode, done.stdout) == (7, "mine\n")
    assert (read().run.status, read().environment["exit_code"]) == ("failed", 7)


def test_a_run_in_a_thread_takes_no_signals(run_program, read):
    done = run_program(
        """
        import signal, threading, tsx
        def work(): tsx.init(name="end").log({"x": 1.0})
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        tsx.log({"x": 2.0})
        """
    )
    assert done.returncode == 0, done.stderr
    assert (read().run.status, read().metrics["x"].count) == ("completed", 2)


def test_everything_is_put_back_when_a_run_is_finished():
    def list_hooks():
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
        return [sys.excepthook, sys.exit, *handlers]

    before = list_hooks()
    with tsx.init(name="hooks"):
        assert all(one is not other for one, other in zip(list_hooks(), before, strict=True))
    assert list_hooks() == before


def test_a_status_that_is_none_is_refused_and_the_run_goes_on():
    run = tsx.init(name="x")
    for status in ("done", "running", None, ["failed"]):
        with pytest.raises(ConfigError, match="valid: completed, failed"):
            run.finish(status)
    run.log({"x": 1.0})
    assert run.status == "running"


def test_the_first_ending_counts(read):
    run = tsx.init(name="x")
    run.finish("failed", "first")
    run.finish("completed")
    with run:
        pass
    assert (read().run.status, read().run.reason) == ("failed", "first")
    assert run.status == "failed"


FORK = """
import os, sys, time
import tsx
run = tsx.init(name="fork")
run.log({"x": 1.0})
child = os.fork()
if child == 0:
    run.log({"x": 2.0})
    {child}
os.waitpid(child, 0)
assert not run.is_finished
run.log({"x": 3.0}, step=9)
"""


@pytest.mark.parametrize(
    "child",
    [
        "sys.exit(0)",
        "run.finish(); os._exit(0)",
        "raise ValueError('in the child')",
        "tsx.init(name='fork', quiet=True).finish('failed'); os._exit(0)",
        "os.kill(os.getpid(), 15); time.sleep(9)",
        "os.kill(os.getpid(), 9)",
    ],
)
def test_a_forked_child_logs_and_never_ends_the_run(child, run_program, list_runs, read_curve):
    done = run_program(FORK.replace("{child}", child))
    assert done.returncode == 0, done.stderr
    run = list_runs()[-1]
    assert (run.name, run.status, run.step) == ("fork", "completed", 9)
    assert read_curve("x", run.id) == [(1, 1.0), (2, 2.0), (9, 3.0)]


def test_a_pool_of_forked_workers_logs_every_point(run_program, read):
    done = run_program(
        """
        import multiprocessing
        import tsx
        run = tsx.init(name="pool")

        def work(number):
            run.log({f"worker{number % 4}": float(number)}, step=number)

        with multiprocessing.get_context("fork").Pool(4) as pool:
            pool.map(work, range(1, 101))
        run.log({"parent": 1.0}, step=101)
        """
    )
    assert done.returncode == 0, done.stderr
    found = read()
    assert (found.run.status, found.run.step) == ("completed", 101)
    assert sum(row.count for row in found.metrics.values()) == 101


def test_a_terminated_program_keeps_every_point(start, read, read_curve):
    process = start(
        """
        import time, tsx
        run = tsx.init(name="loop")
        for step in range(1, 10**9):
            run.log({"x": float(step)})
            print(step, flush=True)
            time.sleep(0.001)
        """
    )
    for _ in range(50):
        line = process.stdout.readline()
    process.terminate()
    rest = process.stdout.read().split()
    assert process.wait() == -signal.SIGTERM
    seen = int((rest or [line])[-1])
    steps = [step for step, _ in read_curve("x")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) in (seen, seen + 1)
    assert read().run.reason == "SIGTERM"


def test_a_home_that_vanishes_stops_nothing_and_is_told(tmp_path, capsys):
    run = tsx.init(name="vanish", home=tmp_path / "home")
    run.log({"x": 1.0})
    while (tmp_path / "home").exists():  # the registry is written meanwhile
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
    for _ in range(3):
        run.log({"x": 2.0})
    run.finish()
    err = capsys.readouterr().err
    assert "lost" in err
    assert "whole" not in err
