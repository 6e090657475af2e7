"""A run's lock lives exactly as long as its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from registry.liveness import (
    REMOTE_SILENCE_S,
    START_GRACE_S,
    LockHeld,
    RunLock,
    has_process,
    is_alive,
    is_locked,
)

HERE = socket.gethostname()
FORKING = """
import os, sys, time
from pathlib import Path
from registry.liveness import RunLock
lock = RunLock.acquire(Path(sys.argv[1]))
forked = os.fork()
if forked:
    print(forked, flush=True)
time.sleep(60)
"""
CHILD = "import sys; print('up', flush=True); sys.stdin.read()"


def alive(folder, *, pid=0, host=HERE, heartbeat=0.0, now=1e9):
    return is_alive(folder, pid=pid, host=host, heartbeat=heartbeat, now=now)


def test_the_lock_of_this_process(tmp_path):
    lock = RunLock.acquire(tmp_path)
    assert is_locked(tmp_path) is True
    assert alive(tmp_path)
    with pytest.raises(LockHeld, match="lock"):
        RunLock.acquire(tmp_path, wait_s=0.0)
    lock.release()
    lock.release()
    assert is_locked(tmp_path) is False
    assert not alive(tmp_path, pid=os.getpid(), heartbeat=time.time())


def test_the_lock_goes_with_the_child_that_inherited_it(tmp_path):
    lock = RunLock.acquire(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        pass_fds=[lock.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    lock.release()
    assert alive(tmp_path)
    child.kill()
    child.wait()
    assert not alive(tmp_path)
    child.stdin.close()
    child.stdout.close()


def test_a_forked_child_does_not_keep_it(tmp_path, start_python, wait_until):
    process = start_python(FORKING, tmp_path)
    forked = int(process.stdout.readline())
    assert alive(tmp_path)
    process.kill()
    process.wait()
    wait_until(lambda: not is_locked(tmp_path))
    os.kill(forked, signal.SIGKILL)


def test_a_lock_is_waited_for(tmp_path):
    lock = RunLock.acquire(tmp_path)
    os.set_inheritable(lock.fd, True)
    adopted = RunLock.from_fd(lock.fd)
    assert not os.get_inheritable(adopted.fd)
    adopted.release()
    RunLock.acquire(tmp_path).release()


def test_without_a_lock_the_process_decides(tmp_path, dead_pid):
    assert is_locked(tmp_path) is None
    assert alive(tmp_path, pid=os.getpid(), heartbeat=time.time())
    assert not alive(tmp_path, pid=dead_pid, heartbeat=time.time())
    assert not alive(tmp_path, pid=2**40, heartbeat=time.time())


def test_a_process_id_that_was_given_again(tmp_path):
    assert not has_process(os.getpid(), known_at=time.time() - 1e6)
    assert not alive(tmp_path, pid=os.getpid(), heartbeat=time.time() - 1e6)


def test_a_run_that_has_no_process_yet(tmp_path):
    assert alive(tmp_path, heartbeat=100.0, now=100.0 + START_GRACE_S - 1)
    assert not alive(tmp_path, heartbeat=100.0, now=100.0 + START_GRACE_S + 1)


def test_another_host_is_judged_by_silence(tmp_path):
    RunLock.acquire(tmp_path).release()
    now = 1e6
    assert alive(tmp_path, host="elsewhere", heartbeat=now - REMOTE_SILENCE_S + 1, now=now)
    assert not alive(tmp_path, host="elsewhere", heartbeat=now - REMOTE_SILENCE_S - 1, now=now)
