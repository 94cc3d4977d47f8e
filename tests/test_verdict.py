"""The verdict's mathematics: boundaries, the budget of the night, and each answer it can give.

tests/slow/test_verdict_simulated.py simulates whole nights.
"""

import math

import numpy as np
import pytest

from research.referee.verdict import Night, Noise, boundaries, conclude, decide, rounds

NOISE = Noise(0.004, 8)
QUIET = Noise(0.0001, 8)
RULES = {"level": 0.015, "minimum_effect": 0.001, "max_pairs": 8, "noise": NOISE}
WINNER = [-0.030, -0.034, -0.028, -0.033]


# --------------------------------------------------------------------------------------------------
# The boundaries


@pytest.mark.parametrize(
    "level, max_pairs, first", [(0.02, 8, None), (0.005, 8, 3), (0.02, 3, None), (0.01, 12, None)]
)
def test_noise_reaches_the_boundaries_with_exactly_the_level(level, max_pairs, first):
    """The Markov chain of the angle against plain simulation of 400,000 trials."""
    x = np.random.default_rng(5).standard_normal((400_000, max_pairs)) * 7
    n = np.arange(1, max_pairs + 1)
    mean = x.cumsum(1) / n
    with np.errstate(all="ignore"):
        statistic = mean * np.sqrt(n * (n - 1) / ((x * x).cumsum(1) - n * mean**2))
    share = (statistic >= boundaries(level, max_pairs, first)).any(1).mean()
    assert abs(share - level) < 4 * math.sqrt(level / 400_000)


def test_the_only_look_of_three_pairs_is_the_t_test():
    from scipy import stats

    assert boundaries(0.02, 3)[-1] == pytest.approx(stats.t.isf(0.02, 2), rel=1e-3)


@pytest.mark.parametrize("max_pairs, first", [(3, 3), (5, 3), (8, 4), (12, 6), (16, 6)])
def test_no_gain_is_believed_before_half_of_few_pairs_or_six(max_pairs, first):
    assert np.isfinite(boundaries(0.02, max_pairs)).argmax() == first - 1
    with_first = boundaries(0.02, max_pairs, first)
    assert (with_first == boundaries(0.02, max_pairs)).all()


def test_the_levels_of_the_rounds_multiply_to_alpha_and_rounding_never_raises_it():
    for alpha in np.geomspace(1e-9, 0.04, 50):
        (first, few), (second, many) = rounds(alpha, 24)
        assert 0.9 * alpha < first * second <= alpha * (1 + 1e-12)
        assert (few, many) == (8, 24)
    assert [pairs for _, pairs in rounds(0.001, 3)] == [3, 3]


# --------------------------------------------------------------------------------------------------
# The budget of the night


def test_a_night_without_keeps_spends_half_of_its_level_and_no_more():
    night = Night()
    given = []
    for _ in range(20_000):
        given.append(night.alpha())
        night.record("reject")
    assert all(later < earlier for earlier, later in zip(given, given[1:]))
    assert 0.99 * 0.025 < sum(given) < 0.025
    assert sum(given) + night.left() == pytest.approx(0.025)
    assert sum(given[:100]) == pytest.approx(0.0125)


def test_a_change_kept_as_better_earns_budget():
    """LORD++: the sum of levels over the number of keeps stays below the level."""
    night = Night()
    spent = 0.0
    rng = np.random.default_rng(8)
    for _ in range(500):
        before = night.alpha()
        spent += before
        keep = rng.random() < 0.1
        night.record("keep" if keep else "undecided")
        assert not keep or night.alpha() > before
        assert spent <= 0.05 * max(1, len(night.kept))


def test_a_simpler_change_earns_no_budget_and_adds_to_what_may_be_lost():
    simpler = Night()
    rejected = Night()
    for _ in range(20):
        simpler.record("keep (simpler)", (-0.3, 0.0001))
        rejected.record("reject")
    assert simpler.alpha() == rejected.alpha() and simpler.left() == rejected.left()
    assert simpler.lost == pytest.approx(0.002)
    simpler.record("keep (simpler)", (-0.6, -0.5))  # a gain buys no loss
    assert simpler.lost == pytest.approx(0.002)
    simpler.record("keep")
    assert simpler.lost == 0.0


def test_the_night_is_rebuilt_from_the_ledger():
    """A trial that tested nothing is free; a killed one is not, or killing would buy a chance."""
    trial = {"kind": "trial", "state": "done", "differences": [0.0]}
    better = trial | {"verdict": "keep", "interval": [-0.2, -0.1]}
    simpler = trial | {"verdict": "keep (simpler)", "interval": [-0.1, 0.002]}
    rows = [
        {"kind": "trial", "state": "done", "verdict": "invalid", "differences": []},
        {"kind": "trial", "state": "done", "verdict": "invalid"},
        {"kind": "noise", "state": "done", "differences": [0.01]},
        {"kind": "trial", "state": "done", "verdict": "reject", "differences": [0.01]},
        simpler,
        better,
        better | {"kind": "replay"},
        simpler,
        {"kind": "trial", "state": "done", "verdict": "crash", "differences": [0.01]},
        {"kind": "trial", "state": "begun"},
        {"kind": "trial", "state": "interrupted"},
    ]
    assert Night.of(rows) == Night(trials=7, kept=[3], lost=0.002)


# --------------------------------------------------------------------------------------------------
# The answers


def test_a_clear_loser_leaves_after_one_pair():
    decision = decide([0.03], **RULES)
    assert decision.verdict == "reject"
    assert decision.reason.startswith("worse: +0.0300 bits per byte over 1 pair, 95 % interval")


def test_a_clear_winner_is_kept_and_a_near_tie_earns_more_pairs():
    assert decide(WINNER[:3], **RULES) is None
    decision = decide(WINNER, **RULES)
    assert decision.verdict == "keep"
    assert decision.mean == pytest.approx(-0.03125)
    assert decision.interval[0] < decision.mean < decision.interval[1] < 0
    assert decide([-0.004, 0.001, -0.006], **RULES) is None


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
    assert decide(values, tokens=tokens, **RULES) is not None


def test_an_open_answer_after_the_last_pair_is_undecided():
    values = [-0.006, 0.003, -0.009, -0.003] * 2
    assert decide(values, **RULES).verdict == "undecided"


def test_a_sure_gain_below_the_minimum_is_not_kept():
    rules = RULES | {"noise": QUIET}
    tiny = [-0.0004, -0.00041, -0.00039, -0.0004, -0.00042, -0.0004, -0.00038, -0.0004]
    assert decide(tiny, **rules).verdict == "reject"
    assert decide(tiny, **(rules | {"minimum_effect": 0.0001})).verdict == "keep"


def test_pairs_that_agree_closely_do_not_count_as_quieter_than_the_floor():
    lucky = [-0.0021, -0.0020, -0.0019, -0.0020]
    assert decide(lucky, **(RULES | {"noise": QUIET})).verdict == "keep"
    assert decide(lucky, **RULES) is None


@pytest.mark.parametrize("tokens, verdict", [(-4, "keep (simpler)"), (0, "reject"), (7, "reject")])
def test_a_change_that_changes_nothing_is_said_to_be_identical(tokens, verdict):
    """A refactoring gives the same score bit by bit, and its tokens decide."""
    assert decide([0.0], tokens=tokens, **RULES) is None
    decision = decide([0.0] * 2, tokens=tokens, **RULES)
    assert decision.verdict == verdict and decision.interval == [0.0, 0.0]
    assert decision.reason.startswith("identical to the baseline: nothing that this recipe uses")
    assert ("4 tokens fewer" in decision.reason) == (tokens < 0)


def test_equal_is_what_loses_less_than_the_minimum_effect():
    close = [0.0001, -0.0001, 0.00012, -0.0002]
    decision = decide(close, tokens=-4, **RULES)
    assert decision.verdict == "keep (simpler)"
    assert decision.reason.startswith("equal within 0.0010, 4 tokens fewer: -0.0000")
    assert 0 < decision.interval[1] < 0.001
    assert decide(close * 2, tokens=0, **RULES).verdict == "reject"
    worse = [value + 0.0011 for value in close]
    assert decide(worse * 2, tokens=-4, **RULES).verdict in ("reject", "undecided")
    decision = decide(worse, tokens=-4, **(RULES | {"minimum_effect": 0.01}))
    assert decision.verdict == "keep (simpler)" and 0.0011 < decision.interval[1] < 0.01


def test_what_simpler_changes_lost_before_leaves_less_to_lose():
    """Many small losses, each within the margin, would add up to a large one."""
    decision = decide([0.0004, 0.0005, 0.0004, 0.0005], tokens=-1, **RULES)
    night = Night()
    night.record(decision.verdict, decision.interval)
    assert night.lost > 0.0004
    again = decide([0.0004, 0.0005] * 4, tokens=-1, lost=night.lost, **RULES)
    assert again.verdict in ("reject", "undecided")
    assert decide([0.0] * 3, tokens=-1, lost=0.5, **RULES).verdict == "keep (simpler)"


def test_one_pair_does_not_end_a_trial_that_may_show_equality():
    """The pairs of a small change often agree far more closely than the floor."""
    rules = RULES | {"max_pairs": 3}
    near = 0.5 * rules["noise"].sd
    assert decide([near], tokens=0, **rules).verdict == "reject"
    assert decide([near], tokens=-4, **rules) is None
    far = 100 * rules["noise"].sd
    assert decide([far], tokens=-4, **rules).verdict == "reject"


def test_finding_no_difference_is_not_equality():
    noisy = [-0.008, 0.009, -0.007, 0.006, 0.008, -0.009, 0.007, -0.005]
    decision = decide(noisy, tokens=-10, **RULES)
    assert decision.verdict in ("reject", "undecided")
    quieter = [value / 40 for value in noisy]
    assert decide(quieter, tokens=-10, **RULES).verdict == "keep (simpler)"


# What each round finds, and what becomes of the trial.
ROUNDS = {
    "better twice": (WINNER, WINNER, "keep"),
    "equal, then better": ([0.0] * 2, WINNER, "keep (simpler)"),
    "better, then equal": (WINNER, [0.0001, -0.0001, 0.00012, -0.0002], "keep (simpler)"),
    "better, then worse": (WINNER, [0.02], "reject"),
    "better, then open": (WINNER, [-0.006, 0.003, -0.009, -0.003] * 2, "undecided"),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_a_trial_is_as_good_as_the_worse_of_its_rounds(name):
    *rounds, expected = ROUNDS[name]
    first, second = [decide(values, tokens=-1, **RULES) for values in rounds]
    decision = conclude(first, second)
    assert decision.verdict == expected
    assert decision.reason == (
        f"{first.reason}; then, on fresh seeds and the test split: {second.verdict}"
    )
    assert (decision.mean, decision.interval) == (second.mean, second.interval)
    assert conclude(first) == first


def test_the_verdict_does_not_depend_on_the_unit():
    rng = np.random.default_rng(10)
    for _ in range(50):
        values = rng.normal(-1, 1, rng.integers(1, 9))
        verdicts = set()
        for unit in (1, 1000):
            rules = RULES | {"minimum_effect": 0.1 / unit, "noise": Noise(1 / unit, 8)}
            decision = decide(list(values / unit), tokens=-1, **rules)
            verdicts.add(decision and decision.verdict)
        assert len(verdicts) == 1


def test_the_noise_floor_is_the_root_mean_square_of_its_differences():
    """Their true mean is 0: both runs of a pair have the same recipe."""
    row = {"differences": [0.003, -0.004, 0.0, 0.005]}
    assert Noise.of(row) == Noise(pytest.approx(0.003536, abs=1e-6), 4)
