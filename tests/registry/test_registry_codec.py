"""One event, one line of strict JSON, and back."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from registry.codec import MAX_BINS, MAX_LINE_BYTES, LineError, decode, encode, from_json, to_json
from registry.events import Artifact, Finding, Histogram, Metrics, Output, RunPrepared, Severity


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_lines_are_strict_json():
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}
    line = encode(Metrics(time=1.0, step=3, values=values))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    parsed = json.loads(line, parse_constant=refuse)
    assert parsed["values"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.5}


def test_non_finite_values_come_back():
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 5e-324, "e": 1.7e308}
    found = decode(encode(Metrics(time=1.0, step=3, values=values)))
    assert repr(found.values) == repr(values)


def test_non_finite_evidence_and_metadata_come_back():
    finding = Finding(
        time=1.0, kind="k", severity=Severity.ERROR, evidence={"norms": [math.nan, {"x": math.inf}]}
    )
    artifact = Artifact(time=1.0, kind="c", path="p", metadata={"val_loss": -math.inf})
    prepared = RunPrepared(
        time=1.0, pid=1, device="cpu", device_name="", precision="fp32", peak_tflops=math.inf
    )
    assert repr(decode(encode(finding)).evidence) == repr(finding.evidence)
    assert decode(encode(artifact)).metadata == artifact.metadata
    assert decode(encode(prepared)).peak_tflops == math.inf


def test_text_with_newlines_and_escapes_stays_one_line():
    text = "a\nb\r\x1b[31m\x00\u2028\U0001f600"
    line = encode(Output(time=1.0, stream="stdout", text=text))
    assert line.count(b"\n") == 1
    assert decode(line).text == text


def test_foreign_numbers_become_numbers():
    class Scalar:
        def __init__(self, value):
            self.value = value

        def __float__(self):
            return self.value

    values = {"a": Scalar(2.5), "b": Scalar(math.nan), "c": True, "d": 10**400, "e": "x"}
    found = decode(encode(Metrics(time=1.0, step=1, values=values))).values
    assert found["a"] == 2.5
    assert math.isnan(found["b"])
    assert (found["c"], found["d"]) == (1.0, math.inf)
    assert math.isnan(found["e"])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"type":"metrics"}',
        b'{"type":"unknown","time":1}',
        b'{"type":["metrics"],"time":1}',
        b'{"type":"metrics","time":1,"step":"x","values":{}}',
        b'{"type":"metrics","time":1,"step":1,"values":[1]}',
        b'{"type":"metrics","time":1,"step":1,"values":{"a":"x"}}',
        b'{"type":"metrics","time":1,"step":1,"values":{"a":null}}',
        b'{"type":"metrics","time":1,"step":1.5,"values":{}}',
        b'{"type":"metrics","time":1,"step":99999999999999999999,"values":{}}',
        b'{"type":"metrics","time":1e999,"step":1,"values":{}}',
        b'{"type":"metrics","time":null,"step":1,"values":{}}',
        b'{"type":"run_ended","time":1,"status":"fine"}',
        b'{"type":"metrics","time":1,"step":1,"values":{}} trailing',
        b'{"type":"output","time":1,"stream":"stdout","text":"\xff"}',
        b"[" * 200_000,
        b'{"type":"finding","time":1,"kind":"k","severity":"info","evidence":'
        + b'{"a":' * 50_000
        + b"1"
        + b"}" * 50_001,
        b"x" * (MAX_LINE_BYTES + 1),
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)
def test_a_line_that_is_no_event(line):
    with pytest.raises(LineError):
        decode(line)


def test_unknown_fields_of_a_newer_version_are_ignored():
    line = b'{"type":"heartbeat","time":1,"step":2,"colour":"red"}'
    assert decode(line).step == 2


def test_an_event_too_long_for_a_line():
    evidence = {str(number): "x" * 1_000_000 for number in range(20)}
    with pytest.raises(LineError, match="bytes"):
        encode(Finding(time=1.0, kind="k", severity=Severity.INFO, evidence=evidence))


def test_what_one_event_may_hold_is_bounded():
    evidence = {"list": [1.0] * 1_000_000, "text": "x" * 5_000_000}
    found = decode(encode(Finding(time=1.0, kind="k", severity=Severity.INFO, evidence=evidence)))
    assert len(found.evidence["list"]) == 100_000
    assert found.evidence["text"].endswith("characters left out]")


def test_json_text_is_strict_and_total():
    data = {"nan": math.nan, "set": {1}, 3: object, "surrogate": "\ud800", "big": 2**80}
    parsed = json.loads(to_json(data), parse_constant=refuse)
    assert parsed["nan"] == "NaN"
    assert parsed["big"] == str(2**80)
    assert from_json(to_json({"a": [1, "b", None]})) == {"a": [1, "b", None]}


def test_booleans_and_integers_are_numbers():
    values = {"yes": True, "no": False, "true": 1.0, "count": 3, "far": 2**70}
    found = decode(encode(Metrics(time=1.0, step=3, values=values)))
    assert found.values == {"yes": 1.0, "no": 0.0, "true": 1.0, "count": 3.0, "far": 2.0**70}


def test_metrics_that_cannot_be_a_line():
    with pytest.raises(LineError):
        encode(Metrics(time=1.0, step=1, values=[1.0]))
    huge = {f"{number}" + "x" * 1_000_000: 1.0 for number in range(20)}
    with pytest.raises(LineError, match="at most"):
        encode(Metrics(time=1.0, step=1, values=huge))


def test_what_a_recorded_program_said_bears_the_end_of_its_inbox():
    for event in (
        Metrics(time=1.0, step=3, values={"a": 1.0}, inbox_end=77),
        Finding(time=1.0, kind="k", severity=Severity.INFO, inbox_end=77),
        Artifact(time=1.0, kind="c", path="p", inbox_end=77),
        Histogram(time=1.0, step=1, key="h", edges=(0.0, 1.0), counts=(3,), inbox_end=77),
    ):
        assert b'"inbox_end":77' in encode(event)
        assert decode(encode(event)) == event
    assert b"inbox_end" not in encode(Metrics(time=1.0, step=3, values={"a": 1.0}))


def test_a_huge_histogram_is_bounded_and_keeps_its_counts():
    bins = 100_003
    edges = tuple(number / 7 for number in range(bins + 1))
    event = Histogram(time=1.0, step=1, key="h", edges=edges, counts=tuple(range(bins)))
    line = encode(event)
    found = decode(line)
    assert len(line) < 200_000
    assert len(found.counts) <= MAX_BINS
    assert sum(found.counts) == sum(range(bins))
    assert (found.edges[0], found.edges[-1]) == (edges[0], edges[-1])
    assert set(found.edges) <= set(edges)
    each = math.ceil(bins / MAX_BINS)
    assert found.counts[:2] == (sum(range(each)), sum(range(each, 2 * each)))


@pytest.mark.parametrize(
    ("edges", "counts"),
    [((0.0, 1.0), (1, 2)), ((), (1,)), ((0.0,), ()), ((0.0, math.inf), (1,)), ((0.0, "x"), (1,))],
)
def test_a_histogram_whose_bins_are_wrong_is_no_line(edges, counts):
    event = Histogram(time=1.0, step=1, key="h", edges=edges, counts=counts)
    with pytest.raises(LineError):
        encode(event)
    with pytest.raises(LineError):
        decode(msgspec.json.encode(event))


def test_a_histogram_of_too_many_bins_is_not_read():
    edges, counts = tuple(map(float, range(MAX_BINS + 2))), (0,) * (MAX_BINS + 1)
    event = Histogram(time=1.0, step=1, key="h", edges=edges, counts=counts)
    with pytest.raises(LineError, match="bins"):
        decode(msgspec.json.encode(event))


def test_a_histogram_with_an_odd_key():
    event = Histogram(time=1.0, step=1, key="\ud800\x1b[31m", edges=(0.0, 1.0), counts=(1,))
    assert decode(encode(event)).key == "?\x1b[31m"


def test_an_empty_histogram():
    event = Histogram(time=1.0, step=1, key="h", edges=(), counts=(), nonfinite_count=9)
    assert decode(encode(event)) == event
