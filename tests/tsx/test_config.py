"""RunConfig: what is refused and how, canonical JSON, fingerprint, round trip."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import msgspec
import pytest

from tsx import config as configs
from tsx.config import RunConfig, canonical_json, decode, fingerprint, list_keys, to_plain
from tsx.errors import ConfigError, Exit

NAN, INF = float("nan"), float("inf")


def refused(raw):
    """Decode what must be refused; return the message."""
    with pytest.raises(ConfigError) as caught:
        decode(raw, place="recipe 'x'")
    assert caught.value.message.startswith("recipe 'x'")
    assert caught.value.exit_code == Exit.USAGE
    assert len(caught.value.message) < 600
    return caught.value.message


def test_nothing_given_is_all_defaults():
    assert decode({}) == RunConfig()


def test_unknown_section_offers_the_nearest():
    assert refused({"modle": {}}) == ("recipe 'x': unknown section [modle]; did you mean 'model'?")


def test_unknown_key_offers_the_nearest_and_shows_its_value():
    assert refused({"model": {"topk": 2}}) == (
        "recipe 'x' [model] topk=2: unknown key; did you mean 'top_k'?"
    )


def test_unknown_key_far_from_all_lists_the_valid_ones():
    assert "valid: on_nonfinite" in refused({"diagnostics": {"zzz": 2}})


@pytest.mark.parametrize("section", [3, "x", None, [], [1], NAN])
def test_section_that_is_no_table(section):
    assert "expected a table of keys" in refused({"model": section})


@pytest.mark.parametrize("raw", [3, None, [], "model", NAN])
def test_config_that_is_no_table(raw):
    assert "expected sections such as [model]" in refused(raw)


@pytest.mark.parametrize("key", [3, None, "", "a" * 10_000, "\x1b[31m"], ids=range(5))
def test_odd_names_are_unknown(key):
    assert "unknown" in refused({"model": {key: 1}})
    refused({key: {}})


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("train", "steps", "200", "steps='200': expected `int`, got `str`"),
        ("train", "steps", 2.0, "steps=2.0: expected `int`, got `float`"),
        ("train", "steps", True, "steps=True: expected `int`, got `bool`"),
        ("train", "steps", None, "steps=None: expected `int`, got `null`"),
        ("train", "steps", [1], "steps=[1]: expected `int`, got a list"),
        ("train", "steps", {"a": 1}, "expected `int`"),
        ("train", "steps", -1, "steps=-1: expected `int` >= 0"),
        ("train", "steps", 2**31, "expected `int` <= 2147483647"),
        ("train", "steps", 10**400, "steps="),
        ("train", "log_every", 0, "expected `int` >= 1"),
        ("train", "seed", -1, "seed=-1: expected `int` >= 0"),
        ("train", "seed", 2**63, "seed=9223372036854775808: expected `int`"),
        ("train", "device", "gpu", "device='gpu': invalid enum value 'gpu'; valid: auto, cpu"),
        ("train", "precision", "fp8", "valid: auto, fp32, bf16"),
        ("optim", "lr", "1e-3", "lr='1e-3': expected `float`, got `str`"),
        ("optim", "lr", True, "lr=True: expected `float`, got `bool`"),
        ("optim", "lr", 0, "lr=0: expected `float` > 0.0"),
        ("optim", "lr", -1e-3, "expected `float` > 0.0"),
        ("optim", "lr", 10**400, "lr="),
        ("optim", "beta1", 1.0, "expected `float` < 1.0"),
        ("optim", "min_lr_ratio", 1.5, "expected `float` <= 1.0"),
        ("optim", "schedule", "linear", "valid: cosine, constant"),
        ("data", "val_split", 1.0, "expected `float` < 1.0"),
        ("data", "include", "finance/*", "include='finance/*': expected a list, got `str`"),
        ("data", "include", ["a", 3], "include=['a', 3]: expected `str`, got `int`"),
        ("data", "path", 3, "path=3: expected `str`, got `int`"),
        ("data", "allow_nonfinite", 1, "expected `bool`, got `int`"),
        ("data", "demo_series", 10_001, "demo_series=10001: expected `int` <= 10000"),
        ("data", "source", "hub", "valid: auto, time300b, demo"),
        ("model", "horizons", [0], "horizons=[0]: expected `int` >= 1"),
        ("model", "horizons", [1, True], "expected `int`, got `bool`"),
        ("model", "horizons", 8, "horizons=8: expected a list"),
        ("model", "d_ff", 0, "d_ff=0: expected `int` >= 1"),
        ("model", "d_ff", "x" * 10_000, "xxx...: expected `int`"),
        ("eval", "batch_size", -1, "expected `int` >= 1"),
    ],
)
def test_wrong_value_has_place_value_and_what_was_expected(section, key, value, expected):
    message = refused({section: {key: value}})
    assert message.startswith(f"recipe 'x' [{section}] {key}=")
    assert expected in message


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_no_float_may_be_non_finite(value):
    defaults = to_plain(RunConfig())
    floats = [path for path in list_keys() if isinstance(get(defaults, path), float)]
    assert {"optim.lr", "model.rope_theta", "data.val_split"} <= set(floats)
    for path in [*floats, "perf.mfu_peak_tflops"]:
        section, key = path.split(".")
        message = refused({section: {key: value}})
        assert message == f"recipe 'x' [{section}] {key}={value}: expected a finite number"


def test_non_finite_inside_a_list_is_refused_too():
    assert "finite" in refused({"model": {"horizons": [1, NAN]}})


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "ok\udcff"])
def test_text_that_no_file_system_holds(text):
    assert "expected text without NUL or broken Unicode" in refused({"data": {"path": text}})
    assert "expected text without NUL" in refused({"data": {"include": [text]}})


def test_unicode_text_is_welcome():
    assert decode({"data": {"path": "/größe/大"}}).data.path == "/größe/大"


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ({"top_k": 9}, {}, "[model] top_k=9 exceeds num_experts=8"),
        ({"hidden_size": 100, "num_heads": 12}, {}, "hidden_size=100 is not divisible by"),
        ({"hidden_size": 36, "num_heads": 12}, {}, "head_dim=3; rotary embedding needs an even"),
        ({"horizons": []}, {}, "horizons=[]: one or more, each once"),
        ({"horizons": [1, 8, 1]}, {}, "horizons=[1, 8, 1]: one or more, each once"),
        ({"patch_len": 32}, {"context_length": 500}, "context_length=500 is not a multiple of"),
        ({"d_ff": 1, "top_k": 2}, {}, "top_k=2 leaves no width for an expert of d_ff=1"),
    ],
)
def test_contradictions_name_both_values(model, data, expected):
    assert expected in refused({"model": model, "data": data})


def test_integers_are_taken_for_floats_and_stay_equal():
    assert decode({"optim": {"lr": 1}}) == decode({"optim": {"lr": 1.0}})
    assert fingerprint(decode({"optim": {"lr": 1}})) == fingerprint(decode({"optim": {"lr": 1.0}}))


def test_config_is_frozen():
    config = decode({})
    with pytest.raises(AttributeError):
        config.train.steps = 3


def test_round_trip_through_plain_data_and_json():
    config = decode({"model": {"horizons": [1], "top_k": 1}, "data": {"include": ["a/*", "b"]}})
    assert decode(to_plain(config)) == config
    assert decode(json.loads(canonical_json(config))) == config


def test_decoding_leaves_its_input_alone():
    raw = {"model": {"horizons": [1, 8]}, "train": {"steps": 3}}
    before = copy.deepcopy(raw)
    decode(raw)
    assert raw == before


def test_canonical_json_does_not_depend_on_order():
    one = decode({"train": {"steps": 3, "seed": 1}, "optim": {"lr": 0.1}})
    two = decode({"optim": {"lr": 0.1}, "train": {"seed": 1, "steps": 3}})
    assert canonical_json(one) == canonical_json(two)
    parsed = json.loads(canonical_json(one))
    assert list(parsed) == sorted(parsed)


def test_canonical_json_and_fingerprint_are_the_same_in_another_process():
    code = (
        "from tsx.config import *; c = decode({'model': {'top_k': 1}, 'optim': {'lr': 1e-4}});"
        "print(canonical_json(c)); print(fingerprint(c))"
    )
    config = decode({"model": {"top_k": 1}, "optim": {"lr": 1e-4}})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [canonical_json(config), fingerprint(config)]


def test_canonical_json_keeps_every_digit():
    lr = math.pi * 1e-4
    assert json.loads(canonical_json(decode({"optim": {"lr": lr}})))["optim"]["lr"] == lr


def test_fingerprint_is_16_hex_digits():
    text = fingerprint(decode({}))
    assert len(text) == 16
    assert int(text, 16) >= 0


def test_fingerprint_changes_with_every_value():
    base = to_plain(RunConfig())
    seen = {fingerprint(RunConfig())}
    for path in list_keys():
        section, key = path.split(".")
        changed = copy.deepcopy(base)
        changed[section][key] = another(path, changed[section][key])
        seen.add(fingerprint(msgspec.convert(changed, RunConfig)))
    assert len(seen) == 1 + len(list_keys())


def test_list_keys_names_every_key_once():
    plain = to_plain(RunConfig())
    assert list(list_keys()) == [f"{section}.{key}" for section in plain for key in plain[section]]


@pytest.mark.parametrize(
    ("steps", "given", "expected"),
    [(200, None, 20), (5, None, 0), (10**6, None, 10_000), (80, 10_000, 10_000), (80, 0, 0)],
)
def test_warm_up_defaults_to_a_tenth_of_the_run(steps, given, expected):
    optim = {} if given is None else {"warmup_steps": given}
    assert decode({"train": {"steps": steps}, "optim": optim}).warmup_steps == expected


def test_widths_default_to_the_paper_s_ratios():
    model = decode({}).model
    assert (model.ff_width, model.expert_width, model.head_dim) == (1536, 768, 32)
    wide = decode({"model": {"d_ff": 100, "d_expert": 7}}).model
    assert (wide.ff_width, wide.expert_width) == (100, 7)


def get(plain, path):
    """Return the value at "section.key"."""
    section, key = path.split(".")
    return plain[section][key]


def another(path, value):
    """Return a valid value unlike `value`."""
    declared = list_keys()[path]
    if isinstance(declared, type) and issubclass(declared, configs.StrEnum):
        return next(str(option) for option in declared if option != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, 99 if value and isinstance(value[0], int) else "other/*"]
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    return "other" if path.endswith(("path", "init_from")) else 3
