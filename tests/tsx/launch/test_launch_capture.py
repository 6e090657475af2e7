"""Captured output: redacted, capped, sealed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from registry.redact import Redactor
from tsx.launch.capture import CAP_BYTES, FOOTER_BYTES, CappedStream, seal

SECRET = "hunter2-hunter2"


def make_stream(cap: int = 1000) -> tuple[CappedStream, io.StringIO]:
    target = io.StringIO()
    return CappedStream(target, Redactor([SECRET]), cap_bytes=cap), target


def test_a_secret_split_over_two_writes_is_still_taken_out() -> None:
    stream, target = make_stream()
    stream.write(f"password {SECRET[:7]}")
    stream.write(f"{SECRET[7:]} ok\n")
    assert SECRET not in target.getvalue()
    assert "ok\n" in target.getvalue()


def test_an_unfinished_line_appears_at_the_end() -> None:
    stream, target = make_stream()
    stream.write("half a line")
    assert target.getvalue() == ""
    stream.finish()
    assert target.getvalue() == "half a line"


def test_past_the_cap_bytes_are_dropped_and_counted() -> None:
    stream, target = make_stream(cap=10)
    stream.write("123456789\n")
    stream.write("more\n")
    stream.finish()
    assert target.getvalue().startswith("123456789\n")
    assert stream.dropped_bytes == 5
    assert "[5 bytes dropped at the cap]" in target.getvalue()


def test_a_line_that_never_ends_does_not_fill_memory() -> None:
    stream, target = make_stream(cap=200_000)
    stream.write("." * 70_000)
    assert len(target.getvalue()) == 70_000


def test_sealing_redacts_what_native_code_wrote_past_python(tmp_path: Path) -> None:
    (tmp_path / "stderr.log").write_text(f"driver says {SECRET}\n")
    seal(tmp_path, Redactor([SECRET]))
    assert SECRET not in (tmp_path / "stderr.log").read_text()
    assert "driver says" in (tmp_path / "stderr.log").read_text()


def test_sealing_cuts_a_runaway_log_and_says_how_much(tmp_path: Path) -> None:
    size = CAP_BYTES + FOOTER_BYTES + 1234
    (tmp_path / "stdout.log").write_bytes(b"x" * size)
    seal(tmp_path, Redactor())
    kept = (tmp_path / "stdout.log").read_text()
    assert kept.endswith("[1,234 bytes dropped at the cap]\n")
    assert len(kept) < size


def test_sealing_leaves_a_clean_log_alone(tmp_path: Path) -> None:
    log = tmp_path / "stdout.log"
    log.write_text("fine\n")
    before = log.stat().st_ino
    seal(tmp_path, Redactor([SECRET]))
    assert (log.read_text(), log.stat().st_ino) == ("fine\n", before)


class FullDisk(io.StringIO):
    """A log on a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_ends_no_training_that_prints() -> None:
    stream = CappedStream(FullDisk(), Redactor())
    stream.write("a line\n")
    stream.flush()
    stream.finish()
    assert stream.dropped_bytes == len("a line\n")


def test_a_full_disk_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "stderr.log"
    log.write_text(f"before {SECRET} after\n")

    def fail(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    seal(tmp_path, Redactor([SECRET]))
    assert log.read_text() == "before [redacted] after\n"[: len(f"before {SECRET} after\n")]
    assert [path.name for path in tmp_path.iterdir()] == ["stderr.log"]
