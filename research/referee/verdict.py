"""Paired differences in, a verdict out: a kept change is better, with a stated confidence.

    python -m tests.slow.simulate_verdict    # tables of what the procedure does, simulated

A difference is candidate val_bpb - baseline val_bpb of two runs with one seed: below 0 is better.
Its noise is unknown and pairs are expensive, hence four parts, each a published procedure:

1. The night. Each trial tests "this patch is no better" at a level alpha, which the false-discovery
   budget assigns (`Night`: LORD++, Ramdas, Yang, Wainwright & Jordan 2017, arXiv:1710.00499). A
   hundred patches that change nothing share one small chance of a mistake.
2. The trial. The same test runs twice, on the trial's seeds and again on fresh seeds and the test
   split, each at the level sqrt(alpha). Fresh seeds are independent, so a patch that is no better
   passes both with probability alpha at most (a two-stage combination, Bauer & Köhne 1994,
   Biometrics 50).
3. The test. One-sided t-tests after each pair (`boundaries`): a group-sequential test whose level
   is spent over the looks (Lan & DeMets 1983, Biometrika 70), exact for normal noise of any size.
   The measured noise floor can only make it stricter: pairs that happen to agree closely do not
   count as much quieter (`FLOOR_SHARE`). The floor also says when another pair is not worth it. A
   wrong floor costs good patches and keeps no bad one.
4. Equality. A change that removes tokens is kept when two one-sided tests (TOST, Schuirmann 1987)
   show at the same looks that it is neither worse nor better by the margin. "No difference was
   found" is not equality.

Assumptions: seeds are drawn anew for each trial and the patch does not choose them; baseline and
candidate take turns on one machine; the noise of differences is about normal (the tables show what
other noise does).
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from nanoloop.options import require

LEVEL = 0.05  # of the night: the expected share of false keeps among all keeps
MAX_PAIRS = 8  # of each of the two rounds
MINIMUM_EFFECT = 0.001  # bits per byte: a smaller gain is not worth a change
HOPELESS_CHANCE = 0.05  # that a look gives up a patch just good enough to be kept
HALF_LIFE = 100  # trials in which the night spends half of its first budget
FLOOR_SHARE = 0.7  # of the noise floor: a smaller spread of a trial's pairs counts as luck
EQUAL_MARGIN = 1.5  # noise deviations within which scores are equal; 8 pairs show no smaller one
MIN_DEVIATION = 1e-9  # bits per byte: smaller differences are rounding
GRID = 256  # angles at which `boundaries` follows the density


@dataclass(frozen=True)
class Noise:
    """The noise floor: the deviation of a pair's difference between two runs of the same code.

    A change that alters the course of training has more noise, which its pairs show.
    """

    sd: float  # bits per byte
    df: int  # degrees of freedom: the number of pairs, since their mean is known to be 0

    @classmethod
    def of(cls, differences: list[float]) -> "Noise":
        return cls(float(np.sqrt(np.mean(np.square(differences)))), len(differences))


# --------------------------------------------------------------------------------------------------
# The night


@dataclass
class Night:
    """The false-discovery budget: LORD++ with the first wealth level / 2.

    A trial counts from its first scored difference; a patch that was refused or crashed before
    tested nothing and costs nothing. While nothing is kept, the chance of any false keep is below
    level / 2, however many patches are tried. Each keep earns new budget, so that the false share
    of keeps stays below level (as the modified rate E[false] / E[kept]; as their expected ratio
    where trials are independent).
    """

    level: float = LEVEL
    trials: int = 0
    kept: list[int] = field(default_factory=list)  # numbers of the kept trials, from 1

    @classmethod
    def of(cls, rows: list[dict], level: float = LEVEL) -> "Night":
        """Rebuild the night from the ledger's trials, oldest first.

        A trial that began and never ended counts too. One that repeats earlier seeds does not.
        """
        night = cls(level)
        for row in rows:
            is_tested = row.get("differences") or row["state"] != "done"
            if row["kind"] == "trial" and is_tested and not row.get("replay_of"):
                night.record((row.get("verdict") or "").startswith("keep"))
        return night

    def record(self, kept: bool) -> None:
        """Count a trial that has scored a difference."""
        self.trials += 1
        if kept:
            self.kept.append(self.trials)

    def shares(self) -> list[tuple[float, int]]:
        """Return each budget that was given out, and the number of trials since then.

        One is given at the start, one for the first keep, and one for each further keep.
        """
        shares = [(self.level / 2, self.trials)]
        for index, trial in enumerate(self.kept):
            share = self.level if index else self.level / 2
            shares.append((share, self.trials - trial))
        return shares

    def alpha(self) -> float:
        """Return the level of the next trial.

        A share is spent as k / ((j + k - 1)(j + k)) for j = 1, 2, …, which adds up to 1.
        """
        k = HALF_LIFE
        return sum(share * k / ((age + k) * (age + k + 1)) for share, age in self.shares())

    def left(self) -> float:
        """Return the unspent part of the budgets given out so far; `level` / 2 at first."""
        return sum(share * HALF_LIFE / (age + HALF_LIFE) for share, age in self.shares())


# --------------------------------------------------------------------------------------------------
# The test


@lru_cache
def boundaries(level: float, max_pairs: int) -> np.ndarray:
    """Compute (max_pairs,) t-statistics that noise reaches with chance `level`.

    Look n spends a share of the level in proportion to n - 2: few pairs show little, and the last
    look has most of it. The looks share pairs; adding up their chances as if they did not would
    waste much power. Noise alone makes the angle φ, sin φ = Σx / √(n Σx²), a Markov chain that does
    not depend on the size of the noise, since x_n / √Σx² is independent of the angle before:
    √n sin φ_n = √(n-1) sin φ_(n-1) cos ψ + sin ψ with √(n-1) tan ψ ~ t(n-1). The t-statistic is
    √(n-1) tan φ_n.
    """
    from scipy.optimize import brentq

    spend = level * np.arange(max_pairs - 1) / math.comb(max_pairs - 1, 2)  # after 2, 3, … pairs
    # After two pairs the angle is uniform.
    edges = np.linspace(-np.pi / 2, np.pi / 2, GRID + 1)
    weights = np.full(GRID, 1 / GRID)
    limits = [np.inf, np.inf]
    for n in range(3, max_pairs + 1):
        middles = (edges[1:] + edges[:-1]) / 2
        limit = brentq(excess, -1.5, np.pi / 2, args=(n, middles, weights, spend[n - 2]))
        limits.append(np.sqrt(n - 1) * np.tan(limit))
        edges = np.linspace(-np.pi / 2, limit, GRID + 1)
        weights = -np.diff(chance_above(edges[:, None], n, middles, weights))
    return np.array(limits)


def chance_above(angle, n: int, middles: np.ndarray, weights: np.ndarray):
    """Return the chance that n pairs have an angle above `angle`: (…, 1) to (…,).

    middles, weights: (GRID,) angles after n - 1 pairs, and their chances.
    """
    from scipy.stats import t

    across = np.sqrt(n - 1) * np.sin(middles)
    turned = np.arctan(across)
    low = np.arcsin(np.clip(np.sqrt(n) * np.sin(angle) / np.hypot(across, 1), -1, 1)) - turned
    ends = np.clip([low, np.pi - low - 2 * turned], -np.pi / 2, np.pi / 2)
    low_share, high_share = t.cdf(np.sqrt(n - 1) * np.tan(ends), n - 1)
    return ((high_share - low_share) * weights).sum(-1)


def excess(angle: float, n: int, middles: np.ndarray, weights: np.ndarray, spent: float) -> float:
    return chance_above(angle, n, middles, weights) - spent


# What a look says.
CONTINUE = 0
BETTER = 1
EQUAL = 2
HOPELESS = 3


def deviations(d: np.ndarray, noise: Noise | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Estimate the standard deviation of each row of `d`, (rows, n).

    Returns it by the row's pairs alone, it with the noise floor pooled in, and the degrees of
    freedom of the latter.
    """
    rows, n = d.shape
    squares = d.var(1) * n
    alone = np.full(rows, np.inf)
    if n > 1:
        alone = np.maximum(np.sqrt(squares / (n - 1)), MIN_DEVIATION)
    df = n - 1
    if noise:
        df += noise.df
        squares = squares + noise.sd**2 * noise.df
    pooled = np.sqrt(squares / df) if df else np.full(rows, np.inf)
    return alone, pooled, df


def look(
    d: np.ndarray,
    level: float,
    max_pairs: int,
    noise: Noise | None,
    minimum_effect: float,
    margin: float | None,
) -> np.ndarray:
    """Say what each row of `d`, (rows, pairs so far), shows: (rows,) of CONTINUE … HOPELESS.

    A row is hopeless if, with 95 % confidence, it lacks the gain that max_pairs pairs could show,
    or with a margin the equality. Here the noise floor helps, pooled with the row's deviation: a
    clear loser leaves after one pair.
    """
    from scipy.stats import t

    n = d.shape[1]
    limits = boundaries(level, max_pairs)
    mean = d.mean(1)
    alone, pooled, df = deviations(d, noise)
    floor = FLOOR_SHARE * noise.sd if noise else 0.0
    is_significant = -mean * np.sqrt(n) >= limits[n - 1] * np.maximum(alone, floor)
    is_better = is_significant & (mean <= -minimum_effect)

    reachable = limits[-1] * pooled / np.sqrt(max_pairs)
    needed = -np.maximum(reachable, minimum_effect)
    is_equal = np.zeros(len(d), bool)
    if margin is not None:
        needed = np.maximum(needed, margin - reachable)
        is_equal = (margin - abs(mean)) * np.sqrt(n) >= limits[n - 1] * alone
    quantile = t.isf(HOPELESS_CHANCE, df) if df else 1
    is_hopeless = mean - quantile * pooled / np.sqrt(n) > needed
    return np.select([is_better, is_equal, is_hopeless], [BETTER, EQUAL, HOPELESS], CONTINUE)


def round_level(alpha: float) -> float:
    """Return the level of one round of two: sqrt(alpha), rounded down to a grid.

    So only few boundaries are ever computed.
    """
    return 2.0 ** (math.floor(4 * math.log2(alpha)) / 8)


@dataclass(frozen=True)
class Decision:
    """A verdict, and the differences that it rests on.

    interval: the plain 95 % t-interval, the noise floor pooled with the pairs. It is for
    orientation: the verdict rests on `boundaries`.
    """

    verdict: str  # keep, keep (simpler), reject or undecided
    reason: str
    mean: float  # bits per byte
    interval: tuple[float, float]  # bits per byte


def decide(
    differences: list[float],
    *,
    alpha: float,
    minimum_effect: float = MINIMUM_EFFECT,
    max_pairs: int = MAX_PAIRS,
    noise: Noise | None = None,
    tokens: int = 0,
) -> Decision | None:
    """Decide on the pairs so far; None asks for another. `confirm` must say keep as well.

    alpha: the trial's level, from `Night.alpha`. tokens: of the recipe, added - removed; below 0
    equality suffices. Scores are equal if they differ by less than the margin: EQUAL_MARGIN, or the
    minimum effect if that is more. Raises UserError.
    """
    from scipy.stats import t

    require(max_pairs >= 3, f"max_pairs must be at least 3 to show anything, got {max_pairs}")
    require(minimum_effect >= 0, f"minimum_effect must be at least 0, got {minimum_effect}")
    if not np.isfinite(differences).all():
        return Decision("reject", "a score is not a finite number", math.nan, (math.nan, math.nan))
    d = np.array([differences])
    n = len(differences)
    margin = max(minimum_effect, EQUAL_MARGIN * noise.sd if noise else 0.0)
    equal_margin = margin if tokens < 0 else None
    (seen,) = look(d, round_level(alpha), max_pairs, noise, minimum_effect, equal_margin)
    if seen == CONTINUE and n < max_pairs:
        return None

    mean = float(d.mean())
    _, (sd,), df = deviations(d, noise)
    half = float(t.isf(0.025, df) * sd / math.sqrt(n)) if df else math.inf
    low = mean - half
    high = mean + half
    if seen == BETTER:
        verdict = "keep"
        reason = "better"
    elif seen == EQUAL:
        verdict = "keep (simpler)"
        reason = f"equal within ±{margin:.4f}, {plural(-tokens, 'token')} fewer"
    elif seen == HOPELESS:
        verdict = "reject"
        reason = "worse" if low > 0 else f"no gain that {max_pairs} pairs could show"
    elif low <= -minimum_effect:
        verdict = "undecided"
        reason = "no clear answer"
    else:
        verdict = "reject"
        reason = f"no gain of {minimum_effect:g}"
    reason += f": {mean:+.4f} bits per byte over {plural(n, 'pair')}"
    if df:
        reason += f", 95 % interval {low:+.4f} to {high:+.4f}"
    return Decision(verdict, reason, mean, (low, high))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def confirm(differences: list[float], **rules) -> Decision | None:
    """Decide on the second round: the test split's differences, of seeds that were not used."""
    decision = decide(differences, **rules)
    if decision is None or decision.verdict.startswith("keep"):
        return decision
    reason = f"not confirmed on fresh seeds and the test split ({decision.reason})"
    return replace(decision, reason=reason)


def smallest_effect(sd: float, pairs: int, alpha: float, power: float = 0.8) -> float:
    """Return the gain, bits per byte, that is kept with chance `power`.

    Each round has `pairs` pairs, whose differences have the deviation `sd`.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct

    limit = boundaries(round_level(alpha), pairs)[-1]

    def lack(shift: float) -> float:
        return nct.sf(limit, pairs - 1, shift) - math.sqrt(power)

    shift = brentq(lack, 0, 10 * limit)
    return sd * shift / math.sqrt(pairs)
