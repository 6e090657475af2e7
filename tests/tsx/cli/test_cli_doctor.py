"""`tsx doctor`: a recipe's preflight, in a process of its own; nothing is recorded."""

from __future__ import annotations

import json

import pytest

from registry.events import Finding, Severity
from tsx.cli import doctor


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TSX_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.trainer
def test_a_healthy_recipe_has_nothing(tsx, home):
    done = tsx("doctor", "sanity", "--smoke", "--device", "cpu")
    assert done.status == 0, done.err
    assert done.out == "nothing was found; next: tsx run sanity\n"
    assert "sanity: 0 found in" in done.err
    assert not (home / "registry.db").exists()
    assert not (home / "runs").exists()


@pytest.mark.trainer
def test_a_warm_up_that_never_ends_is_found(tsx, home):
    done = tsx("doctor", "sanity", "--smoke", "--set", "optim.warmup_steps=10000", "--json")
    assert done.status == 1
    (finding,) = json.loads(done.out)["findings"]
    assert finding["kind"] == "lr"
    assert finding["run"] == "sanity"
    assert finding["evidence"]["mechanism"] == "warm-up-longer-than-run"


def test_every_run_of_a_sweep_is_looked_at_and_equal_findings_are_shown_once(
    tsx, home, monkeypatch
):
    looked = []

    def find(config, home):
        looked.append(config.train.seed)
        remark = Finding(time=0.0, kind="lr", severity=Severity.WARNING, cause="slow \x1b[31m")
        return [remark]

    monkeypatch.setattr(doctor, "list_findings", find)
    path = home / "two.toml"
    path.write_text('[sweep]\n"train.seed" = [1, 2]\n', encoding="utf-8")
    done = tsx("doctor", str(path))
    assert looked == [1, 2]
    assert done.status == 1
    assert done.out.count("slow") == 1
    assert "\x1b" not in done.out
    assert "(2 of 2)" in done.err


def test_an_info_is_no_failure(tsx, home, monkeypatch):
    remark = Finding(time=0.0, kind="throughput", severity=Severity.INFO, cause="padding")
    monkeypatch.setattr(doctor, "list_findings", lambda config, home: [remark])
    done = tsx("doctor", "sanity")
    assert (done.status, "padding" in done.out) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nope",), "no recipe 'nope'"),
        (("sanity", "--set", "model.top_k=99"), "top_k"),
        (("sanity", "--data", ""), "--data is empty"),
        (("sanity", "--data", "/no/such/file"), "/no/such/file"),
    ],
)
def test_bad_input_is_named(tsx, home, words, said):
    done = tsx("doctor", *words)
    assert done.status in (1, 2)
    assert said in done.err
