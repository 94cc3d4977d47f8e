"""The verdict's level and power over simulated nights: see simulate_verdict.py."""

import numpy as np
import pytest
from scipy import stats

from research.referee.verdict import BETTER, CONTINUE, MAX_PAIRS, Night, Noise, smallest_effect
from tests.slow.simulate_verdict import (
    BELIEFS,
    DRIFTS,
    FIRST_EDITION,
    MEASURED,
    NOW,
    SHAPES,
    Rule,
    changeless_nights,
    estimates,
    mixed_nights,
    ratchet,
    simulate,
)

LEVEL = 0.05 / 2  # while nothing is kept, the budget is half of the night's level

# --------------------------------------------------------------------------------------------------
# The level


def is_below(lost: int, nights: int, level: float) -> bool:
    """Say whether the 95 % interval of the share lies below the level."""
    return stats.binomtest(lost, nights).proportion_ci().high < level


@pytest.mark.parametrize("belief", BELIEFS)
def test_nights_of_changeless_patches_keep_something_false_within_the_level(belief):
    """Whatever the floor, as long as the noise is about normal."""
    for shape in ("normal", "heavy tails (t, 3 degrees of freedom)"):
        lost, pairs = changeless_nights(3_000, 100, np.random.default_rng(0), belief, shape=shape)
        assert is_below(lost, 3_000, LEVEL)
        assert pairs < 6


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in DRIFTS])
@pytest.mark.parametrize("belief", ["right", MEASURED])
def test_a_noise_floor_protects_where_the_noise_is_not_normal(shape, belief):
    lost, _ = changeless_nights(3_000, 100, np.random.default_rng(1), belief, shape=shape)
    assert is_below(lost, 3_000, LEVEL if belief == "right" else 2 * LEVEL)


@pytest.mark.parametrize("shape", [shape for shape in DRIFTS if "drawn" in shape])
def test_an_order_that_is_drawn_protects_against_drift(shape):
    lost, _ = changeless_nights(2_000, 100, np.random.default_rng(5), shape=shape)
    assert is_below(lost, 2_000, LEVEL)


def test_arms_in_turn_meet_a_regular_neighbour_unequally():
    """The reason why the order is drawn."""
    shape = "a neighbour during two of four runs, arms in turn"
    lost, _ = changeless_nights(100, 100, np.random.default_rng(6), shape=shape)
    assert lost > 90


def test_a_floor_of_half_the_noise_does_not_protect_against_skew():
    """The documentation says so."""
    shape = "mostly a little better, sometimes much worse (exponential)"
    lost, _ = changeless_nights(200, 100, np.random.default_rng(2), "half of it", shape=shape)
    assert lost > 0.2 * 200


def test_the_simulation_recognizes_a_bad_procedure():
    """With plain 5 % t-tests at each look nearly every night keeps something false."""

    def naive_look(d, level, max_pairs, noise, minimum_effect, margin):
        rows, n = d.shape
        if n == 1:
            return np.full(rows, CONTINUE)
        is_low = -stats.ttest_1samp(d, 0, axis=1).statistic > stats.t.isf(0.05, n - 1)
        return np.where(is_low, BETTER, CONTINUE)

    rule = Rule(look=naive_look)
    lost, _ = changeless_nights(100, 100, np.random.default_rng(3), rule=rule)
    assert lost > 90


def test_what_is_kept_in_a_night_with_real_finds_is_rarely_false():
    false, kept = mixed_nights(60, 40, np.random.default_rng(4), good=0.1, effect=3.0)
    assert kept > 150 and false <= 0.05 * kept


def test_a_gain_on_the_validation_split_alone_is_kept_rarely():
    """At most alpha / SCREEN of such patches; the first edition kept sqrt(alpha)."""
    nights = 1_000
    lost, _ = changeless_nights(nights, 100, np.random.default_rng(8), effect=1.0, test_effect=0.0)
    assert lost < 0.15 * nights


# --------------------------------------------------------------------------------------------------
# Simpler changes


def test_worse_by_the_margin_passes_for_equal_no_more_often_than_the_level():
    alpha = 0.01
    kept, _ = simulate(50_000, alpha, np.random.default_rng(9), effect=-1.5, margin=1.5)
    assert kept.mean() < alpha


@pytest.mark.parametrize("loss, spread, minimum_effect", [(0.5, 1.0, 2.0), (0.01, 0.01, 0.05)])
def test_simpler_changes_lose_less_than_the_minimum_effect_in_all(loss, spread, minimum_effect):
    rng = np.random.default_rng(10)
    for _ in range(5):
        kept, lost, alpha, _ = ratchet(rng, NOW, 100, loss, spread, minimum_effect)
        assert lost < minimum_effect
        assert alpha == Night(trials=100).alpha()
    kept, lost, alpha, _ = ratchet(rng, FIRST_EDITION, 100, loss, spread, minimum_effect)
    assert kept > 60 and lost > 10 * minimum_effect and alpha > 0.01


def test_refactorings_are_kept_and_leave_the_budget_as_it_is():
    kept, _, alpha, _ = ratchet(np.random.default_rng(11), NOW, 20, 0.0, 0.0, 0.05)
    assert kept == 20 and alpha == Night(trials=20).alpha()


# --------------------------------------------------------------------------------------------------
# The power


@pytest.mark.parametrize(
    "effect, least, most, pairs",
    [
        (-1, 0, 0, 2),
        (0, 0, 0.002, 4.5),
        (0.5, 0.02, 0.15, 11),
        (1, 0.55, 0.8, 19),
        (2, 0.97, 1, 17),
        (4, 0.999, 1, 13),
    ],
)
def test_what_is_much_better_is_found_and_losers_are_cheap(effect, least, most, pairs):
    """Gain in noise deviations: the share kept and the mean number of pairs of both rounds."""
    kept, used = simulate(4_000, Night().alpha(), np.random.default_rng(6), effect)
    assert least <= kept.mean() <= most
    assert used.mean() < pairs and used.max() <= MAX_PAIRS // 3 + MAX_PAIRS


def test_more_is_found_than_by_the_first_edition_for_about_the_same_pairs_without_a_gain():
    for number in (1, 100):
        alpha = Night(trials=number - 1).alpha()
        rng = np.random.default_rng(12)
        found = [simulate(4_000, alpha, rng, 1.0, rule=rule)[0] for rule in (NOW, FIRST_EDITION)]
        assert found[0].mean() > 2.5 * found[1].mean()
        used = [simulate(4_000, alpha, rng, rule=rule)[1] for rule in (NOW, FIRST_EDITION)]
        assert used[0].mean() < used[1].mean() + 1.2


@pytest.mark.parametrize("effect", [0.5, 1, 2])
def test_the_interval_of_a_kept_change_holds_its_gain_however_early_it_ended(effect):
    _, held, plain, _ = estimates(4_000, np.random.default_rng(13), effect)
    assert held > 0.95
    assert effect > 0.5 or plain < 0.9  # plain intervals do not


def test_the_smallest_effect_is_found_with_its_stated_power():
    alpha = Night().alpha()
    gain = smallest_effect(1.0, MAX_PAIRS, alpha)
    kept, _ = simulate(4_000, alpha, np.random.default_rng(7), gain, noise=Noise(1.0, 8))
    assert 0.8 < gain < 1.5
    assert 0.7 < kept.mean() < 0.85  # early looks cost a little
    assert smallest_effect(1.0, 32, alpha) < gain < smallest_effect(1.0, 12, alpha)
