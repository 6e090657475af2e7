"""tsx run of a search: its flags, what it tells, its table now and later."""

from __future__ import annotations

import json
import time

import pytest

from registry.connection import find_url
from registry.events import Finding, Metrics, RunEnded, RunPrepared, Severity, Status
from registry.store import Recorder
from tsx.cli import search, search_table
from tsx.errors import ConfigError
from tsx.launch.exit_reason import EXIT_OF_STATUS, Ending
from tsx.launch.supervise import Supervisor

PROBE = ("run", "pointwise-probe", "--device", "cpu")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that makes trials up to a batch fit, through the registry alone."""
    monkeypatch.setattr("tsx.launch.search.read_free_gib", lambda: 1e6)

    def install(most, at=None):
        tried = []

        def run_all(self, plans, provenance):
            home = tmp_path / "tsx-home"
            endings = []
            for plan in plans:
                size = plan.config.train.batch_size
                tried.append(plan)
                status = (at or {}).get(size, Status.COMPLETED if size <= most else Status.OOM)
                folder = home / "runs" / plan.run_id
                self._record_start(folder, plan, provenance).release()
                events = list_events(plan, size, status)
                recorder = Recorder(folder, find_url(home))
                self._observer.begin(plan.run_id, plan.name, plan.config)
                for event in events:
                    recorder.emit(event)
                    self._observer.see(event)
                recorder.close()
                endings.append(Ending(status, "", EXIT_OF_STATUS[status]))
                self._observer.tick()
                self._observer.finish(plan.run_id, endings[-1])
            return endings

        monkeypatch.setattr(Supervisor, "run_all", run_all)
        return tried

    return install


def list_events(plan, size, status):
    """Return what a trial of a batch records: twice the batch takes twice as long."""
    now = time.time()
    facts = {"device": "cpu", "device_name": "Test CPU", "precision": "fp32", "data_source": "demo"}
    lint = Finding(time=now, kind="config-lint", severity=Severity.WARNING, cause="odd \x1b[31m")
    speed = {
        "train/step_time_ms": 10.0 * size,
        "train/toks_per_sec": 51_200.0,
        "train/points_per_sec": 51_200.0,
        "train/mfu": 42.0,
    }
    peak = {"sys/peak_mem_gib": 0.25 * size + 0.5, "sys/base_mem_gib": 0.5}
    values = speed | peak if status is Status.COMPLETED else peak
    return [
        RunPrepared(time=now, pid=1, data_fingerprint="demo", **facts),
        lint,
        Metrics(time=now, step=plan.config.train.steps, values=values),
        RunEnded(time=now, status=status, exit_code=EXIT_OF_STATUS[status]),
    ]


def list_rows(out):
    """Return value -> the words of its row."""
    rows = [line.split() for line in out.splitlines()]
    return {int(words[0]): words[1:] for words in rows if words and words[0].isdigit()}


def test_the_probe_ends_in_a_table_and_the_largest_batch(tsx, machine):
    tried = machine(24)
    done = tsx(*PROBE, "--memory-budget", "8GiB", "--start", "8")
    assert done.status == 0
    rows = list_rows(done.out)
    assert list(rows) == [8, 16, 24, 25, 26, 28, 32]
    assert rows[24][:6] == ["fits", "240.0", "51,200", "51,200", "42.00", "6.00"]
    assert rows[25][:2] == ["oom", ">6.25"]
    last = done.out.splitlines()[-1]
    assert last == (
        "largest train.batch_size that fits in 8 GiB: 24; the next tried, 25, ran out of memory"
    )
    assert {plan.config.perf.memory_budget_gib for plan in tried} == {8.0}
    assert {plan.config.train.checkpoint_every for plan in tried} == {0}
    assert "trial 3: train.batch_size=32" in done.err
    assert "trial 4: train.batch_size=24; at most 4 to go" in done.err
    assert done.err.count("config-lint") == 1  # every trial has it
    assert "\x1b" not in done.err
    assert "tsx run pointwise-probe --set train.batch_size=24" in done.err


def test_every_row_holds_prediction_against_measurement(tsx, machine):
    from tsx.perf.footprint import predict_peak_gib

    tried = machine(9)
    document = json.loads(tsx(*PROBE, "--start", "8", "--limit", "16", "--json").out)
    by_value = {plan.config.train.batch_size: plan for plan in tried}
    assert [trial["value"] for trial in document["trials"]] == sorted(by_value)
    for trial in document["trials"]:
        plan = by_value[trial["value"]]
        assert trial["run"] == plan.run_id
        assert trial["predicted_gib"] == pytest.approx(predict_peak_gib(plan.config))
        assert trial["peak_gib"] == 0.25 * trial["value"]
    assert (document["largest"], document["next_tried"]) == (9, 10)


def test_the_table_can_be_shown_again(tsx, machine):
    tried = machine(24)
    done = tsx(*PROBE, "--start", "8")
    again = tsx("show", tried[0].parent)
    assert (again.status, again.out, again.err) == (0, done.out, "")
    document = json.loads(tsx("show", tried[0].parent, "--json").out)
    assert document["search"] == tried[0].parent
    assert document["sentence"] == done.out.splitlines()[-1]
    listed = json.loads(tsx("runs", "--json", "--tag", "search:train.batch_size").out)["runs"]
    assert {run["status"] for run in listed} == {"completed", "oom"}
    assert {run["parent"] for run in listed} == {tried[0].parent}
    assert tsx("show", "pointwise-probe-b24").status == 0


def test_a_search_that_is_not_there_is_an_unknown_run(tsx, record):
    record("aaaaaaaa", "search-mine", {"train/loss": [1.0]})
    assert tsx("show", "search-mine").out.startswith("search-mine")
    assert tsx("show", "search-aaaaaaaa").status == 1


def test_when_nothing_fits_the_status_is_out_of_memory(tsx, machine):
    machine(0)
    done = tsx(*PROBE, "--memory-budget", "64MiB", "--start", "2")
    assert done.status == 5
    assert done.out.splitlines()[-1] == (
        "no train.batch_size fits in 0.0625 GiB: the smallest tried, 1, ran out of memory"
    )


def test_when_the_limit_fits_it_is_said(tsx, machine):
    machine(1000)
    done = tsx(*PROBE, "--start", "8", "--limit", "20")
    assert list(list_rows(done.out)) == [8, 16, 20]
    last = "largest train.batch_size that fits on cpu: 20; nothing larger was tried"
    assert done.out.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("status", "code"),
    [(Status.FAILED, 1), (Status.DIVERGED, 4), (Status.INTERRUPTED, 130)],
)
def test_another_end_of_a_trial_ends_the_search_with_what_is_known(tsx, machine, status, code):
    machine(20, {24: status})
    done = tsx(*PROBE, "--start", "8")
    assert done.status == code
    assert f"the search ended: the trial of train.batch_size=24 {status}" in done.err
    assert list_rows(done.out)[24][0] == status
    assert done.out.splitlines()[-1] == (
        "largest train.batch_size that fits on cpu: 16; the next tried, 32, ran out of memory; "
        "values in between were not tried"
    )


def test_what_is_left_out_by_prediction_is_said_as_such(tsx, machine, monkeypatch):
    machine(1000)
    monkeypatch.setattr("tsx.launch.search.read_free_gib", lambda: 10.0)
    done = tsx(*PROBE, "--start", "4")
    assert done.status == 0
    rows = list_rows(done.out)
    assert {words[0] for words in rows.values()} == {"fits", "not"}
    assert "oom" not in done.out
    largest = max(value for value, words in rows.items() if words[0] == "fits")
    assert f"on cpu: {largest}; the next tried, {largest + 1}, was not tried: " in done.out
    assert "GiB by prediction, more than 90% of the 10.0 GiB that are free" in done.out


def test_the_model_grows_instead_of_the_batch(tsx, machine):
    tried = machine(128)
    done = tsx(*PROBE, "--grow", "model.hidden_size", "--limit", "1000")
    assert done.status == 0
    assert [plan.config.model.hidden_size for plan in tried] == [384, 768, 984]
    assert {plan.config.train.batch_size for plan in tried} == {128}
    assert [plan.config.model.ff_width for plan in tried] == [4 * 384, 4 * 768, 4 * 984]
    assert "largest model.hidden_size that fits on cpu: 984" in done.out


def test_any_recipe_can_be_searched_and_a_set_key_is_where_it_starts(tsx, machine):
    tried = machine(7)
    line = ("run", "sanity", "--device", "cpu", "--grow", "train.batch_size")
    assert tsx(*line, "--set", "train.batch_size=4", "--name", "mine").status == 0
    assert [plan.config.train.batch_size for plan in tried] == [4, 8, 6, 7]
    assert [plan.name for plan in tried] == ["mine-b4", "mine-b8", "mine-b6", "mine-b7"]
    assert tsx(*line, "--set", "eval.every=2").status == 0
    assert tried[-1].config.eval.every == 2


def test_setting_the_searched_key_is_a_plain_run(tsx, machine):
    tried = machine(1000)
    done = tsx(*PROBE, "--set", "train.batch_size=4")
    assert done.status == 0
    (plan,) = tried
    assert (plan.parent, plan.name, plan.config.train.steps) == ("", "pointwise-probe", 200)


def test_a_budget_holds_for_a_plain_run(tsx, machine):
    tried = machine(1000)
    assert tsx("run", "sanity", "--memory-budget", "512MiB").status == 0
    assert tried[0].config.perf.memory_budget_gib == 0.5


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("8GiB", 8.0),
        ("8 gib", 8.0),
        ("8", 8.0),
        ("1.5", 1.5),
        (".5GiB", 0.5),
        ("512MiB", 0.5),
        ("8GB", 8e9 / 2**30),
        ("500 MB", 5e8 / 2**30),
    ],
)
def test_a_budget_is_read(text, gib):
    assert search.parse_budget(text) == pytest.approx(gib)


@pytest.mark.parametrize(
    "text",
    ["8 parsecs", "", " ", "GiB", "-8GiB", "0", "0.0GiB", "nan", "inf", "1e3", "8GiB8", "9" * 400],
)
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="expected an amount of memory"):
        search.parse_budget(text)


@pytest.mark.parametrize("text", ["1MiB", "31MiB", "0.001"])
def test_a_budget_that_no_process_can_live_with_is_refused_as_it_was_typed(text):
    with pytest.raises(ConfigError, match=f"--memory-budget '{text}'") as caught:
        search.parse_budget(text)
    assert caught.value.next_command == "--memory-budget 32MiB"
    assert search.parse_budget("32MiB") == 1 / 32


def test_a_search_cut_off_in_a_trial_says_which():
    unknown = dict.fromkeys(
        ("step_time_ms", "toks_per_sec", "points_per_sec", "mfu", "peak_gib", "predicted_gib")
    )
    rows = (
        search_table.Row(value=8, status="completed", reason="", run="a", **unknown),
        search_table.Row(value=16, status="interrupted", reason="SIGINT", run="b", **unknown),
    )
    table = search_table.SearchTable("search-x", "train.batch_size", "cpu", None, rows)
    said = search_table.describe(table)
    assert said.endswith("that fits on cpu: 8; the trial of 16 was interrupted")


BAD_LINES = {
    (*PROBE, "--memory-budget", "8 parsecs"): "--memory-budget '8 parsecs'",
    (*PROBE, "--grow", "optim.lr"): "--grow 'optim.lr' is no positive whole number",
    (*PROBE, "--grow", "model.hiden_size"): "did you mean 'model.hidden_size'",
    (*PROBE, "--grow", "batch_size"): "did you mean 'eval.batch_size' or 'train.batch_size'",
    (*PROBE, "--grow", "model.d_ff"): "model.d_ff is not set: there is no value to start from",
    (
        *PROBE,
        "--grow",
        "model.top_k",
    ): "recipe 'pointwise-probe' [model] top_k=16 exceeds num_experts=8",
    (*PROBE, "--start", "9", "--limit", "8"): "starts at 9, above its limit of 8",
    (*PROBE, "--limit", "8"): "starts at 128, above its limit of 8",
    (*PROBE, "--start", "0"): "--start",
    (*PROBE, "--start", "9" * 30): "--limit",
    (*PROBE, "--limit", "many"): "--limit",
    (*PROBE, "--start", "100", "--grow", "model.hidden_size"): "hidden_size=100 is not divisible",
    (*PROBE, "--seeds", "2"): "--seeds 2",
    (*PROBE, "--detach"): "--detach",
    ("run", "sanity", "--start", "3"): "--start is for a search",
    ("run", "sanity", "--limit", "3"): "--limit is for a search",
    ("run", "sanity", "--json"): "--json prints a search's table",
    ("run", "sanity", "--grow", "model.horizons"): "is no positive whole number",
}


@pytest.mark.parametrize("words", BAD_LINES, ids=" ".join)
def test_a_bad_line_names_the_value_and_what_to_type(tsx, machine, tmp_path, words):
    tried = machine(1000)
    done = tsx(*words)
    assert (done.status, done.out, tried) == (2, "", [])
    assert BAD_LINES[words] in done.err
    assert done.err.splitlines()[-1].startswith("next: ")
    assert not (tmp_path / "tsx-home" / "runs").exists()


def test_a_sweep_cannot_grow_until_it_is_pinned(tsx, machine, tmp_path, monkeypatch):
    folder = tmp_path / "tsx-recipes"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (folder / "mine.toml").write_text("[sweep]\nmodel.top_k = [1, 2]\n")
    machine(40)
    line = ("run", "mine", "--device", "cpu", "--grow", "train.batch_size")
    done = tsx(*line)
    assert (done.status, done.out) == (2, "")
    assert "recipe 'mine' sweeps model.top_k" in done.err
    assert tsx(*line, "--set", "model.top_k=1").status == 0


def test_a_dry_run_prepares_the_first_trial_alone(tsx, machine, monkeypatch):
    prepared = []
    monkeypatch.setattr(
        "tsx.launch.rehearse.iter_rehearsal", lambda config, home: prepared.append(config) or ()
    )
    tried = machine(1000)
    done = tsx(*PROBE, "--dry-run")
    assert (done.status, tried) == (0, [])
    assert [config.train.batch_size for config in prepared] == [128]
    assert prepared[0].train.steps == 6
    assert "GiB by prediction" in done.err
    assert "dry run: the largest train.batch_size that fits, from 128 up to 65536" in done.err


# Some 40 MiB a window, so that few trials tell; through the same code as any search.
SMALL = (
    *("model.hidden_size=64", "model.num_heads=2", "model.num_layers=2", "model.num_experts=2"),
    *("data.context_length=1024", "data.demo_series=4", "perf.mfu_peak_tflops=0.1"),
)


@pytest.mark.slow
@pytest.mark.trainer
def test_a_real_search_finds_the_batch_after_which_memory_runs_out(tsx):
    sets = [word for text in SMALL for word in ("--set", text)]
    done = tsx(*PROBE, *sets, "--memory-budget", "256MiB", "--start", "2", "--json")
    assert done.status == 0, done.err
    document = json.loads(done.out)
    trials = {trial["value"]: trial for trial in document["trials"]}
    largest = document["largest"]
    assert trials[largest]["status"] == "completed"
    assert trials[largest + 1]["status"] == "oom"
    assert "out of memory with [train] batch_size" in trials[largest + 1]["reason"]
    listed = json.loads(tsx("runs", "--json", "--status", "oom").out)["runs"]
    assert trials[largest + 1]["run"] in {run["id"] for run in listed}
    assert trials[largest]["step_time_ms"] > 0
    nothing = tsx(*PROBE, *sets, "--memory-budget", "32MiB", "--start", "1", "--json")
    assert nothing.status == 5
    assert json.loads(nothing.out)["largest"] is None
