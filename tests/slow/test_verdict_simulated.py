"""The verdict's level and power over simulated nights: see simulate_verdict.py."""

import numpy as np
import pytest
from scipy import stats

from research.referee.verdict import BETTER, CONTINUE, MAX_PAIRS, Night, Noise, smallest_effect
from tests.slow.simulate_verdict import SHAPES, changeless_nights, mixed_nights, simulate

# --------------------------------------------------------------------------------------------------
# The level


@pytest.mark.parametrize(
    "shape, noise",
    [
        ("normal", Noise(1.0, 8)),
        ("normal", Noise(0.5, 8)),
        ("normal", None),
        ("heavy tails (t, 3 degrees of freedom)", None),
    ],
    ids=["floor right", "floor half the truth", "floor unknown", "heavy tails"],
)
def test_nights_of_changeless_patches_keep_something_false_within_the_level(shape, noise):
    """10,000 nights of 100 patches; the first budget is half of the night's level."""
    rng = np.random.default_rng(0)
    share, pairs = changeless_nights(10_000, 100, rng, shape=shape, noise=noise)
    assert share < 0.05 / 2
    assert pairs < 6


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_noise_floor_protects_where_the_noise_is_not_normal(shape):
    share, _ = changeless_nights(2_000, 100, np.random.default_rng(1), shape=shape)
    assert share < 0.01


def test_without_a_noise_floor_noise_that_is_mostly_a_gain_breaks_the_level():
    """The documentation says so: the reason why `noise` comes before `try`."""
    shape = "mostly a little better, sometimes much worse (exponential)"
    share, _ = changeless_nights(200, 100, np.random.default_rng(2), shape=shape, noise=None)
    assert share > 0.3


def test_the_simulation_recognizes_a_bad_procedure():
    """With plain 5 % t-tests at each look nearly every night keeps something false."""

    def naive_look(d, level, max_pairs, noise, minimum_effect, margin):
        rows, n = d.shape
        if n == 1:
            return np.full(rows, CONTINUE)
        is_low = -stats.ttest_1samp(d, 0, axis=1).statistic > stats.t.isf(0.05, n - 1)
        return np.where(is_low, BETTER, CONTINUE)

    share, _ = changeless_nights(100, 100, np.random.default_rng(3), look=naive_look)
    assert share > 0.9


def test_what_is_kept_in_a_night_with_real_finds_is_rarely_false():
    false, kept = mixed_nights(60, 40, np.random.default_rng(4), good=0.1, effect=3.0)
    assert kept > 150 and false <= 0.05 * kept


def test_worse_by_the_margin_passes_for_equal_no_more_often_than_the_level():
    alpha = 0.01
    kept, _ = simulate(50_000, alpha, np.random.default_rng(9), effect=-1.5, margin=1.5)
    assert kept.mean() < alpha


# --------------------------------------------------------------------------------------------------
# The power


@pytest.mark.parametrize(
    "effect, least, most, pairs",
    [
        (-1, 0, 0, 2),
        (0, 0, 0.002, 4.5),
        (0.5, 0, 0.1, 8),
        (1, 0.15, 0.5, 12),
        (2, 0.9, 1, 14),
        (4, 0.999, 1, 10),
    ],
)
def test_what_is_much_better_is_found_and_losers_are_cheap(effect, least, most, pairs):
    """Gain in noise deviations: the share kept and the mean number of pairs of both rounds."""
    kept, used = simulate(4_000, Night().alpha(), np.random.default_rng(6), effect)
    assert least <= kept.mean() <= most
    assert used.mean() < pairs and used.max() <= 2 * MAX_PAIRS


def test_the_smallest_effect_is_found_with_its_stated_power():
    alpha = Night().alpha()
    gain = smallest_effect(1.0, 8, alpha, power=0.8)
    kept, _ = simulate(4_000, alpha, np.random.default_rng(7), gain, noise=None)
    assert 1 < gain < 2
    assert 0.7 < kept.mean() < 0.85  # early looks cost a little
    assert smallest_effect(1.0, 16, alpha) < gain < smallest_effect(1.0, 4, alpha)
