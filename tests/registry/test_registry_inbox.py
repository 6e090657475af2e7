"""What a program may append to its inbox, and that every line is taken over once."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from registry.codec import LineError
from registry.events import Artifact, Event, Finding, Heartbeat, Histogram, Metrics, Severity
from registry.inbox import INBOX_NAME, MAX_INBOX_LINE_BYTES, decode_inbox_line
from registry.inbox_reader import BadInboxLine, InboxReader, Mark, find_mark, iter_left
from registry.journal import JOURNAL_NAME, JournalWriter

NOW = 5.0


def read(line: str | bytes, **facts: Any) -> Event:
    line = line.encode() if isinstance(line, str) else line
    (event,) = decode_inbox_line(line, 77, now=NOW, **facts)
    return event


def get_values(line: str) -> dict[str, float]:
    event = read(line)
    assert isinstance(event, Metrics)
    return event.values


def make_reader(path: Path, mark: Mark = Mark()) -> tuple[InboxReader, list[BadInboxLine]]:  # noqa: B008
    bad: list[BadInboxLine] = []
    return InboxReader(path, mark, bad.append), bad


def list_steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, Metrics)]


class TestOneLine:
    def test_nested_numbers_are_flattened(self) -> None:
        event = read('{"step": 3, "loss": 0.5, "val": {"loss": 0.6, "h": {"8": 1}}, "n": 2}')
        assert isinstance(event, Metrics)
        assert (event.step, event.time, event.inbox_end) == (3, NOW, 77)
        assert event.values == {"loss": 0.5, "n": 2.0, "val/loss": 0.6, "val/h/8": 1.0}

    def test_step_and_time_have_defaults(self) -> None:
        event = read('{"loss": 1}', previous_step=7)
        assert isinstance(event, Metrics)
        assert event.step == 8
        assert read('{"loss": 1, "time": 12.5, "step": 3.0}') == Metrics(
            time=12.5, step=3, values={"loss": 1.0}, inbox_end=77
        )

    @pytest.mark.parametrize("text", ['"NaN"', '"nan"', "NaN", "nan", "-nan", "null"])
    def test_nan_in_every_spelling(self, text: str) -> None:
        assert math.isnan(get_values(f'{{"a": {text}}}')["a"])

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('"Infinity"', math.inf),
            ('"inf"', math.inf),
            ('"-inf"', -math.inf),
            ("-Infinity", -math.inf),
            ("inf", math.inf),
            ("-inf", -math.inf),
            ("1e999", math.inf),
            ("1" + "0" * 400, math.inf),
            (".5", 0.5),
            ("-.25", -0.25),
            ("true", 1.0),
        ],
    )
    def test_other_numbers(self, text: str, value: float) -> None:
        assert get_values(f'{{"a": {text}, "b": 1}}') == {"a": value, "b": 1.0}

    def test_a_value_that_is_no_number_is_left_out_and_told(self) -> None:
        told: list[str] = []
        event = read('{"loss": 1, "phase": "warm\\u001b", "c": [1]}', left_out=told.append)
        assert isinstance(event, Metrics)
        assert event.values == {"loss": 1.0}
        assert told == [
            "'phase' is 'warm\\x1b', no number: left out",
            "'c' is [1], no number: left out",
        ]

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ('"time": 1763650000000', "time 1763650000000 is no number of seconds"),
            ('"time": NaN', "time nan is no number of seconds"),
            ('"time": "2026-11-20T17:00:00Z"', "time '2026-11-20T17:00:00Z' is no number"),
            ('"": 1', "a key of 0 characters; 1 to 500 can be"),
            ('"' + "k" * 501 + '": 1', "a key of 501 characters; 1 to 500 can be"),
            ('"' + "k" * 501 + '": {"a": 1}', "a key of 501 characters; 1 to 500 can be"),
        ],
    )
    def test_a_wrong_time_or_key_costs_no_other_value(self, wrong: str, reason: str) -> None:
        told: list[str] = []
        event = read(f'{{{wrong}, "step": 3, "loss": 1}}', left_out=told.append)
        assert event == Metrics(time=NOW, step=3, values={"loss": 1.0}, inbox_end=77)
        (why,) = told
        assert why.startswith(reason)
        assert why.endswith(": left out")

    def test_a_hostile_key_stays_a_key(self) -> None:
        assert get_values('{"a\\u001b[2J\\u0000": 1}') == {"a\x1b[2J\x00": 1.0}

    def test_a_metric_line_in_the_journals_own_form(self) -> None:
        line = '{"type": "metrics", "step": 2, "values": {"loss": 1}}'
        assert get_values(line) == {"loss": 1.0}
        assert get_values('{"step": 2, "values": {"loss": 1}}') == {"values/loss": 1.0}

    def test_a_line_without_values_is_a_sign_of_life(self) -> None:
        assert read('{"step": 4}') == Heartbeat(time=NOW, step=4)
        assert read('{"type": "heartbeat"}', previous_step=6) == Heartbeat(time=NOW, step=6)
        assert decode_inbox_line(b" \r\n", 3, now=NOW) == []

    def test_the_other_kinds(self) -> None:
        finding = read(
            '{"type": "finding", "kind": "spike", "severity": "error", "evidence": {"z": "NaN"}}',
            previous_step=3,
        )
        assert isinstance(finding, Finding)
        assert (finding.kind, finding.severity, finding.step) == ("spike", Severity.ERROR, 3)
        assert math.isnan(finding.evidence["z"])
        histogram = read('{"type": "histogram", "key": "g", "edges": [0, 1, 2], "counts": [3, 4]}')
        assert isinstance(histogram, Histogram)
        assert (histogram.edges, histogram.counts, histogram.inbox_end) == (
            (0.0, 1.0, 2.0),
            (3, 4),
            77,
        )
        artifact = read('{"type": "artifact", "kind": "checkpoint", "path": "a/b.pt", "step": 9}')
        assert isinstance(artifact, Artifact)
        assert (artifact.path, artifact.step) == ("a/b.pt", 9)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("loss 1", "not JSON"),
            ('{"loss": 1', "not JSON"),
            ('{"loss": }', "not JSON"),
            ('{"a": ' + "1" * 5000 + "}", "not JSON"),
            ('{"a":' * 2000 + "1" + "}" * 2000, "not JSON|nested deeper"),
            ('{"a":' * 20 + "1" + "}" * 20, "nested deeper than 16"),
            ("[1]", "not an object"),
            ("3", "not an object"),
            ('{"step": -1, "a": 1}', "step -1"),
            ('{"step": 1.5, "a": 1}', "step 1.5"),
            ('{"step": true, "a": 1}', "step True"),
            ('{"step": "3", "a": 1}', "step '3'"),
            ('{"step": 9223372036854775808, "a": 1}', "step 9223372036854775808"),
            ('{"step": NaN, "a": 1}', "step nan"),
            ("{" + ", ".join(f'"{n}": 1' for n in range(10_001)) + "}", "more than 10,000 values"),
            ('{"type": "run_ended", "status": "completed"}', "type 'run_ended'"),
            ('{"type": ["metrics"]}', "type \\['metrics'\\]"),
            ('{"type": "finding"}', "finding: .*kind"),
            ('{"type": "finding", "kind": "x", "severity": "fatal"}', "finding: .*fatal"),
            ('{"type": "finding", "kind": "x", "count": 1e30}', "finding: "),
            ('{"type": "artifact", "kind": "x", "path": "../y"}', "not inside the run's folder"),
            ('{"type": "artifact", "kind": "x", "path": "/etc/y"}', "not inside the run's folder"),
            ('{"type": "histogram", "key": "g", "edges": [0], "counts": [1]}', "1 edges"),
            ('{"type": "histogram", "key": "g", "edges": [1, 0], "counts": [1]}', "rise"),
            ('{"type": "histogram", "key": "g", "edges": [0, Infinity], "counts": [1]}', "finite"),
            ('{"type": "histogram", "key": "g", "edges": [0, 1], "counts": [-1]}', "below 0"),
            (b"\xff\xfe{}", "not UTF-8"),
            (b" " * (MAX_INBOX_LINE_BYTES + 1), "longer than"),
        ],
    )
    def test_a_line_that_is_no_event(self, line: str | bytes, reason: str) -> None:
        with pytest.raises(LineError, match=reason) as caught:
            read(line)
        assert len(str(caught.value)) < 400


class TestReading:
    def test_lines_are_taken_as_they_come(self, tmp_path: Path) -> None:
        path = tmp_path / INBOX_NAME
        reader, bad = make_reader(path)
        assert list(reader.iter_new(NOW)) == []
        path.write_text('{"loss": 1}\n{"step": 5, "lo')
        (first,) = reader.iter_new(NOW)
        assert isinstance(first, Metrics)
        assert (first.step, first.inbox_end) == (1, 12)
        with path.open("a") as file:
            file.write('ss": 2}\n\n{"loss": 3}\n')
        assert list_steps(list(reader.iter_new(NOW))) == [5, 6]
        assert (list(reader.iter_rest(NOW)), bad) == ([], [])

    def test_a_last_line_without_its_newline_is_taken_if_it_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / INBOX_NAME
        path.write_text('{"loss": 1}\n{"loss": 2}')
        reader, bad = make_reader(path)
        events = list(reader.iter_rest(NOW))
        assert list_steps(events) == [1, 2]
        assert getattr(events[-1], "inbox_end", 0) == path.stat().st_size
        path.write_text('{"loss": 1}\n{"loss": ')
        reader, bad = make_reader(path)
        assert list_steps(list(reader.iter_rest(NOW))) == [1]
        assert [line.number for line in bad] == [2]

    def test_bad_lines_are_told_and_counted_and_the_rest_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / INBOX_NAME
        path.write_text('{"a": 1}\nnonsense\n{"a": 2, "b": "x"}\n[]\n{"a": 3}\n')
        reader, bad = make_reader(path)
        events = list(reader.iter_rest(NOW))
        assert list_steps(events) == [1, 2, 3]
        assert [line.number for line in bad] == [2, 3, 4]
        findings = [event for event in events if isinstance(event, Finding)]
        assert sum(finding.count for finding in findings) == reader.bad_count == 3
        assert {(finding.kind, finding.where, finding.cause) for finding in findings} == {
            ("bad-event", "inbox.jsonl:2", f"line 2: {bad[0].reason}")
        }

    def test_the_first_fault_is_recorded_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / INBOX_NAME
        path.write_text("nonsense\n")
        reader, _ = make_reader(path)
        assert [type(event) for event in reader.iter_new(NOW)] == [Finding]
        assert list(reader.iter_rest(NOW)) == []

    def test_an_overlong_line_is_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / INBOX_NAME
        with path.open("wb") as file:
            file.write(b'{"a": 1}\n{"a": "')
            for _ in range(5):
                file.write(b"x" * MAX_INBOX_LINE_BYTES)
            file.write(b'"}\n{"a": 3}\n')
        reader, bad = make_reader(path)
        events = list(reader.iter_rest(NOW))
        assert list_steps(events) == [1, 2]
        assert [line.number for line in bad] == [2]
        assert getattr(events[-1], "inbox_end", 0) == path.stat().st_size

    @pytest.mark.parametrize("offset", range(-2, 3))
    def test_a_line_may_lie_anywhere_in_the_chunks(self, tmp_path: Path, offset: int) -> None:
        path = tmp_path / INBOX_NAME
        filler = b'{"a": 1}' + b" " * (MAX_INBOX_LINE_BYTES - 9 + offset) + b"\n"
        path.write_bytes(filler + b'{"a": 2}\n{"a": 3}\n')
        reader, bad = make_reader(path)
        taken = 3 if offset <= 1 else 2
        assert len(list_steps(list(reader.iter_rest(NOW)))) == taken
        assert len(bad) == 3 - taken

    def test_a_file_that_is_cut_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / INBOX_NAME
        path.write_text('{"step": 1, "loss": 1}\n')
        reader, bad = make_reader(path)
        assert list_steps(list(reader.iter_new(NOW))) == [1]
        path.write_text('{"step": 2}\n')
        list(reader.iter_new(NOW))
        with path.open("a") as file:
            file.write('{"step": 3, "loss": 1}\n')
        events = list(reader.iter_rest(NOW))
        assert list_steps(events) == [3]
        assert max(getattr(event, "inbox_end", 0) for event in events) > path.stat().st_size
        assert ">>" in bad[0].reason


class TestTakingOver:
    def journal(self, folder: Path, events: list[Event]) -> None:
        writer = JournalWriter(folder / JOURNAL_NAME)
        for event in events:
            writer.append(event)
        writer.close()

    def write_inbox(self, folder: Path, count: int) -> Path:
        path = folder / INBOX_NAME
        lines = [json.dumps({"loss": number} if number % 3 else {}) for number in range(count)]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    @pytest.mark.parametrize("taken", [0, 1, 2, 3, 9, 17, 20])
    def test_each_line_is_taken_exactly_once(self, tmp_path: Path, taken: int) -> None:
        path = self.write_inbox(tmp_path, 20)
        whole = list(InboxReader(path).iter_rest(NOW))
        self.journal(tmp_path, [Heartbeat(time=1.0), *whole[:taken]])
        left = list(iter_left(tmp_path))
        first = [event for event in whole[:taken] if isinstance(event, Metrics)]
        both = first + [event for event in left if isinstance(event, Metrics)]
        expected = [event for event in whole if isinstance(event, Metrics)]
        assert [(event.step, event.values, event.inbox_end) for event in both] == [
            (event.step, event.values, event.inbox_end) for event in expected
        ]
        assert {event.time for event in left} <= {path.stat().st_mtime}

    def test_line_numbers_go_on(self, tmp_path: Path) -> None:
        path = tmp_path / INBOX_NAME
        path.write_text('{"a": 1}\n{"a": 2}\nnonsense\n')
        mark = Mark(end=9, step=1)
        reader, bad = make_reader(path, mark)
        assert list_steps(list(reader.iter_rest(NOW))) == [2]
        assert [line.number for line in bad] == [3]

    def test_what_comes_another_way_is_no_mark(self, tmp_path: Path) -> None:
        self.journal(tmp_path, [Metrics(time=1.0, step=99, values={"inbox_end": 5.0})])
        assert find_mark(tmp_path / JOURNAL_NAME) == Mark(0, 0)

    def test_a_run_without_an_inbox_and_a_pipe_in_its_place(self, tmp_path: Path) -> None:
        assert list(iter_left(tmp_path)) == []
        self.journal(tmp_path, [Heartbeat(time=1.0)])
        assert list(iter_left(tmp_path)) == []
        os.mkfifo(tmp_path / INBOX_NAME)
        assert list(iter_left(tmp_path)) == []
