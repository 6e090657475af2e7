"""Secrets are taken out of everything, and ordinary text is left alone."""

from __future__ import annotations

import pytest

from registry.codec import decode, encode
from registry.events import Finding, Output, RunStarted, Severity
from registry.redact import REDACTED, Redactor

PLAIN = Redactor()


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_SECRET", "DB_PASSWORD", "apikey"],
)
def test_values_of_secret_variables_go_wherever_they_are(name):
    redactor = Redactor.from_environ({name: "s3cr3t.value", "HOME": "/home/of/all"})
    assert redactor.text("a s3cr3t.value b /home/of/all") == f"a {REDACTED} b /home/of/all"
    assert redactor.data({"a": ["xs3cr3t.valuex"]}) == {"a": [f"x{REDACTED}x"]}
    assert redactor.argv(["tsx", "--note", "s3cr3t.value"]) == ["tsx", "--note", REDACTED]


def test_short_values_do_not_blot_out_text():
    assert Redactor.from_environ({"X_KEY": "1", "Y_TOKEN": ""}).text("11 of 1") == "11 of 1"


def test_a_longer_secret_goes_before_one_inside_it():
    redactor = Redactor.from_environ({"A_TOKEN": "abcdef", "B_TOKEN": "abcdefghij"})
    assert redactor.text("abcdefghij") == REDACTED


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("HF_TOKEN=hunter2", "hunter2"),
        ("export API_KEY='hunter 2'", "hunter 2"),
        ("--token hunter2", "hunter2"),
        ("--api-key=hunter2", "hunter2"),
        ('{"password": "hunter \\"2"}', "hunter"),
        ('{\\"db_password\\": \\"hunter2\\"}', "hunter2"),
        ("password: 123456", "123456"),
        ("https://me:hunter2@example.org/x", "hunter2"),
        ("postgresql+psycopg://me:hun@ter2@host/db", "ter2"),
        ("Authorization: Bearer abcdefghijklmnop", "abcdefghijklmnop"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "hf_abcdef"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----", "hunter2"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2 and never ended", "hunter2"),
    ],
)
def test_secrets_by_shape(text, secret):
    safe = PLAIN.text(text)
    assert secret not in safe
    assert REDACTED in safe
    assert PLAIN.text(safe) == safe


@pytest.mark.parametrize(
    "text",
    [
        "step=10 loss=1.2 toks/s=23,243 mfu=5.59%",
        "sorted(names, key=len)",
        '{"key": "train/loss", "keys": ["a"]}',
        "flops_per_token=297345024",
        "tokens=1234567 num_tokens: 99999999",
        "use_auth_token=None, return_token=True",
        "see https://example.org/a:b@c",
        "keyboard: german",
    ],
)
def test_ordinary_text_stays(text):
    assert PLAIN.text(text) == text


def test_argument_lists_keep_their_length():
    line = [
        "tsx",
        "run",
        "--hub-token",
        "hunter2",
        "--set",
        "x.api_key=hunter2",
        "--max-token",
        "9",
    ]
    assert PLAIN.argv(line) == (
        [*line[:3], REDACTED, "--set", f"x.api_key={REDACTED}", "--max-token", "9"]
    )


def test_data_by_key():
    data = {"api_key": "hunter2", "token": 5, "key": "optim.lr", "deep": [{"secret": "hunter2"}]}
    assert PLAIN.data(data) == (
        {"api_key": REDACTED, "token": 5, "key": "optim.lr", "deep": [{"secret": REDACTED}]}
    )


def test_depth_is_bounded():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert "nested too deep" in str(PLAIN.data(nested))


@pytest.mark.parametrize("hostile", ["a", "key ", "token=", '"', "://:", "a:", "--token ", "\\"])
def test_hostile_text_takes_linear_time(hostile):
    assert isinstance(PLAIN.text('password="' + hostile * 100_000), str)


def test_every_recorded_place_is_redacted(monkeypatch):
    monkeypatch.setenv("TEST_TOKEN", "hunter2.token")
    events = (
        RunStarted(
            time=1.0,
            run_id="a",
            name="hunter2.token",
            note="hunter2.token",
            tags=("hunter2.token",),
            config={"data": {"path": "s3://x:hunter2.token@y"}, "hunter2.token": 1},
            command=("tsx", "--password", "other"),
            git_diff="+TOKEN = 'hunter2.token'",
        ),
        Output(time=1.0, stream="stdout", text="hunter2.token"),
        Finding(time=1.0, kind="k", severity=Severity.INFO, evidence={"x": ["hunter2.token"]}),
    )
    for event in events:
        line = encode(event)
        assert b"hunter2" not in line
        assert b"other" not in line
        assert type(decode(line)) is type(event)
