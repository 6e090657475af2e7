"""Which curves share a chart, and in which order charts are read."""

import math
from array import array

from registry.views import Series
from tsx.curve_groups import Group, find_loss_group, group_keys, list_overview_groups, make_curves


def titles(*keys):
    return [group.title for group in group_keys(keys)]


def test_splits_of_one_quantity_share_a_chart_in_the_order_of_a_run():
    groups = group_keys(["ood/loss", "val/loss", "train/loss"])
    assert groups == [
        Group("loss", (("train", "train/loss"), ("val", "val/loss"), ("ood", "ood/loss")))
    ]


def test_horizons_and_layers_are_in_numeric_order():
    groups = group_keys([f"val/mse_h{h}" for h in (64, 8, 1, 32)])
    assert [name for name, _ in groups[0].members] == ["h1", "h8", "h32", "h64"]
    groups = group_keys([f"router/layer{n}/load_max_over_mean" for n in (10, 2, 0)])
    assert groups[0].title == "router load max over mean"
    assert [name for name, _ in groups[0].members] == ["layer 0", "layer 2", "layer 10"]


def test_losses_come_first_and_the_system_last():
    order = titles(
        "sys/cpu_pct", "router/layer0/aux", "val/mse_h8", "train/lr", "custom", "val/loss"
    )
    assert order[0] == "loss"
    assert order.index("lr") < order.index("val mse by horizon") < order.index("router aux")
    assert order[-1] == "sys/cpu_pct"


def test_every_key_is_in_exactly_one_group():
    keys = ["a", "train/", "/x", "router/layer/x", "router/layer3/", "train/loss", "val/mse_hx", ""]
    members = [key for group in group_keys(keys) for _, key in group.members]
    assert sorted(members) == sorted(keys)


def test_curves_are_named_with_their_last_value_and_empty_ones_left_out():
    held = {
        key: Series(key, array("q", range(len(ys))), array("d", ys), array("d", ys))
        for key, ys in {"train/loss": [2.0, 1.5], "val/loss": [], "ood/loss": [math.nan]}.items()
    }
    names = [curve.name for curve in make_curves(group_keys(held)[0], held)]
    assert names == ["train 1.500", "ood NaN"]


def test_losses_of_other_programs_share_a_chart():
    assert find_loss_group(["val_loss", "lr", "loss"]).members == (
        ("train", "loss"),
        ("val", "val_loss"),
    )
    assert find_loss_group(["lr"]).members == ()
    assert titles("val_loss", "train_loss", "val/acc") == ["loss", "acc"]


def test_the_overview_shows_aux_and_speed_or_what_is_there_in_their_place():
    ours = ["train/loss", "val/loss", "ood/loss", "train/aux", "train/mfu", "train/toks_per_sec"]
    assert [group.title for group in list_overview_groups(ours)] == ["loss", "aux", "mfu %"]
    assert list_overview_groups(ours)[0].members == (("train", "train/loss"), ("val", "val/loss"))
    theirs = list_overview_groups(["loss", "lr", "val/acc", "sys/x"])
    assert [group.title for group in theirs] == ["loss", "lr", "acc"]
    assert [len(group.members) for group in list_overview_groups(["loss"])] == [1, 0, 0]
    shown = [key for group in theirs for _, key in group.members]
    assert list_overview_groups(shown) == theirs  # of what was read for them
