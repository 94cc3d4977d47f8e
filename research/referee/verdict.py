"""Paired differences in, a verdict out: a kept change is better, with a stated confidence.

    python -m tests.slow.simulate_verdict    # tables of what the procedure does, simulated

A difference is candidate val_bpb - baseline val_bpb of two runs with one seed: below 0 is better.
Its noise is unknown and pairs are expensive, hence four parts, each a published procedure:

1. The night. Each trial tests "this patch is no better" at a level alpha, which the false-discovery
   budget assigns (`Night`: LORD++, Ramdas, Yang, Wainwright & Jordan 2017, arXiv:1710.00499). A
   hundred patches that change nothing share one small chance of a mistake.
2. The trial. A first round of few pairs, at the level `SCREEN`, says whether a second is worth it.
   The second has fresh seeds, the test split and the level alpha / SCREEN. Fresh seeds are
   independent, so a patch that is better on neither split passes both with probability alpha at
   most (a two-stage combination, Bauer & Köhne 1994, Biometrics 50). One that is better on the
   validation split alone passes with alpha / SCREEN at most.
3. The test. One-sided t-tests after each pair (`boundaries`): a group-sequential test whose level
   is spent over the looks (Lan & DeMets 1983, Biometrika 70), exact for normal noise of any size.
   The measured noise floor can only make it stricter: pairs that happen to agree closely do not
   count as quieter. The floor also says when another pair is not worth it. A wrong floor costs good
   patches and keeps no bad one, as long as the noise is about normal.
4. Equality. A change that removes tokens is kept when two one-sided tests (TOST, Schuirmann 1987)
   show at the same looks that it is neither worse nor better by the margin. "No difference was
   found" is not equality. All such changes together lose less than the minimum effect until the
   next change that is better (`Night.lost`), and they earn no budget.

Assumptions: seeds are drawn anew for each trial and the patch does not choose them; baseline and
candidate run one after the other on one machine, in random order; the noise of differences is about
normal (the tables show what other noise does).
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy import ndarray

LEVEL = 0.05  # of the night: the expected share of false keeps among all keeps
SCREEN = 0.05  # level of a trial's first round
MAX_PAIRS = 24  # of the second round; the first has a third of them
FIRST_LOOK = 6  # pairs before a gain is believed; with fewer, agreement by luck is too likely
SAME_PAIRS = 2  # equal to the bit show that a change does nothing
MINIMUM_EFFECT = 0.001  # bits per byte: a smaller gain is not worth a change
HOPELESS_CHANCE = 0.1  # that a look gives up a patch just good enough to be kept
POWER = 0.8  # chance to be kept of a gain that counts as visible
HALF_LIFE = 100  # trials in which the night spends half of its first budget
MIN_DEVIATION = 1e-9  # bits per byte: smaller differences are rounding
KEEP = "keep"
SIMPLER = "keep (simpler)"
GRID = 256  # angles at which `boundaries` follows the density


@dataclass(frozen=True)
class Noise:
    """The noise floor: the deviation of a pair's difference between two seeds of one recipe.

    A change that alters training entirely has this noise; most have less. The pairs show more.
    """

    sd: float  # bits per byte
    df: int  # degrees of freedom: the number of pairs, since their mean is known to be 0

    @classmethod
    def of(cls, row: dict) -> "Noise":
        """Read a row of the ledger that `noise` has written."""
        found = row["differences"]
        return cls(float(np.sqrt(np.mean(np.square(found)))), len(found))


# --------------------------------------------------------------------------------------------------
# The night


@dataclass
class Night:
    """The false-discovery budget: LORD++ with the first wealth LEVEL / 2.

    A trial counts from its first scored difference; a patch that was refused or crashed before
    tested nothing and costs nothing. While nothing is kept, the chance of any false keep is below
    LEVEL / 2, however many patches are tried. Each change that is kept as better earns new budget,
    so that the false share of keeps stays below LEVEL (as the modified rate E[false] / E[kept]; as
    their expected ratio where trials are independent).
    """

    trials: int = 0
    kept: list[int] = field(default_factory=list)  # numbers of the trials kept as better, from 1
    lost: float = 0.0  # bits per byte that simpler changes kept since the last better one may lose

    @classmethod
    def of(cls, rows: list[dict]) -> "Night":
        """Rebuild the night from the ledger's rows, oldest first.

        A trial that began and never ended counts too.
        """
        night = cls()
        for row in rows:
            is_tested = row.get("differences") or row["state"] != "done"
            if row["kind"] == "trial" and is_tested:
                night.record(row.get("verdict"), row.get("interval"))
        return night

    def record(self, verdict: str | None, interval: list[float] | None = None) -> None:
        """Count a trial that has scored a difference."""
        self.trials += 1
        if verdict == SIMPLER:
            self.lost += max(interval[1], 0.0)
        elif verdict == KEEP:
            self.kept.append(self.trials)
            self.lost = 0.0

    def shares(self) -> list[tuple[float, int]]:
        """Return each budget that was given out, and the number of trials since then.

        One is given at the start, one for the first change kept as better, one for each further.
        """
        shares = [(LEVEL / 2, self.trials)]
        for index, trial in enumerate(self.kept):
            share = LEVEL if index else LEVEL / 2
            shares.append((share, self.trials - trial))
        return shares

    def alpha(self) -> float:
        """Return the level of the next trial.

        A share is spent as k / ((j + k - 1)(j + k)) for j = 1, 2, …, which adds up to 1.
        """
        k = HALF_LIFE
        return sum(share * k / ((age + k) * (age + k + 1)) for share, age in self.shares())

    def left(self) -> float:
        """Return the unspent part of the budgets given out so far; LEVEL / 2 at first."""
        return sum(share * HALF_LIFE / (age + HALF_LIFE) for share, age in self.shares())


# --------------------------------------------------------------------------------------------------
# The test


@lru_cache
def boundaries(level: float, max_pairs: int, first: int | None = None) -> ndarray:
    """Compute (max_pairs,) t-statistics that noise reaches with chance `level`.

    first: number of pairs, at least 3, at the first look that can show a gain; None: FIRST_LOOK, or
    half of the pairs if they are few. From there, each look spends a share of the level in
    proportion to 1, 2, 3, …: the last look has most of it. The looks share pairs; adding up their
    chances as if they did not would waste much power. Noise alone makes the angle φ, sin φ =
    Σx / √(n Σx²), a Markov chain that does not depend on the size of the noise, since x_n / √Σx² is
    independent of the angle before:
    √n sin φ_n = √(n-1) sin φ_(n-1) cos ψ + sin ψ with √(n-1) tan ψ ~ t(n-1). The t-statistic is
    √(n-1) tan φ_n.
    """
    from scipy.optimize import brentq

    first = first or max(3, min(FIRST_LOOK, max_pairs // 2))
    shares = np.maximum(np.arange(max_pairs + 1) - first + 1, 0)  # after 0, 1, 2, … pairs
    spend = level * shares / shares.sum()
    # After two pairs the angle is uniform.
    edges = np.linspace(-np.pi / 2, np.pi / 2, GRID + 1)
    weights = np.full(GRID, 1 / GRID)
    limits = [np.inf, np.inf]
    for n in range(3, max_pairs + 1):
        middles = (edges[1:] + edges[:-1]) / 2
        limit = np.pi / 2
        limits.append(np.inf)
        if n >= first:
            limit = brentq(chance_above, -1.5, limit, args=(n, middles, weights, spend[n]))
            limits[-1] = np.sqrt(n - 1) * np.tan(limit)
        edges = np.linspace(-np.pi / 2, limit, GRID + 1)
        weights = -np.diff(chance_above(edges[:, None], n, middles, weights))
    return np.array(limits)


def chance_above(angle, n: int, middles: ndarray, weights: ndarray, spent: float = 0.0):
    """Return the chance that n pairs have an angle above `angle`, less `spent`.

    angle: (…, 1) to (…,). middles, weights: (GRID,) angles after n - 1 pairs, and their chances.
    """
    from scipy.stats import t

    across = np.sqrt(n - 1) * np.sin(middles)
    turned = np.arctan(across)
    low = np.arcsin(np.clip(np.sqrt(n) * np.sin(angle) / np.hypot(across, 1), -1, 1)) - turned
    ends = np.clip([low, np.pi - low - 2 * turned], -np.pi / 2, np.pi / 2)
    low_share, high_share = t.cdf(np.sqrt(n - 1) * np.tan(ends), n - 1)
    return ((high_share - low_share) * weights).sum(-1) - spent


# What a look says.
CONTINUE = 0
BETTER = 1
EQUAL = 2
IDENTICAL = 3
HOPELESS = 4


def deviations(d: ndarray, noise: Noise) -> tuple[ndarray, ndarray, int]:
    """Estimate the standard deviation of each row of `d`, (rows, n).

    Returns it by the row's pairs alone, it with the noise floor pooled in, and the degrees of
    freedom of the latter.
    """
    rows, n = d.shape
    squares = d.var(1) * n
    alone = np.full(rows, np.inf)
    if n > 1:
        alone = np.maximum(np.sqrt(squares / (n - 1)), MIN_DEVIATION)
    df = n - 1 + noise.df
    pooled = np.sqrt((squares + noise.sd**2 * noise.df) / df)
    return alone, pooled, df


def look(
    d: ndarray,
    level: float,
    max_pairs: int,
    noise: Noise,
    minimum_effect: float,
    margin: float | None,
) -> ndarray:
    """Say what each row of `d`, (rows, pairs so far), shows: (rows,) of CONTINUE … HOPELESS.

    margin: of equality, None where it does not count. A row is hopeless if, with 90 % confidence,
    it lacks the gain that max_pairs pairs could show, or the equality. Here the noise floor helps,
    pooled with the row's deviation: a clear loser leaves after one pair.
    """
    from scipy.stats import t

    rows, n = d.shape
    limits = boundaries(level, max_pairs)
    mean = d.mean(1)
    alone, pooled, df = deviations(d, noise)
    spread = np.maximum(alone, noise.sd)
    is_better = (-mean * np.sqrt(n) >= limits[n - 1] * spread) & (mean <= -minimum_effect)
    is_identical = (d == 0).all(1) & (n >= SAME_PAIRS)

    reach = limits[-1] / np.sqrt(max_pairs)  # deviations that all pairs can show
    needed = -np.maximum(reach * pooled, minimum_effect)
    is_equal = np.zeros(rows, bool)
    if margin is not None:
        known = alone if n > 1 else 0.0  # one pair has no deviation: later ones may agree closely
        needed = np.maximum(needed, margin - reach * known)
        is_equal = (margin - abs(mean)) * np.sqrt(n) >= limits[n - 1] * alone
    is_hopeless = mean - t.isf(HOPELESS_CHANCE, df) * pooled / np.sqrt(n) > needed
    cases = [is_identical, is_better, is_equal, is_hopeless]
    return np.select(cases, [IDENTICAL, BETTER, EQUAL, HOPELESS], CONTINUE)


def rounds(alpha: float, max_pairs: int) -> list[tuple[float, int]]:
    """Return the level and the most pairs of each of a trial's two rounds.

    The second level is rounded down to a grid, so that only few boundaries are ever computed.
    """
    level = 2.0 ** (math.floor(8 * math.log2(alpha / SCREEN)) / 8)
    return [(SCREEN, max(3, max_pairs // 3)), (level, max_pairs)]


@dataclass(frozen=True)
class Decision:
    """A verdict, and the differences that it rests on.

    interval: of a change that is kept one of at least 95 %, however early its pairs ended (a
    repeated confidence interval, Jennison & Turnbull 1989, JRSS B 51); else the plain t-interval,
    for orientation. Its upper end is what a simpler change may lose.
    """

    verdict: str  # keep, keep (simpler), reject or undecided
    reason: str
    mean: float  # bits per byte
    interval: list[float]  # from low to high, bits per byte


def decide(
    differences: list[float],
    *,
    level: float,
    max_pairs: int,
    noise: Noise,
    minimum_effect: float = MINIMUM_EFFECT,
    tokens: int = 0,
    lost: float = 0.0,
) -> Decision | None:
    """Decide on one round's pairs so far; None asks for another. `conclude` joins two rounds.

    level, max_pairs: of the round, from `rounds`. tokens: of the recipe, added - removed; below 0
    equality suffices: a loss below the minimum effect, less what was `lost` before.
    """
    from scipy.stats import t

    d = np.array([differences])
    n = len(differences)
    margin = minimum_effect - lost if tokens < 0 else None
    (seen,) = look(d, level, max_pairs, noise, minimum_effect, margin)
    if seen == CONTINUE and n < max_pairs:
        return None

    mean = d.mean()
    (alone,), (pooled,), df = deviations(d, noise)
    half = t.isf(0.025, df) * pooled / math.sqrt(n)
    sure = boundaries(0.025, max_pairs)[n - 1] / math.sqrt(n)  # deviations
    if seen == IDENTICAL:
        half = 0.0
        verdict = SIMPLER if tokens < 0 else "reject"
        reason = "identical to the baseline: nothing that this recipe uses was changed"
    elif seen == BETTER:
        half = sure * max(alone, noise.sd)
        verdict = KEEP
        reason = "better"
    elif seen == EQUAL:
        half = sure * alone
        verdict = SIMPLER
        reason = f"equal within {margin:.4f}"
    elif seen == HOPELESS:
        verdict = "reject"
        reason = "worse" if mean > half else f"no gain that {max_pairs} pairs could show"
    elif mean - half <= -minimum_effect:
        verdict = "undecided"
        reason = "no clear answer"
    else:
        verdict = "reject"
        reason = f"no gain of {minimum_effect:g}"
    low = mean - half
    high = mean + half
    if verdict == SIMPLER:
        reason += f", {plural(-tokens, 'token')} fewer"
    reason += f": {mean:+.4f} bits per byte over {plural(n, 'pair')}"
    reason += f", 95 % interval {low:+.4f} to {high:+.4f}"
    return Decision(verdict, reason, mean, [low, high])


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def conclude(first: Decision, second: Decision | None = None) -> Decision:
    """Join a trial's two rounds: better is what both find better.

    second: None if the first round kept nothing. Its figures are the trial's, but the reason, which
    an agent may read, holds no figure of the test split.
    """
    if second is None:
        return first
    verdict = first.verdict if second.verdict == KEEP else second.verdict
    reason = f"{first.reason}; then, on fresh seeds and the test split: {second.verdict}"
    return replace(second, verdict=verdict, reason=reason)


def smallest_effect(sd: float, max_pairs: int, alpha: float) -> float:
    """Return the gain, bits per byte, that is kept four times in five.

    sd: deviation of a pair's difference. Looks before the last are ignored.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct

    def lack(gain: float) -> float:
        chance = 1.0
        for level, pairs in rounds(alpha, max_pairs):
            limit = boundaries(level, pairs)[-1]
            chance *= nct.sf(limit, pairs - 1, gain * math.sqrt(pairs))
        return chance - POWER

    return sd * brentq(lack, 0, 20)
