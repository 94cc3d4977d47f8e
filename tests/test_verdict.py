"""The verdict's promises: its level over a night of changeless patches, its power, and each answer it can give."""

import math

import numpy as np
import pytest
from scipy import stats

from nanoloop.options import UserError
from research.verdict import (
    MAX_PAIRS,
    Night,
    Noise,
    boundaries,
    confirm,
    decide,
    round_level,
    smallest_effect,
)
from tests.simulate_verdict import SHAPES, changeless_nights, mixed_nights, simulate

NOISE = Noise(0.004, 8)
RULES = dict(alpha=Night().alpha(), minimum_effect=0.001, max_pairs=8)


# ---------------------------------------------------------------------------------------------------------------------
# The level: simulated nights


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
    share, pairs = changeless_nights(
        10_000, 100, np.random.default_rng(0), shape=shape, noise=noise
    )
    assert share < 0.05 / 2
    assert pairs < 6


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_noise_floor_protects_where_the_noise_is_not_normal(shape):
    share, _ = changeless_nights(2_000, 100, np.random.default_rng(1), shape=shape)
    assert share < 0.01


def test_without_a_noise_floor_noise_that_is_mostly_a_gain_breaks_the_level():
    """Said in the documentation, so it has to be true: why `noise` comes before `try`."""
    rng = np.random.default_rng(2)
    share, _ = changeless_nights(
        200,
        100,
        rng,
        shape="mostly a little better, sometimes much worse (exponential)",
        noise=None,
    )
    assert share > 0.3


def test_the_simulation_can_tell_a_bad_procedure(monkeypatch):
    """The same nights with plain 5 % t-tests at every look: nearly every night keeps something false."""
    import tests.simulate_verdict as simulation

    def naive(d, level, max_pairs, noise, minimum_effect, margin):
        low = -stats.ttest_1samp(d, 0, axis=1).statistic if d.shape[1] > 1 else np.zeros(len(d))
        return np.where(
            low > stats.t.isf(0.05, max(1, d.shape[1] - 1)), simulation.BETTER, simulation.CONTINUE
        )

    monkeypatch.setattr(simulation, "look", naive)
    assert changeless_nights(100, 100, np.random.default_rng(3))[0] > 0.9


def test_what_is_kept_in_a_night_with_real_finds_is_rarely_false():
    false, kept = mixed_nights(60, 40, np.random.default_rng(4), good=0.1, effect=3.0)
    assert kept > 150 and false <= 0.05 * kept


@pytest.mark.parametrize("level, max_pairs", [(0.02, 8), (0.005, 8), (0.02, 3), (0.01, 12)])
def test_noise_reaches_the_boundaries_with_exactly_the_level(level, max_pairs):
    """The Markov chain of the angle against plain simulation of 400,000 trials."""
    x, n = (
        np.random.default_rng(5).standard_normal((400_000, max_pairs)) * 7,
        np.arange(1, max_pairs + 1),
    )
    mean = x.cumsum(1) / n
    with np.errstate(all="ignore"):
        statistic = mean * np.sqrt(n * (n - 1) / ((x * x).cumsum(1) - n * mean**2))
    share = (statistic >= boundaries(level, max_pairs)).any(1).mean()
    assert abs(share - level) < 4 * math.sqrt(level / 400_000)


def test_the_only_look_of_three_pairs_is_the_t_test():
    assert boundaries(0.02, 3)[-1] == pytest.approx(stats.t.isf(0.02, 2), rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
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
    """Gain in noise deviations: the share kept and the mean number of pairs, both rounds together."""
    kept, used = simulate(4_000, Night().alpha(), np.random.default_rng(6), effect)
    assert least <= kept.mean() <= most
    assert used.mean() < pairs and used.max() <= 2 * MAX_PAIRS


def test_the_smallest_effect_is_found_with_its_stated_power():
    gain = smallest_effect(1.0, 8, Night().alpha(), power=0.8)
    kept, _ = simulate(4_000, Night().alpha(), np.random.default_rng(7), gain, noise=None)
    assert 1 < gain < 2 and 0.7 < kept.mean() < 0.85  # a little is lost to early looks
    assert (
        smallest_effect(1.0, 16, Night().alpha()) < gain < smallest_effect(1.0, 4, Night().alpha())
    )


# ---------------------------------------------------------------------------------------------------------------------
# The budget of the night


def test_a_night_without_keeps_hands_out_half_of_its_level_and_no_more():
    night, given = Night(0.05), []
    for _ in range(20_000):
        given.append(night.alpha())
        night.record(False)
    assert all(later < earlier for earlier, later in zip(given, given[1:]))
    assert 0.99 * 0.025 < sum(given) < 0.025
    assert sum(given) + night.left() == pytest.approx(0.025)
    assert sum(given[:100]) == pytest.approx(0.0125)


def test_a_keep_earns_budget():
    """LORD++: the estimated share of false keeps, the sum of levels over the number of keeps, stays below the level."""
    night, spent, rng = Night(0.05), 0.0, np.random.default_rng(8)
    for _ in range(500):
        before = night.alpha()
        spent += before
        keep = rng.random() < 0.1
        night.record(keep)
        assert not keep or night.alpha() > before
        assert spent <= 0.05 * max(1, len(night.kept))


def test_the_night_is_rebuilt_from_the_ledger():
    """What tested nothing costs nothing; what was killed on the way costs, or killing would buy another chance."""
    rows = [
        {"kind": "trial", "state": "done", "verdict": "invalid", "differences": []},
        {"kind": "trial", "state": "done", "verdict": "invalid"},
        {"kind": "noise", "state": "done", "differences": [0.01]},
        {"kind": "trial", "state": "done", "verdict": "reject", "differences": [0.01]},
        {"kind": "trial", "state": "done", "verdict": "keep (simpler)", "differences": [0.0]},
        {
            "kind": "trial",
            "state": "done",
            "verdict": "keep (simpler)",
            "differences": [0.0],
            "replay_of": "t1",
        },
        {"kind": "trial", "state": "done", "verdict": "crash", "differences": [0.01]},
        {"kind": "trial", "state": "begun"},
        {"kind": "trial", "state": "interrupted"},
    ]
    assert Night.of(rows) == Night(trials=5, kept=[2])


def test_rounding_the_level_never_raises_it():
    for alpha in np.geomspace(1e-9, 0.5, 50):
        assert 0.9 * math.sqrt(alpha) < round_level(alpha) <= math.sqrt(alpha)


# ---------------------------------------------------------------------------------------------------------------------
# The answers


def test_a_clear_loser_leaves_after_one_pair():
    decision = decide([0.03], noise=NOISE, **RULES)
    assert decision.verdict == "reject" and decision.reason.startswith("worse: +0.0300")
    assert decide([0.03], **RULES) is None  # what noise is, one pair cannot say


def test_a_clear_winner_is_kept_and_a_near_tie_earns_more_pairs():
    assert decide([-0.030, -0.034], noise=NOISE, **RULES) is None
    decision = decide([-0.030, -0.034, -0.028, -0.033], noise=NOISE, **RULES)
    assert decision.verdict == "keep" and decision.mean == pytest.approx(-0.03125)
    assert decision.interval[0] < decision.mean < decision.interval[1] < 0
    assert decide([-0.004, 0.001, -0.006], noise=NOISE, **RULES) is None


def test_the_last_pair_gives_an_answer():
    for values in (
        [-0.004, 0.001, -0.006, -0.002] * 2,
        [-0.004, 0.003, -0.001, 0.002] * 2,
        [0.001] * 8,
        [-0.002] * 8,
    ):
        for lines in (0, -3):
            assert decide(values, noise=NOISE, lines=lines, **RULES) is not None
    assert decide([-0.006, 0.003, -0.009, -0.003] * 2, noise=NOISE, **RULES).verdict == "undecided"


def test_a_sure_gain_below_the_minimum_is_not_kept():
    tiny = [-0.0004, -0.00041, -0.00039, -0.0004, -0.00042, -0.0004, -0.00038, -0.0004]
    assert decide(tiny, **RULES).verdict == "reject"
    assert decide(tiny, **(RULES | {"minimum_effect": 0.0001})).verdict == "keep"


def test_pairs_that_agree_closely_are_not_believed_to_be_quieter_than_the_floor():
    lucky = [-0.0021, -0.0020, -0.0019, -0.0020]
    assert decide(lucky, **RULES).verdict == "keep"
    assert decide(lucky, noise=NOISE, **RULES) is None


def test_equal_scores_keep_what_removes_lines_and_nothing_else():
    """A refactor gives the same score bit by bit."""
    same = [0.0] * 3
    assert decide(same, noise=NOISE, lines=-4, **RULES).verdict == "keep (simpler)"
    assert decide(same, lines=-4, **RULES).verdict == "keep (simpler)"
    assert decide(same * 2, noise=NOISE, lines=0, **RULES).verdict == "reject"


def test_finding_no_difference_is_not_equality():
    noisy = [-0.008, 0.009, -0.007, 0.006, 0.008, -0.009, 0.007, -0.005]
    decision = decide(noisy, noise=NOISE, lines=-10, **RULES)
    assert decision.verdict in ("reject", "undecided")
    assert (
        decide([value / 4 for value in noisy], noise=NOISE, lines=-10, **RULES).verdict
        == "keep (simpler)"
    )


def test_worse_by_the_margin_passes_for_equal_no_oftener_than_the_level():
    alpha = 0.01
    kept, _ = simulate(50_000, alpha, np.random.default_rng(9), effect=-1.5, margin=1.5)
    assert kept.mean() < alpha


def test_a_keep_that_does_not_come_again_is_not_a_keep():
    decision = confirm([0.02], noise=NOISE, **RULES)
    assert decision.verdict == "reject" and decision.reason.startswith("not confirmed")
    assert confirm([-0.030, -0.034, -0.028, -0.033], noise=NOISE, **RULES).verdict == "keep"
    assert confirm([-0.030], noise=NOISE, **RULES) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_rejected(value):
    assert decide([-0.03, value], noise=NOISE, **RULES).verdict == "reject"


def test_the_verdict_does_not_depend_on_the_unit():
    """Without a floor and a minimum, the test knows no scale."""
    rng = np.random.default_rng(10)
    for _ in range(50):
        values = rng.normal(-1, 1, rng.integers(1, 9))
        rules = RULES | {"minimum_effect": 0.0}
        one, other = decide(list(values), **rules), decide(list(values / 1000), **rules)
        assert (one and one.verdict) == (other and other.verdict)


def test_rules_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="max_pairs=2"):
        decide([0.0], **(RULES | {"max_pairs": 2}))
    with pytest.raises(UserError, match="minimum_effect"):
        decide([0.0], **(RULES | {"minimum_effect": -1.0}))


def test_the_noise_floor_of_runs_of_the_same_code():
    assert Noise.of([0.003, -0.004, 0.0, 0.005]) == Noise(pytest.approx(0.003536, abs=1e-6), 4)
