"""How a run begins: what it is called, what is refused, how it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import tsx
from registry.connection import find_url
from registry.errors import StoreError, UnknownRun
from registry.events import Metrics, RunEnded, RunStarted, Status
from registry.home import find_home
from registry.liveness import is_locked
from registry.store import Recorder
from tsx.errors import ConfigError, RegistryError

HOLDER = """
    import time, tsx
    run = tsx.init(name="held")
    run.log({"x": 1.0}, step=3)
    print(run.id, flush=True)
    time.sleep(600)
"""


def test_importing_tsx_loads_next_to_nothing():
    code = (
        "import sys; import tsx; tsx.__version__; dir(tsx); "
        "print(sorted(sys.modules.keys() & {'torch', 'numpy', 'sqlalchemy', 'msgspec', 'typer', "
        "'rich', 'alembic', 'psutil', 'asyncio', 'tsx.api', 'registry'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recording_never_imports_torch_or_numpy():
    code = (
        "import sys, tsx\n"
        "run = tsx.init(name='light', config={'lr': 1})\n"
        "run.log({'x': 1.0, 'y': 2, 'z': None})\n"
        "run.compute(lambda: 0.5)\n"
        "run._repr_html_()\n"
        "run.finish()\n"
        "print(sorted(sys.modules.keys() & {'torch', 'numpy', 'textual', 'typer', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_doors_are_named_and_lead_somewhere():
    assert set(tsx.__all__) <= set(dir(tsx))
    for name in tsx.__all__:
        assert callable(getattr(tsx, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tsx.nothing  # noqa: B018


def test_where_a_run_comes_from_is_recorded(read, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--api-key", "hunter2hunter2"])
    with tsx.init(config={"lr": 1, "seed": 3, "api_token": "hunter2hunter2"}) as run:
        pass
    found = read()
    assert found.run.id == run.id
    assert found.run.seed == 3
    assert found.run.steps == 0
    assert found.run.recipe == ""
    assert found.config["api_token"] == "[redacted]"
    assert found.environment["command"] == ["python", "train.py", "--api-key", "[redacted]"]
    assert found.environment["pid"] == os.getpid()
    assert found.environment["versions"]["python"]
    assert found.environment["cwd"] == os.getcwd()


def test_a_run_tells_its_id_in_one_line(capsys):
    run = tsx.init(name="first\x1b[31m")
    assert capsys.readouterr().err == (
        f"tsx: run {run.id} 'first\\x1b[31m' is recorded: tsx show {run.id}\n"
    )


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_quiet_run_says_nothing(way, capsys, monkeypatch):
    if way == "variable":
        monkeypatch.setenv("TSX_QUIET", "1")
    run = tsx.init(name="quiet", quiet=way == "argument")
    run.log({"x": "text"})
    run.finish()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argv", "labels", "name"),
    [
        (["/a/train.py"], {}, "train"),
        (["/a/mypackage/__main__.py"], {}, "mypackage"),
        (["-c"], {}, "run"),
        ([""], {}, "run"),
        (["/x/ipykernel_launcher.py"], {}, "notebook"),
        (["/a/train.py"], {"project": "toy"}, "toy"),
        (["/a/train.py"], {"project": "toy", "name": "first"}, "first"),
    ],
)
def test_a_run_has_a_name(argv, labels, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert tsx.init(**labels).name == name


def test_labels_are_text_of_a_bounded_length(read):
    with tsx.init(project="p" * 10**6, name=7, tags="one", note="n" * 10**6):
        pass
    run = read().run
    assert (len(run.project), run.name, run.tags, len(run.note)) == (200, "7", ("one",), 10_000)


def test_labels_are_one_line_and_a_blank_one_is_none_given(read, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/train.py"])
    with tsx.init(project=" toy\n2 ", name=" \t", tags=["a\nb", " "], note="two\nlines"):
        pass
    run = read().run
    assert (run.project, run.name, run.tags, run.note) == ("toy 2", "toy 2", ("a b",), "two\nlines")


def test_a_config_that_is_cut_is_told(read, capsys):
    with tsx.init(config={"text": "x" * 50_000_000, "lr": 1}):
        pass
    (finding,) = read().findings
    assert finding.kind == "config-cut"
    assert "text: 10,000 of 50,000,000 characters kept" in finding.cause
    assert finding.cause in capsys.readouterr().err
    assert read().config["lr"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": [1]},
        {"tags": 3},
        {"step": -1},
        {"step": "last"},
        {"step": 2**63},
        {"resume": True},
        {"resume": b"first"},
    ],
)
def test_an_argument_that_does_not_hold_is_refused_and_leaves_nothing(wrong, list_runs):
    with pytest.raises(ConfigError) as caught:
        tsx.init(**wrong)
    assert caught.value.__notes__[0].startswith("next: tsx.init(")
    assert list_runs() == []


def test_a_home_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((RegistryError, StoreError), match="file") as caught:
        tsx.init(name="x", home=tmp_path / "file")
    assert caught.value.__notes__


def test_home_chooses_the_folder(tmp_path, list_runs):
    with tsx.init(name="elsewhere", home=tmp_path / "other") as run:
        assert run.folder == tmp_path / "other" / "runs" / run.id
        assert (run.folder / "events.jsonl").is_file()
    assert list_runs() == []


def test_a_second_init_finishes_the_first_and_says_so(list_runs, capsys):
    first = tsx.init(name="first")
    first.log({"x": 1.0})
    second = tsx.init(name="second")
    assert first.is_finished
    assert f"tsx: run {first.id} is finished, for tsx.init was called again" in (
        capsys.readouterr().err
    )
    tsx.log({"x": 2.0})
    assert (first.step, second.step) == (1, 1)
    second.finish()
    assert [(run.name, run.status) for run in list_runs()] == [
        ("second", "completed"),
        ("first", "completed"),
    ]


def test_the_lock_is_held_as_long_as_the_run():
    run = tsx.init(name="locked")
    assert is_locked(run.folder) is True
    run.finish()
    assert is_locked(run.folder) is False


def test_a_resumed_run_goes_on_from_the_last_step(read, read_curve, capsys):
    with tsx.init(name="first", config={"lr": 1}, tags=["a"], project="toy") as run:
        for step in range(1, 6):
            run.log({"x": float(step)})
    again = tsx.init(resume=run.id[:6])
    assert (again.id, again.name, again.project, again.step) == (run.id, "first", "toy", 5)
    assert again.config == {"lr": 1}
    assert "goes on from step 5" in capsys.readouterr().err
    again.log({"x": 60.0})
    again.finish()
    assert read_curve("x") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, 60.0)]
    found = read()
    assert (found.run.status, found.run.tags, found.config) == ("completed", ("a",), {"lr": 1})
    assert [resume[1] for resume in found.resumes] == [5]


def test_a_resume_rewinds_the_curves_to_the_checkpoint(read, read_curve):
    with tsx.init(name="first") as run:
        for step in range(1, 6):
            run.log({"x": float(step)})
    with tsx.init(resume="@last", step=3, note="again", tags=["b"], config={"lr": 2}) as again:
        assert again.step == 3
        again.log({"x": 40.0})
    assert again.id == run.id
    assert read_curve("x") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    found = read()
    assert (found.run.note, found.run.tags, found.config) == ("again", ("b",), {"lr": 2})
    assert found.run.step == 4


def test_a_run_that_another_process_holds_is_refused_with_its_pid(start, read, list_runs):
    process = start(HOLDER)
    run_id = process.stdout.readline().strip()
    while not list_runs():  # within a second of its beginning it is known
        assert process.poll() is None
    with pytest.raises(ConfigError, match=f"run {run_id} .*'held'.* in process {process.pid}"):
        tsx.init(resume=run_id)
    process.kill()
    process.wait()
    assert read(run_id).run.status == "killed"
    with tsx.init(resume=run_id) as again:
        assert again.step == 3
    assert read(run_id).run.status == "completed"


def test_a_recipes_run_is_left_to_tsx_resume(read):
    home = find_home()
    recorder = Recorder(home / "runs" / "aaaa0000", find_url(home))
    recorder.emit(RunStarted(time=1.0, run_id="aaaa0000", name="sanity", recipe="sanity", steps=9))
    recorder.emit(Metrics(time=2.0, step=1, values={"x": 1.0}))
    recorder.emit(RunEnded(time=3.0, status=Status.FAILED, reason="x"))
    recorder.close()
    with pytest.raises(ConfigError, match="trains the recipe 'sanity'") as caught:
        tsx.init(resume="aaaa0000")
    assert caught.value.__notes__ == ["next: tsx resume aaaa0000"]
    assert read("aaaa0000").run.status == "failed"


def test_a_run_that_is_not_there_is_refused_with_the_nearest():
    with tsx.init(name="second") as run:
        pass
    with pytest.raises(UnknownRun, match="no run 'secnd'") as caught:
        tsx.init(resume="secnd")
    assert caught.value.__notes__ == ["nearest: second; next: tsx runs"]
    shutil.rmtree(run.folder)
    with pytest.raises(ConfigError, match="is not kept in"):
        tsx.init(resume=run.id)


def test_the_call_of_a_resumed_run_that_is_killed_says_which_process(start, read):
    with tsx.init(name="first") as run:
        run.log({"x": 1.0})
    process = start(
        f"""
        import time, tsx
        run = tsx.init(resume={run.id!r})
        run.log({{"x": 2.0}})
        print("logged", flush=True)
        time.sleep(600)
        """
    )
    assert process.stdout.readline() == "logged\n"
    process.kill()
    process.wait()
    found = read(run.id).run
    assert found.status == "killed"
    assert found.reason.startswith(f"process {process.pid} is gone")
    assert found.step == 2


def test_a_spawned_process_that_imports_the_script_again_records_nothing(run_program, list_runs):
    done = run_program(
        """
        import multiprocessing
        import tsx
        run = tsx.init(name="parent")
        run.log({"x": 1.0})

        def work():
            print("child", run.is_finished, flush=True)

        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=work)
            child.start()
            child.join()
            run.finish()
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "child False\n"
    assert [run.name for run in list_runs()] == ["parent"]


def test_a_run_inside_tsx_exec_names_it(monkeypatch, read):
    monkeypatch.setenv("TSX_RUN", "abcd1234")
    tsx.init(name="inner").finish()
    assert read().run.parent == "abcd1234"
