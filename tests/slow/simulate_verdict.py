"""What the verdict's procedure does to simulated nights of patches, as Markdown tables:

    python -m tests.slow.simulate_verdict

The noise of a difference has standard deviation 1 here; effects and margins are in that unit. Every
table stands beside the rule of the first edition, which is written down here again: two equal
rounds of 8 pairs, a first look at 3, 0.7 of the floor, a margin of equality without memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from research.referee import verdict
from research.referee.judge import NoiseOptions
from research.referee.verdict import (
    BETTER,
    CONTINUE,
    EQUAL,
    HOPELESS,
    KEEP,
    LEVEL,
    MAX_PAIRS,
    SCREEN,
    SIMPLER,
    Night,
    Noise,
    boundaries,
    rounds,
)

# --------------------------------------------------------------------------------------------------
# The noise of differences: (rng, (trials, pairs)) to differences with mean 0 and deviation 1


def normal(rng, size):
    return rng.standard_normal(size)


def heavy_tails(rng, size):
    return rng.standard_t(3, size) / math.sqrt(3)


def mildly_skewed(rng, size):
    return (rng.gamma(4, size=size) - 4) / 2


def sometimes_much_worse(rng, size):
    return rng.exponential(size=size) - 1


def blows_up(rng, size):
    jumps = 5 * (rng.random(size) < 0.1)
    return (rng.standard_normal(size) + jumps - 0.5) / math.sqrt(1 + 25 * 0.09)


def ties(rng, size):
    return rng.choice([-1.0, 1.0], size)


def autoregressive(rng, size, memory: float):
    """Draw series with autocorrelation `memory` from each value to the next."""
    fresh = rng.standard_normal(size)
    series = fresh.copy()
    for index in range(1, size[1]):
        series[:, index] *= math.sqrt(1 - memory**2)
        series[:, index] += memory * series[:, index - 1]
    return series


def drift_of_differences(rng, size):
    return autoregressive(rng, size, 0.5)


def drifting_runs(rng, size):
    return autoregressive(rng, (size[0], 2 * size[1]), 0.9)


def regular_neighbour(rng, size):
    """Slow down two of each four runs in a row."""
    trials, pairs = size
    phase = (np.arange(2 * pairs) + rng.integers(4, size=(trials, 1))) % 4
    return 0.7 * rng.standard_normal((trials, 2 * pairs)) + 2.0 * (phase < 2)


def drawn_order(runs):
    """Make differences of noisy runs: which arm of a pair runs first is drawn."""

    def differences(rng, size):
        noise = runs(rng, size)
        d = (noise[:, 1::2] - noise[:, ::2]) * ties(rng, size)
        return d / d.std()

    return differences


def taken_turns(runs):
    """Make differences of noisy runs: the arms run first in turn."""

    def differences(rng, size):
        noise = runs(rng, size)
        d = (noise[:, 1::2] - noise[:, ::2]) * np.where(np.arange(size[1]) % 2, -1, 1)
        return d / d.std()

    return differences


SHAPES = {
    "normal": normal,
    "heavy tails (t, 3 degrees of freedom)": heavy_tails,
    "mildly skewed (gamma 4)": mildly_skewed,
    "mostly a little better, sometimes much worse (exponential)": sometimes_much_worse,
    "one pair in ten blows up (by 5)": blows_up,
    "ties (-1 or 1)": ties,
}
DRIFTS = {
    "runs that drift (autocorrelation 0.9), arms in turn": taken_turns(drifting_runs),
    "runs that drift, order drawn": drawn_order(drifting_runs),
    "a neighbour during two of four runs, arms in turn": taken_turns(regular_neighbour),
    "a neighbour during two of four runs, order drawn": drawn_order(regular_neighbour),
    "differences that drift (autocorrelation 0.5) whatever the order": drift_of_differences,
}
SHAPES |= DRIFTS
PAIRS = NoiseOptions.pairs
RIGHT = Noise(1.0, PAIRS)
MEASURED = f"measured with {PAIRS} pairs"
BELIEFS = {
    "right": RIGHT,
    MEASURED: RIGHT,
    "half of it": Noise(0.5, PAIRS),
    "a tenth of it": Noise(0.1, PAIRS),
    "twice it": Noise(2.0, PAIRS),
}

# --------------------------------------------------------------------------------------------------
# Rules


def first_look_rule(d, level, max_pairs, noise, minimum_effect, margin):
    """Say what each row shows by the rule of the first edition; noise may be None."""
    rows, n = d.shape
    limits = boundaries(level, max_pairs, 3)
    mean = d.mean(1)
    squares = d.var(1) * n
    floor = 0.0
    df = n - 1
    alone = np.full(rows, np.inf)
    if n > 1:
        alone = np.maximum(np.sqrt(squares / df), 1e-9)
    if noise:
        floor = 0.7 * noise.sd
        df += noise.df
        squares = squares + noise.df * noise.sd**2
    pooled = np.sqrt(squares / df) if df else np.full(rows, np.inf)
    is_better = -mean * np.sqrt(n) >= limits[n - 1] * np.maximum(alone, floor)
    is_better &= mean <= -minimum_effect
    reachable = limits[-1] * pooled / np.sqrt(max_pairs)
    needed = -np.maximum(reachable, minimum_effect)
    is_equal = np.zeros(rows, bool)
    if margin is not None:
        needed = np.maximum(needed, margin - reachable)
        is_equal = (margin - abs(mean)) * np.sqrt(n) >= limits[n - 1] * alone
    quantile = stats.t.isf(0.05, df) if df else 1
    is_hopeless = mean - quantile * pooled / np.sqrt(n) > needed
    return np.select([is_better, is_equal, is_hopeless], [BETTER, EQUAL, HOPELESS], CONTINUE)


def two_equal_rounds(alpha: float, max_pairs: int) -> list[tuple[float, int]]:
    level = 2.0 ** (math.floor(4 * math.log2(alpha)) / 8)
    return [(level, max_pairs), (level, max_pairs)]


@dataclass(frozen=True)
class Rule:
    """A test at each look, the levels of the two rounds, and their pairs."""

    look: Callable = verdict.look
    rounds: Callable = rounds
    max_pairs: int = MAX_PAIRS


NOW = Rule()
FIRST_EDITION = Rule(first_look_rule, two_equal_rounds, 8)
RULES = {"first edition": FIRST_EDITION, "now": NOW}


def judge_round(
    d: np.ndarray,
    level: float,
    look: Callable,
    noise: Noise | None,
    margin=None,
    minimum_effect=0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Judge rows of differences, (trials, max_pairs): what ended each, and the pairs it used.

    noise: its deviation is a number, or one for each row.
    """
    trials, max_pairs = d.shape
    seen = np.full(trials, CONTINUE)
    used = np.full(trials, max_pairs)
    rows = np.arange(trials)
    for n in range(1, max_pairs + 1):
        floor = noise and Noise(np.broadcast_to(noise.sd, trials)[rows], noise.df)
        found = look(d[rows, :n], level, max_pairs, floor, minimum_effect, margin)
        is_over = found != CONTINUE
        seen[rows[is_over]] = found[is_over]
        used[rows[is_over]] = n
        rows = rows[~is_over]
        if not len(rows):
            break
    return seen, used


def simulate(
    trials: int,
    alpha: float,
    rng: np.random.Generator,
    effect: float = 0.0,
    shape: str = "normal",
    noise: Noise | None = RIGHT,
    rule: Rule = NOW,
    margin: float | None = None,
    test_effect: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Judge patches that are better by `effect`; on the test split by test_effect, if that differs.

    Returns (trials,) bool, whether each was kept, and (trials,) int, the pairs used. noise: the
    noise floor that the procedure believes in. margin: given for patches that remove tokens.
    """
    kept = np.ones(trials, bool)
    used = np.zeros(trials, int)
    gains = (effect, effect if test_effect is None else test_effect)
    for gain, (level, max_pairs) in zip(gains, rule.rounds(alpha, rule.max_pairs)):
        rows = np.flatnonzero(kept)
        d = SHAPES[shape](rng, (len(rows), max_pairs)) - gain
        floor = noise and Noise(np.broadcast_to(noise.sd, trials)[rows], noise.df)
        seen, pairs = judge_round(d, level, rule.look, floor, margin)
        used[rows] += pairs
        kept[rows] = (seen == BETTER) | (seen == EQUAL)
    return kept, used


# --------------------------------------------------------------------------------------------------
# Nights


def changeless_nights(
    nights: int, trials: int, rng: np.random.Generator, belief: str | None = "right", **rules
) -> tuple[int, float]:
    """Simulate nights of patches that change nothing.

    belief: of the noise floor, a key of BELIEFS; None: unknown. Returns the number of nights in
    which any patch was kept, and the mean number of pairs per patch.
    """
    night = Night()
    is_clean = np.ones(nights, bool)
    pairs = 0.0
    noise = BELIEFS.get(belief)
    if belief == MEASURED:
        pairs_of_noise = SHAPES[rules["shape"]](rng, (nights, PAIRS))
        noise = Noise(np.sqrt((pairs_of_noise**2).mean(1)), PAIRS)
    # A night that kept something is lost already, so all others share one history.
    for _ in range(trials):
        kept, used = simulate(nights, night.alpha(), rng, noise=noise, **rules)
        is_clean &= ~kept
        pairs += used.mean() / trials
        night.record("reject")
    return int((~is_clean).sum()), pairs


def mixed_nights(
    nights: int, trials: int, rng: np.random.Generator, good: float, effect: float
) -> tuple[int, int]:
    """Return (false keeps, keeps) where a share `good` of the patches is better by `effect`."""
    budgets = [Night() for _ in range(nights)]
    n_false = 0
    n_kept = 0
    for _ in range(trials):
        is_good = rng.random(nights) < good
        levels = np.array([rounds(night.alpha(), MAX_PAIRS)[1][0] for night in budgets])
        for level in np.unique(levels):
            for better in (False, True):
                rows = np.flatnonzero((levels == level) & (is_good == better))
                kept, _ = simulate(len(rows), level * SCREEN * 1.001, rng, effect * better)
                n_kept += int(kept.sum())
                n_false += 0 if better else int(kept.sum())
                for row, keep in zip(rows, kept):
                    budgets[row].record(KEEP if keep else "reject")
    return n_false, n_kept


def ratchet(
    rng: np.random.Generator,
    rule: Rule,
    count: int,
    loss: float,
    spread: float,
    minimum_effect: float,
) -> list[float]:
    """Judge `count` patches that each remove tokens and lose `loss`, one after the other.

    spread: the deviation of a pair's difference; the floor is 1. Returns how many are kept, what
    they lose in all, the level of the next trial, and the levels of the next 100 added up: the
    false keeps to expect of patches that change nothing.
    """
    night = Night()
    kept = 0
    for _ in range(count):
        decisions = []
        for level, max_pairs in rule.rounds(night.alpha(), rule.max_pairs):
            d = loss + spread * rng.standard_normal(max_pairs)
            decision = judge_simpler(d, level, rule, minimum_effect, night.lost)
            decisions.append(decision)
            if not decision.verdict.startswith(KEEP):
                break
        decision = verdict.conclude(*decisions)
        is_kept = decision.verdict.startswith(KEEP)
        kept += is_kept
        # In the first edition, each change that was kept earned budget.
        earns = rule is FIRST_EDITION and is_kept
        night.record(KEEP if earns else decision.verdict, decision.interval)
    alpha = night.alpha()
    expected = 0.0
    for _ in range(100):
        expected += night.alpha()
        night.record("reject")
    return [kept, kept * loss, alpha, expected]


def judge_simpler(
    d: np.ndarray, level: float, rule: Rule, minimum_effect: float, lost: float
) -> verdict.Decision:
    """Decide on a round of a patch that removes a token."""
    if rule is FIRST_EDITION:
        margin = max(minimum_effect, 1.5)
        (seen,), _ = judge_round(d[None], level, rule.look, RIGHT, margin, minimum_effect)
        answer = {BETTER: KEEP, EQUAL: SIMPLER}.get(seen, "reject")
        return verdict.Decision(answer, "", 0.0, [0.0, 0.0])
    for n in range(1, len(d) + 1):
        decision = verdict.decide(
            list(d[:n]),
            level=level,
            max_pairs=len(d),
            noise=RIGHT,
            minimum_effect=minimum_effect,
            tokens=-1,
            lost=lost,
        )
        if decision:
            return decision


def estimates(trials: int, rng: np.random.Generator, effect: float) -> list[float]:
    """Return what the second round of kept patches says of a true gain.

    The median estimate; the share of intervals that hold the gain, as they are now and plain
    t-intervals; the median half width of the former.
    """
    _, (level, max_pairs) = rounds(Night().alpha(), MAX_PAIRS)
    d = rng.standard_normal((trials, max_pairs)) - effect
    seen, used = judge_round(d, level, verdict.look, RIGHT)
    gains = []
    halves = []
    plain = []
    for values, n in zip(d[seen == BETTER], used[seen == BETTER]):
        decision = verdict.decide(
            list(values[:n]), level=level, max_pairs=max_pairs, minimum_effect=0.0, noise=RIGHT
        )
        gains.append(-decision.mean)
        halves.append((decision.interval[1] - decision.interval[0]) / 2)
        _, (pooled,), df = verdict.deviations(values[None, :n], RIGHT)
        plain.append(stats.t.isf(0.025, df) * pooled / math.sqrt(n))
    apart = np.abs(np.array(gains) - effect)
    held = [float((apart <= widths).mean()) for widths in (halves, plain)]
    return [float(np.median(gains)), *held, float(np.median(halves))]


def adaptive_bias(confirmations: int, rng: np.random.Generator, text: float = 0.001) -> float:
    """Return the false gain, bits per byte, of an agent that sees means on one fixed test text.

    Each of its changes, worth nothing, differs on that text by chance (deviation `text`). The agent
    combines all of them, each with the sign that the text prefers, into a change of the same size.
    """
    seen = text * rng.standard_normal((4_000, confirmations))
    return float((abs(seen).sum(1) / math.sqrt(confirmations)).mean())


# --------------------------------------------------------------------------------------------------
# The tables of the documentation


def share(count: int, total: int) -> str:
    """Write a share with its 95 % interval (Clopper & Pearson 1934), in percent."""
    interval = stats.binomtest(int(count), total).proportion_ci()
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * count / total:.2f} % ({low:.2f} to {high:.2f})"


def level_table(nights: int, rng: np.random.Generator) -> list[str]:
    lines = [
        f"{nights:,} nights of 100 changeless patches each; promised: a false keep in at most "
        f"{50 * LEVEL:.1f} %; with 95 % intervals:",
        "",
        "| noise of a difference | noise floor | nights with a false keep | pairs per patch "
        "| first edition's nights | pairs |",
        "|---|---|---|---|---|---|",
    ]
    plain = [shape for shape in SHAPES if shape not in DRIFTS]
    cases = [(shape, belief) for belief in BELIEFS for shape in plain]
    cases += [(shape, "right") for shape in DRIFTS]
    cases += [(shape, None) for shape in plain]
    for shape, belief in cases:
        cells = [shape, belief or "unknown"]
        for rule in (NOW, FIRST_EDITION):
            if rule is NOW and belief is None:
                cells += ["no trial begins", "0"]
                continue
            lost, pairs = changeless_nights(nights, 100, rng, belief, shape=shape, rule=rule)
            cells += [share(lost, nights), f"{pairs:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def power_table(trials: int, rng: np.random.Generator) -> list[str]:
    effects = (-1, 0, 0.5, 1, 1.5, 2, 4)
    head = " | ".join(f"{effect:g}" for effect in effects)
    lines = [
        f"Share kept, and mean pairs of both rounds, by true gain in deviations; {trials:,} trials "
        "a cell:",
        "",
        f"| | trial of the night | {head} |",
        "|---" * (2 + len(effects)) + "|",
    ]
    cases = {
        "first edition, floor right": {"rule": FIRST_EDITION},
        "floor right": {},
        "floor half of it": {"noise": BELIEFS["half of it"]},
        "floor twice it": {"noise": BELIEFS["twice it"]},
        "--max_pairs=8": {"rule": Rule(max_pairs=8)},
        "--max_pairs=16": {"rule": Rule(max_pairs=16)},
    }
    for name, rules in cases.items():
        for number in (1, 100, 300):
            alpha = Night(trials=number - 1).alpha()
            cells = []
            for effect in effects:
                kept, used = simulate(trials, alpha, rng, effect, **rules)
                cells.append(f"{100 * kept.mean():.1f} %, {used.mean():.1f}")
            lines.append(f"| {name} | {number} | {' | '.join(cells)} |")
    return lines


def one_split_table(nights: int, rng: np.random.Generator) -> list[str]:
    lines = [
        f"{nights:,} nights of 100 patches that are better by one deviation on the validation "
        "split and not at all on the test split:",
        "",
        "| rule | nights with a false keep |",
        "|---|---|",
    ]
    for name, rule in RULES.items():
        lost, _ = changeless_nights(nights, 100, rng, rule=rule, effect=1.0, test_effect=0.0)
        lines.append(f"| {name} | {share(lost, nights)} |")
    return lines


def ratchet_table(nights: int, rng: np.random.Generator) -> list[str]:
    lines = [
        f"Patches in a row that remove tokens, means of {nights} nights; the floor is 1:",
        "",
        "| patches | each loses | deviation of a pair | minimum effect | rule | kept | lost in all "
        "| level of the next trial | false keeps in the next 100 |",
        "|---" * 9 + "|",
    ]
    cases = [
        (100, 0.5, 1.0, 0.05),
        (100, 0.5, 1.0, 2.0),
        (100, 0.01, 0.01, 0.05),
        (20, 0.0, 0.0, 0.05),
    ]
    for case in cases:
        for name, rule in RULES.items():
            found = [ratchet(rng, rule, *case) for _ in range(nights)]
            kept, lost, alpha, expected = np.mean(found, axis=0)
            figures = f"{kept:.1f} | {lost:.2f} | {100 * alpha:.3f} % | {expected:.3f}"
            lines.append(f"| {' | '.join(map(str, case))} | {name} | {figures} |")
    return lines


def estimate_table(trials: int, rng: np.random.Generator) -> list[str]:
    lines = [
        f"What the second round says of patches that it keeps, {trials:,} rounds a row:",
        "",
        "| true gain | median estimate | intervals that hold the gain | plain t-intervals that do "
        "| median half width |",
        "|---|---|---|---|---|",
    ]
    for effect in (0.5, 1, 1.5, 2, 4):
        median, held, plain, half = estimates(trials, rng, effect)
        shares = f"{100 * held:.1f} % | {100 * plain:.1f} %"
        lines.append(f"| {effect:g} | {median:.2f} | {shares} | {half:.2f} |")
    return lines


def tables(nights: int = 4_000, trials: int = 4_000, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    sections = [
        level_table(nights, rng),
        power_table(trials, rng),
        one_split_table(nights, rng),
        ratchet_table(max(2, nights // 400), rng),
        estimate_table(trials, rng),
    ]
    n_nights = nights // 20
    n_false, n_kept = mixed_nights(n_nights, 100, rng, good=0.1, effect=3.0)
    title = f"{n_nights} nights of 100 patches, a tenth of them better by 3"
    lines = ["\n".join(section) for section in sections]
    lines.append(f"{title}: {n_kept:,} kept, {n_false} falsely.")
    biases = [f"{adaptive_bias(count, rng):.4f} after {count}" for count in (10, 100)]
    lines.append(f"False gain of an agent that sees means on the test text: {', '.join(biases)}.")
    return "\n\n".join(lines)


if __name__ == "__main__":
    print(tables())
