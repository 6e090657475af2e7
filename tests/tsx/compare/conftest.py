"""Runs as the registry returns them, made by hand."""

import math

import pytest

from registry.views import MetricSummary, RunDetail, RunRow
from tsx.config import RunConfig, to_plain


def make_summary(key, values):
    finite = [(value, step) for step, value in enumerate(values, 1) if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else ((math.nan, 0), (math.nan, 0))
    bad = len(values) - len(finite)
    return MetricSummary(key, values[-1], len(values), *low, *high, len(values), bad)


@pytest.fixture
def make_detail():
    """Return a function that makes a RunDetail: config changes by dotted key, metrics by lists."""

    def make(
        run_id="aaaaaaaa", name="one", *, set_keys=None, metrics=None, environment=None, **row
    ):
        config = to_plain(RunConfig())
        for key, value in (set_keys or {}).items():
            section, _, leaf = key.partition(".")
            config[section][leaf] = value
        fields = {"recipe": "sanity", "status": "completed", "reason": "", "created": 0.0}
        fields |= {"ended": 9.0, "step": 3, "steps": 3, "tags": (), "parent": "", "note": ""}
        fields |= {"seed": 0, "smoke": False, "device": "cpu", "precision": "fp32"}
        fields |= {"data_source": "demo", "host": "box"} | row
        run = RunRow(id=run_id, name=name, **fields)
        summaries = {key: make_summary(key, values) for key, values in (metrics or {}).items()}
        facts = {"data_fingerprint": "f00d"} | (environment or {})
        return RunDetail(run, config, facts, summaries, (), (), (), ())

    return make
