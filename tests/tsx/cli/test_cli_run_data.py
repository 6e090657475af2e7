"""tsx run --data and --allow-nonfinite: what they set, and what they refuse."""

from __future__ import annotations

import pytest


@pytest.fixture
def planned(tsx, monkeypatch):
    """Return a function from flags to the [data] section a dry run would prepare."""
    from tsx.cli import run

    plans = []
    monkeypatch.setattr(run, "_rehearse", lambda asked, home: plans.extend(asked) or 0)

    def plan(*flags):
        assert tsx("run", "sanity", "--dry-run", *flags).status == 0
        return plans[-1].config.data

    return plan


def test_data_is_kept_as_an_absolute_path(planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert planned().path is None
    assert planned("--data", "it's/here").path == str(tmp_path / "it's" / "here")


def test_nonfinite_points_are_refused_unless_the_flag_says_otherwise(planned):
    assert planned().allow_nonfinite is False
    assert planned("--allow-nonfinite").allow_nonfinite is True


def test_an_empty_path_is_not_taken_for_the_default(tsx):
    done = tsx("run", "sanity", "--dry-run", "--data", "")
    assert (done.status, done.out) == (2, "")
    assert "--data is empty" in done.err
