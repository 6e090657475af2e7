"""Exit statuses and evidence -> the status of a run."""

from __future__ import annotations

import signal

import pytest

from registry.events import Status
from tsx.errors import Exit
from tsx.launch.exit_reason import EXIT_OF_STATUS, Ending, explain_exit

GIB = 2**30


def explain(returncode: int, *, peak_gib: float = 1, oom_kills: int = 0, last: str = "") -> Ending:
    return explain_exit(
        returncode,
        peak_rss_bytes=int(peak_gib * GIB),
        ram_bytes=24 * GIB,
        oom_kills=oom_kills,
        last_line=last,
    )


def test_a_sigkill_without_evidence_is_killed_never_oom() -> None:
    ending = explain(-signal.SIGKILL)
    assert (ending.status, ending.exit_code) == (Status.KILLED, Exit.KILLED)


def test_a_sigkill_that_the_cgroup_counted_is_oom() -> None:
    ending = explain(-signal.SIGKILL, oom_kills=1)
    assert (ending.status, ending.exit_code) == (Status.OOM, Exit.OUT_OF_MEMORY)
    assert "cgroup" in ending.reason


def test_a_sigkill_of_a_process_that_filled_the_machine_is_oom_with_the_sizes() -> None:
    ending = explain(-signal.SIGKILL, peak_gib=22.5)
    assert ending.status is Status.OOM
    assert "22.5 of 24.0 GiB" in ending.reason


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_stop_signal_before_training_could_answer_is_interrupted(name: str) -> None:
    ending = explain(-signal.Signals[name])
    assert ending.status is Status.INTERRUPTED
    assert name in ending.reason


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_native_crash_is_failed_and_names_the_signal_and_the_log(name: str) -> None:
    ending = explain(-signal.Signals[name])
    assert ending.status is Status.FAILED
    assert name in ending.reason
    assert "stderr.log" in ending.reason


def test_an_unknown_signal_is_still_explained() -> None:
    assert "signal 200" in explain(-200).reason


def test_an_exit_without_a_word_quotes_the_last_line_of_stderr() -> None:
    ending = explain(1, last="ModuleNotFoundError: No module named 'torch'")
    assert ending.status is Status.FAILED
    assert ending.reason.endswith("No module named 'torch'")


def test_every_status_has_an_exit_code_but_running() -> None:
    assert set(EXIT_OF_STATUS) == set(Status) - {Status.RUNNING}
