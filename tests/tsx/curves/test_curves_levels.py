"""Levels: a loss that stands is told from one that falls, rises or cannot be judged."""

import math
import random

import pytest

from tsx.curves.levels import find_median, find_plateau, find_spread, measure_change


def noisy(seed, points, noise, fall):
    draw = random.Random(seed).gauss
    return [(1.4 - fall * at / points) * math.exp(draw(0, noise)) for at in range(points)]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_a_loss_that_stands_is_found(noise):
    for seed in range(25):
        change = find_plateau(noisy(seed, 400, noise, 0.0))
        assert change is not None
        assert change.after == pytest.approx(1.4, rel=0.05)


def test_what_falls_is_none():
    for seed in range(200):
        values = noisy(seed, (40, 100, 400)[seed % 3], (0.0, 0.05, 0.3)[seed % 3], 0.5)
        assert find_plateau(values) is None


def test_what_rises_is_none():
    assert find_plateau(noisy(0, 200, 0.01, -1.0)) is None


def test_too_much_noise_or_too_few_points_leave_it_open():
    assert find_plateau(noisy(0, 60, 0.5, 0.0)) is None
    assert find_plateau([1.0] * 39) is None
    assert find_plateau([1.0] * 40) is not None
    assert find_plateau([math.nan] * 100) is None
    assert find_plateau([0.0] * 40) is not None


def test_median_and_spread():
    assert find_median([3.0, 1.0, 2.0]) == 2.0
    assert find_median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert find_spread([1.0] * 9 + [1000.0]) == 0.0
    draw = random.Random(0).gauss
    assert find_spread([draw(5, 2) for _ in range(2000)]) == pytest.approx(2, rel=0.1)


def test_the_error_of_a_change_is_that_of_two_medians():
    draw = random.Random(1).gauss
    parts = [[draw(0, 1) for _ in range(100)] for _ in range(400)]
    medians = [find_median(part) for part in parts]
    error = measure_change(parts[0], parts[1]).error
    assert error == pytest.approx(math.sqrt(2) * find_spread(medians), rel=0.35)
