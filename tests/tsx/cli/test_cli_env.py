"""tsx env, and where things lie."""

from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest

from registry.home import find_home
from tsx.cli import env


def test_env_as_json(tsx, tmp_path):
    facts = json.loads(tsx("env", "--no-device", "--json").out)
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["paths"]["home"] == str(tmp_path / "tsx-home")
    assert facts["paths"]["registry"].endswith("registry.db")
    assert facts["machine"]["cores"] >= 1
    assert facts["device"] == {"asked": False}


def test_env_as_text_is_a_table(tsx):
    done = tsx("env", "--no-device")
    assert done.status == 0
    assert any(line.split()[:2] == ["versions", "torch"] for line in done.out.splitlines())


def test_no_secret_is_shown(tsx, monkeypatch):
    monkeypatch.setenv("TSX_REGISTRY", "postgresql://me:hunter2hunter2@db.example/tsx")
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeed")
    for flags in ((), ("--json",)):
        done = tsx("env", "--no-device", *flags)
        assert "hunter2" not in done.out
        assert "verysecret" not in done.out
        assert "db.example" in done.out
    facts = json.loads(tsx("env", "--no-device", "--json").out)
    assert facts["tokens"]["HF_TOKEN"] is True


@pytest.mark.parametrize("url", ["me:hunter2hunter2@host", "pg://me:hunter2@hunter2:x/db"])
def test_no_password_of_a_malformed_url_is_shown(tsx, monkeypatch, url):
    monkeypatch.setenv("TSX_REGISTRY", url)
    for flags in ((), ("--json",)):
        assert "hunter2hunter2" not in tsx("env", "--no-device", *flags).out
        assert "me:hunter2" not in tsx("env", "--no-device", *flags).out


def test_token_nobody_reads_is_named(tsx, monkeypatch):
    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", "hf_verysecretindeed")
    assert "reads HF_TOKEN" in tsx("env", "--no-device").err


def test_hostile_variable_is_inert(tsx, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/tmp/\x1b[2J")
    done = tsx("env", "--no-device")
    assert "\x1b" not in done.out
    assert "/tmp/␛[2J" in done.out


@pytest.mark.trainer
def test_device_probe_asks_torch():
    found = env.probe_device()
    assert found["asked"] is True
    assert found["default"] in {"cpu", "cuda", "mps"}
    assert found["threads"] >= 1


def test_device_probe_that_crashes_is_reported(monkeypatch):
    monkeypatch.setattr(env, "_PROBE", "raise RuntimeError('driver on fire')")
    found = env.probe_device()
    assert "exit status 1" in found["error"]
    assert "driver on fire" in found["error"]


def test_device_probe_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(env, "_PROBE", "import time; time.sleep(60)")
    assert "timed out" in env.probe_device(timeout_s=0.2)["error"]


def test_device_probe_that_talks_nonsense_is_reported(monkeypatch):
    monkeypatch.setattr(env, "_PROBE", "print('hello')")
    assert "error" in env.probe_device()


@pytest.mark.parametrize("named", ["", "~/somewhere", "relative/home", "/absolute"])
def test_home_is_an_absolute_path_whatever_is_named(monkeypatch, named):
    monkeypatch.setenv("TSX_HOME", named)
    assert find_home().is_absolute()
    assert "~" not in str(find_home())
