"""What other programs call their losses is found; what is no loss is left alone."""

from __future__ import annotations

import pytest

from tsx.loss_names import TRAIN_LOSSES, VAL_LOSSES, find_first, find_sign, split_key


@pytest.mark.parametrize(
    ("key", "split", "quantity"),
    [
        ("train/loss", "train", "loss"),
        ("val_loss", "val", "loss"),
        ("eval/top1/acc", "eval", "top1/acc"),
        ("loss", "", "loss"),
        ("valor/loss", "", "valor/loss"),
        ("train/", "", "train/"),
    ],
)
def test_a_key_is_taken_apart(key, split, quantity):
    assert split_key(key) == (split, quantity)


@pytest.mark.parametrize(
    ("quantity", "sign"),
    [
        ("loss", -1),
        ("kl_loss", -1),
        ("MSE", -1),
        ("top1/acc", 1),
        ("accuracy", 1),
        ("lr", 0),
        ("glossary", 0),
        ("loss_accuracy", 0),
    ],
)
def test_which_way_a_quantity_improves(quantity, sign):
    assert find_sign(quantity) == sign


def test_the_more_exact_name_of_a_loss_wins():
    assert find_first(TRAIN_LOSSES, {"loss", "train/loss", "val_loss"}) == "train/loss"
    assert find_first(VAL_LOSSES, {"loss", "test_loss", "val_loss"}) == "val_loss"
    assert find_first(VAL_LOSSES, {"loss"}) is None
