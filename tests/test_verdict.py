"""The verdict's mathematics: boundaries, the budget of the night, and each answer it can give.

tests/slow/test_verdict_simulated.py simulates whole nights.
"""

import math

import numpy as np
import pytest
from scipy import stats

from nanoloop.options import UserError
from research.referee.verdict import Night, Noise, boundaries, confirm, decide, round_level

NOISE = Noise(0.004, 8)
RULES = {"alpha": Night().alpha(), "minimum_effect": 0.001, "max_pairs": 8}


# --------------------------------------------------------------------------------------------------
# The boundaries


@pytest.mark.parametrize("level, max_pairs", [(0.02, 8), (0.005, 8), (0.02, 3), (0.01, 12)])
def test_noise_reaches_the_boundaries_with_exactly_the_level(level, max_pairs):
    """The Markov chain of the angle against plain simulation of 400,000 trials."""
    x = np.random.default_rng(5).standard_normal((400_000, max_pairs)) * 7
    n = np.arange(1, max_pairs + 1)
    mean = x.cumsum(1) / n
    with np.errstate(all="ignore"):
        statistic = mean * np.sqrt(n * (n - 1) / ((x * x).cumsum(1) - n * mean**2))
    share = (statistic >= boundaries(level, max_pairs)).any(1).mean()
    assert abs(share - level) < 4 * math.sqrt(level / 400_000)


def test_the_only_look_of_three_pairs_is_the_t_test():
    assert boundaries(0.02, 3)[-1] == pytest.approx(stats.t.isf(0.02, 2), rel=1e-3)


def test_rounding_the_level_never_raises_it():
    for alpha in np.geomspace(1e-9, 0.5, 50):
        assert 0.9 * math.sqrt(alpha) < round_level(alpha) <= math.sqrt(alpha)


# --------------------------------------------------------------------------------------------------
# The budget of the night


def test_a_night_without_keeps_spends_half_of_its_level_and_no_more():
    night = Night(0.05)
    given = []
    for _ in range(20_000):
        given.append(night.alpha())
        night.record(False)
    assert all(later < earlier for earlier, later in zip(given, given[1:]))
    assert 0.99 * 0.025 < sum(given) < 0.025
    assert sum(given) + night.left() == pytest.approx(0.025)
    assert sum(given[:100]) == pytest.approx(0.0125)


def test_a_keep_earns_budget():
    """LORD++: the sum of levels over the number of keeps stays below the level."""
    night = Night(0.05)
    spent = 0.0
    rng = np.random.default_rng(8)
    for _ in range(500):
        before = night.alpha()
        spent += before
        keep = rng.random() < 0.1
        night.record(keep)
        assert not keep or night.alpha() > before
        assert spent <= 0.05 * max(1, len(night.kept))


def test_the_night_is_rebuilt_from_the_ledger():
    """A trial that tested nothing is free; a killed one is not, or killing would buy a chance."""
    simpler = {"kind": "trial", "state": "done", "verdict": "keep (simpler)", "differences": [0.0]}
    rows = [
        {"kind": "trial", "state": "done", "verdict": "invalid", "differences": []},
        {"kind": "trial", "state": "done", "verdict": "invalid"},
        {"kind": "noise", "state": "done", "differences": [0.01]},
        {"kind": "trial", "state": "done", "verdict": "reject", "differences": [0.01]},
        simpler,
        simpler | {"replay_of": "t1"},
        {"kind": "trial", "state": "done", "verdict": "crash", "differences": [0.01]},
        {"kind": "trial", "state": "begun"},
        {"kind": "trial", "state": "interrupted"},
    ]
    assert Night.of(rows) == Night(trials=5, kept=[2])


# --------------------------------------------------------------------------------------------------
# The answers


def test_a_clear_loser_leaves_after_one_pair():
    decision = decide([0.03], noise=NOISE, **RULES)
    assert decision.verdict == "reject"
    assert decision.reason.startswith("worse: +0.0300 bits per byte over 1 pair, 95 % interval")
    assert decide([0.03], **RULES) is None  # one pair does not show what noise is


def test_a_clear_winner_is_kept_and_a_near_tie_earns_more_pairs():
    assert decide([-0.030, -0.034], noise=NOISE, **RULES) is None
    decision = decide([-0.030, -0.034, -0.028, -0.033], noise=NOISE, **RULES)
    assert decision.verdict == "keep"
    assert decision.mean == pytest.approx(-0.03125)
    assert decision.interval[0] < decision.mean < decision.interval[1] < 0
    assert decide([-0.004, 0.001, -0.006], noise=NOISE, **RULES) is None


@pytest.mark.parametrize("tokens", [0, -3])
@pytest.mark.parametrize(
    "values",
    [
        [-0.004, 0.001, -0.006, -0.002] * 2,
        [-0.004, 0.003, -0.001, 0.002] * 2,
        [0.001] * 8,
        [-0.002] * 8,
    ],
)
def test_the_last_pair_gives_an_answer(values, tokens):
    assert decide(values, noise=NOISE, tokens=tokens, **RULES) is not None


def test_an_open_answer_after_the_last_pair_is_undecided():
    values = [-0.006, 0.003, -0.009, -0.003] * 2
    assert decide(values, noise=NOISE, **RULES).verdict == "undecided"


def test_a_sure_gain_below_the_minimum_is_not_kept():
    tiny = [-0.0004, -0.00041, -0.00039, -0.0004, -0.00042, -0.0004, -0.00038, -0.0004]
    assert decide(tiny, **RULES).verdict == "reject"
    assert decide(tiny, **(RULES | {"minimum_effect": 0.0001})).verdict == "keep"


def test_pairs_that_agree_closely_do_not_count_as_quieter_than_the_floor():
    lucky = [-0.0021, -0.0020, -0.0019, -0.0020]
    assert decide(lucky, **RULES).verdict == "keep"
    assert decide(lucky, noise=NOISE, **RULES) is None


def test_equal_scores_keep_what_removes_tokens_and_nothing_else():
    """A refactoring gives the same score bit by bit."""
    same = [0.0] * 3
    decision = decide(same, noise=NOISE, tokens=-4, **RULES)
    assert decision.verdict == "keep (simpler)"
    assert decision.reason.startswith("equal within ±0.0060, 4 tokens fewer: +0.0000")
    assert decide(same, tokens=-4, **RULES).verdict == "keep (simpler)"
    assert decide(same * 2, noise=NOISE, tokens=0, **RULES).verdict == "reject"


def test_finding_no_difference_is_not_equality():
    noisy = [-0.008, 0.009, -0.007, 0.006, 0.008, -0.009, 0.007, -0.005]
    decision = decide(noisy, noise=NOISE, tokens=-10, **RULES)
    assert decision.verdict in ("reject", "undecided")
    quieter = [value / 4 for value in noisy]
    assert decide(quieter, noise=NOISE, tokens=-10, **RULES).verdict == "keep (simpler)"


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
    rules = RULES | {"minimum_effect": 0.0}
    for _ in range(50):
        values = rng.normal(-1, 1, rng.integers(1, 9))
        one = decide(list(values), **rules)
        other = decide(list(values / 1000), **rules)
        assert (one and one.verdict) == (other and other.verdict)


def test_rules_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="max_pairs must be at least 3 .*, got 2"):
        decide([0.0], **(RULES | {"max_pairs": 2}))
    with pytest.raises(UserError, match="minimum_effect must be at least 0, got -1.0"):
        decide([0.0], **(RULES | {"minimum_effect": -1.0}))


def test_the_noise_floor_is_the_root_mean_square_of_the_differences():
    assert Noise.of([0.003, -0.004, 0.0, 0.005]) == Noise(pytest.approx(0.003536, abs=1e-6), 4)
