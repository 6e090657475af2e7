"""Spikes: found where they are planted, and nowhere in healthy curves."""

import math
import random

import pytest

from tsx.curves.spikes import WINDOW, SpikeWatch, find_spikes


def falling(seed, points, noise, low=0.5, high=4.0):
    """Return a loss that falls and levels off, with noise in its logarithm."""
    draw = random.Random(seed).gauss
    return [
        (low + high * math.exp(-5 * at / points)) * math.exp(draw(0, noise)) for at in range(points)
    ]


def cyclic(seed, points, noise):
    """Return a loss that a cyclic learning rate moves up and down."""
    draw = random.Random(seed).gauss
    return [(1 + 0.4 * math.sin(at / 7)) * math.exp(draw(0, noise)) for at in range(points)]


@pytest.mark.parametrize("make", [falling, cyclic])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.3])
def test_healthy_curves_have_none(make, noise):
    for seed in range(25):
        points = (12, 60, 300, 1000)[seed % 4]
        assert find_spikes(range(points), make(seed, points, noise)) == []


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("at", [70, 200, 499])
def test_a_leap_is_found_at_its_step(noise, at):
    values = falling(3, 500, noise)
    values[at] *= 6
    (spike,) = find_spikes(range(500), values)
    assert (spike.step, spike.value) == (at, values[at])
    assert spike.ratio == pytest.approx(6, rel=0.4)
    assert spike.recovered_step == (None if at == 499 else at + 1)


def test_a_loss_that_stays_up_is_one_spike_without_recovery():
    values = [*falling(1, 200, 0.05), *(8.0 + 0.01 * at for at in range(200))]
    (spike,) = find_spikes(range(400), values)
    assert spike.step == 200
    assert spike.recovered_step is None
    assert spike.points_after == WINDOW
    assert spike.peak > 8.5


def test_each_of_several_spikes_is_found():
    values = falling(2, 600, 0.05)
    for at in (100, 250, 400):
        values[at] *= 5
    assert [spike.step for spike in find_spikes(range(600), values)] == [100, 250, 400]


def test_a_short_history_wants_a_higher_leap():
    assert find_spikes(range(8), [2.0, 1.9, 2.1, 2.0, 1.9, 2.0, 4.0, 2.0]) == []
    (spike,) = find_spikes(range(8), [2.0, 1.9, 2.1, 2.0, 1.9, 2.0, 40.0, 2.0])
    assert spike.step == 6


def test_what_comes_often_is_no_spike():
    """Every tenth batch is hard: that is the data."""
    values = [6.0 if at % 10 == 9 else 2.0 + 0.01 * (at % 3) for at in range(400)]
    assert len(find_spikes(range(400), values)) <= 1


def test_values_that_are_not_finite_are_left_out():
    values = [2.0] * 40 + [math.nan, math.inf] + [2.0, 9.0, 2.0, 2.0]
    (spike,) = find_spikes(range(46), values)
    assert (spike.step, spike.recovered_step) == (43, 44)


def test_a_likelihood_below_zero_is_judged_by_differences():
    draw = random.Random(0).gauss
    values = [-3.0 + 0.1 * draw(0, 1) for _ in range(200)]
    assert find_spikes(range(200), values) == []
    values[150] = 4.0
    (spike,) = find_spikes(range(200), values)
    assert spike.step == 150
    assert math.isnan(spike.ratio)


@pytest.mark.parametrize("values", [[], [1.0], [0.0] * 100, [math.nan] * 100, [5e-324] * 100])
def test_odd_curves_have_none(values):
    assert find_spikes(range(len(values)), values) == []


def test_a_watch_says_so_at_the_very_value():
    watch = SpikeWatch()
    said = [watch.push(step, value) for step, value in enumerate([1.0] * 40 + [7.0, 1.0, 1.0])]
    assert [spike.step for spike in said if spike] == [40]
    assert watch.spikes[0].recovered_step == 41
    assert watch.num_known >= 40
