"""The only writer: hostile text inert, strict JSON, plain tables."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys

import pytest

from tsx.cli import output

NAN, INF = float("nan"), float("inf")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch, *, no_color="", term="xterm"):
    """Make stdout a terminal of 60 columns (in the test's body: pytest swaps stdout before it)."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred", "␛[31mred"),
        ("\x1b]0;title\x07", "␛]0;title\\x07"),
        ("a\rb", "a\\rb"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x9b2J", "\\x9b2J"),
        ("\x7f\x00", "\\x7f\\x00"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("half\udc80", "half\\udc80"),
        ("line\u2028para\u2029", "line\\u2028para\\u2029"),
        ("[red]markup[/red] :smile:", "[red]markup[/red] :smile:"),
        ("größe 大きさ 🙂", "größe 大きさ 🙂"),
    ],
)
def test_clean_shows_what_a_terminal_would_act_on(hostile, shown):
    assert output.clean(hostile) == shown


def test_clean_never_leaves_a_control_character():
    everything = "".join(map(chr, range(0x3000)))
    assert not [c for c in output.clean(everything) if ord(c) < 32 or 0x7F <= ord(c) < 0xA0]


def test_clean_bounds_the_length_and_counts_what_it_cut():
    assert output.clean("x" * 50, limit=10) == "x" * 10 + "... (+40 characters)"
    assert len(output.clean("\x1b" * 10**6)) < output.MAX_LINE + 100


def test_clean_takes_any_object():
    assert output.clean(3) == "3"


def test_lines_keep_their_newlines_only():
    assert output.clean_lines("a\r\nb\n\x1bc\td") == "a\nb\n␛c  d"


def test_data_goes_to_stdout_and_talk_to_stderr(capsys):
    output.data("data \x1b[2J")
    output.talk("talk \x1b[2J")
    captured = capsys.readouterr()
    assert captured.out == "data ␛[2J\n"
    assert captured.err == "talk ␛[2J\n"


def test_error_names_the_next_command(capsys):
    output.error("it broke", next_command="tsx runs")
    assert capsys.readouterr().err == "error: it broke\nnext: tsx runs\n"


def test_error_survives_a_closed_stderr(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stream = Gone()
    monkeypatch.setattr(sys, "stderr", stream)
    output.error("nobody hears")
    assert stream.getvalue() == ""


def test_color_on_a_terminal(monkeypatch):
    terminal = open_terminal(monkeypatch)
    output.data("fine", style="good")
    assert terminal.getvalue() == "\x1b[32mfine\x1b[0m\n"


@pytest.mark.parametrize("setting", [{"no_color": "1"}, {"term": "dumb"}])
def test_no_color_where_it_is_not_wanted(monkeypatch, setting):
    terminal = open_terminal(monkeypatch, **setting)
    output.data("fine", style="good")
    assert terminal.getvalue() == "fine\n"


def test_no_color_in_a_pipe(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    output.data("fine", style="good")
    assert capsys.readouterr().out == "fine\n"


def test_what_the_encoding_lacks_is_escaped(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    output.data("größe")
    stream.flush()
    assert raw.getvalue() == b"gr\\xf6\\xdfe\n"


def test_json_is_strict_and_ascii(capsys):
    output.json({"a": [NAN, INF, -INF, 1.5], "ö\x1b": (True, None), 3: "\u202e"})
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x1b" not in text
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert parsed == {
        "a": ["NaN", "Infinity", "-Infinity", 1.5],
        "ö\x1b": [True, None],
        "3": "\u202e",
    }


def test_json_keeps_every_digit(capsys):
    value = math.pi * 1e-30
    output.json([value])
    assert json.loads(capsys.readouterr().out) == [value]


def test_json_refuses_what_it_has_no_form_for():
    with pytest.raises(TypeError, match="object"):
        output.json({"a": object()})


def test_plain_table_is_aligned(capsys):
    output.table(["name", output.Column("n", right=True)], [("大", 5), ("abc", 12345)])
    assert capsys.readouterr().out == "name      n\n大        5\nabc   12345\n"


def test_plain_table_stands_on_one_line_a_row(capsys):
    output.table(["name"], [("a\nb\x1b[31m",), ("y" * 1000,)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "a\\nb␛[31m"
    assert len(lines) == 3
    assert len(lines[2]) < output.MAX_CELL + 30


def test_empty_table_has_its_head(capsys):
    output.table(["id", "name"], [])
    assert capsys.readouterr().out == "id  name\n"


def test_row_of_wrong_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        output.table(["a", "b"], [("only one",)])


def test_drawn_table_reads_no_markup(monkeypatch):
    terminal = open_terminal(monkeypatch)
    output.table(
        ["[bold]name[/bold]", output.Column("n", style="good")],
        [("[red]x[/red] [link=file:///]y", output.Cell("[/]", "bad"))],
    )
    drawn = terminal.getvalue()
    assert "[bold]name[/bold]" in drawn
    assert "[red]x[/red] [link=file:///]y" in drawn
    assert "\x1b[31m[/]" in drawn


def test_drawn_table_fits_the_terminal(monkeypatch):
    terminal = open_terminal(monkeypatch)
    output.table(["name", "text"], [("n", "word " * 35)])
    drawn = re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue())
    assert drawn.count("word") == 35
    assert max(map(len, drawn.splitlines())) <= 60


def test_closed_stream_is_no_terminal():
    stream = io.StringIO()
    stream.close()
    assert not output.is_terminal(stream)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("verb", ["--version", "runs", "show nothing"])
def test_closed_streams_change_nothing_but_what_is_seen(closed, verb):
    line = f'"$0" -m tsx {verb} {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True)
    assert done.returncode == (1 if verb == "show nothing" else 0)
    assert "Traceback" not in done.stderr


def test_what_nobody_reads_goes_nowhere(monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script = "from tsx.cli import output\nimport os\n"
    script += "ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 1)\n"
    script += "output.data('lost')\noutput.abandon_broken()\noutput.data('x' * 100)\n"
    script += "output.flush()\noutput.talk('still here')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "still here\n")
