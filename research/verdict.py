"""Paired differences in, a verdict out: what is kept is better, with a stated confidence over the whole night.

    python -m tests.simulate_verdict    # what the procedure does to simulated nights of patches, as tables

A difference is candidate val_bpb - baseline val_bpb of two runs with the same seed, so that below 0 is better. Its
noise is unknown and pairs are dear, hence four parts, each a published procedure:

1. The night. Every trial tests "this patch is no better" at a level alpha that the false-discovery budget hands out
   (`Night`: LORD++, Ramdas, Yang, Wainwright & Jordan 2017, arXiv:1710.00499). A hundred changeless patches share one
   small chance of a mistake; they do not have one each.
2. The trial. The same test is run twice, on the trial's seeds and again on fresh seeds and the test split, each at the
   level sqrt(alpha): fresh seeds are independent, so a patch that is no better passes both with probability alpha at
   most (a two-stage combination, Bauer & Köhne 1994, Biometrics 50).
3. The test. One-sided t-tests after every pair (`boundaries`): a group-sequential test whose level is spent over the
   looks (Lan & DeMets 1983, Biometrika 70), exact for normal noise of any size. The noise floor that was measured
   before can only make it stricter, never laxer: pairs that happen to agree closely are not believed to be much quieter
   (`FLOOR_SHARE`), and it tells when going on is not worth it. A wrong floor costs good patches and keeps no bad one.
4. Equality. A change that removes lines is kept when two one-sided tests (TOST, Schuirmann 1987) show at the same looks
   that it is neither worse nor better by the margin; "no difference was found" is not equality.

What it rests on: seeds are drawn afresh for every trial and are not the patch's to choose; baseline and candidate take
turns on one machine; the noise of differences is about normal (the table shows what other noise does).
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from nanoloop.options import require

LEVEL = 0.05  # of the night: expected share of false ones among what is kept
MAX_PAIRS = 8  # of each of the two rounds
MINIMUM_EFFECT = 0.001  # bits per byte: a smaller gain is not worth a change
LEAVING = (
    0.05  # chance, at each look, that a patch just good enough to be kept is sent away as hopeless
)
HALF_LIFE = 100  # trials in which the night spends half of its first budget
FLOOR_SHARE = (
    0.7  # of the noise floor: less spread than this among a trial's own pairs is taken for luck
)
EQUAL_MARGIN = 1.5  # noise deviations within which scores count as equal; less could hardly be shown with 8 pairs
DUST = 1e-9  # bits per byte: differences of rounding alone


@dataclass(frozen=True)
class Noise:
    """The noise floor: standard deviation of a paired difference (same seed) between two runs of what is the same code
    in all that matters. A change that alters the course of training has more noise, which its own pairs show."""

    sd: float  # bits per byte
    df: int  # degrees of freedom of that estimate: the number of pairs, since their mean is known to be 0

    @classmethod
    def of(cls, differences: list[float]) -> "Noise":
        return cls(float(np.sqrt(np.mean(np.square(differences)))), len(differences))


# ---------------------------------------------------------------------------------------------------------------------
# The night


@dataclass
class Night:
    """The false-discovery budget: LORD++ with the first wealth level / 2.

    A trial counts from the first difference that was scored; a patch that was refused or crashed before that tested
    nothing and costs nothing. As long as nothing was kept, the chance of keeping anything false is below level / 2
    however many patches are tried. Every keep earns the budget anew, so that its false share stays below level
    (in the sense of the modified rate E[false] / E[kept]; of their expected ratio where trials are independent).
    """

    level: float = LEVEL
    trials: int = 0
    kept: list[int] = field(default_factory=list)  # the trials that were kept, counted from 1

    @classmethod
    def of(cls, rows: list[dict], level: float = LEVEL) -> "Night":
        """The night so far, from the ledger's trials, oldest first. One that was begun and never ended counts too; one
        that repeats the seeds of an earlier one does not."""
        night = cls(level)
        for row in rows:
            tested = row["kind"] == "trial" and (row.get("differences") or row["state"] != "done")
            if tested and not row.get("replay_of"):
                night.record((row.get("verdict") or "").startswith("keep"))
        return night

    def record(self, kept: bool) -> None:
        """Count one trial whose first difference was scored."""
        self.trials += 1
        self.kept += [self.trials] if kept else []

    def shares(self) -> list[tuple[float, int]]:
        """The budgets that were given out and the trials since: at first, at the first keep, at every further one."""
        given = (
            [self.level / 2]
            + [self.level / 2] * bool(self.kept)
            + [self.level] * (len(self.kept) - 1)
        )
        return [(share, self.trials - since) for share, since in zip(given, [0, *self.kept])]

    def alpha(self) -> float:
        """The level of the next trial. A share is spent as k / ((j + k - 1)(j + k)), j = 1, 2, …; that adds up to 1."""
        k = HALF_LIFE
        return sum(share * k / ((age + k) * (age + k + 1)) for share, age in self.shares())

    def left(self) -> float:
        """What is not spent yet of the budgets given out so far; `level` / 2 at first."""
        return sum(share * HALF_LIFE / (age + HALF_LIFE) for share, age in self.shares())


# ---------------------------------------------------------------------------------------------------------------------
# The test


@lru_cache
def boundaries(level: float, max_pairs: int) -> np.ndarray:
    """(max_pairs,) the t-statistics to reach after 1, 2, … pairs; the chance that noise reaches any of them is `level`.

    Look n spends a share of the level in proportion to n - 2: few pairs show little, and the last look has most of it.
    The looks share pairs; adding up their chances as if they did not would waste much of the power. Noise alone makes
    the angle φ, sin φ = Σx / √(n Σx²), a Markov chain free of the noise's size, since x_n / √Σx² is independent of the
    angle before: √n sin φ_n = √(n-1) sin φ_(n-1) cos ψ + sin ψ with √(n-1) tan ψ ~ t(n-1). The t-statistic is
    √(n-1) tan φ_n.
    """
    from scipy.optimize import brentq
    from scipy.stats import t

    spend = level * np.arange(max_pairs - 1) / math.comb(max_pairs - 1, 2)  # after 2, 3, … pairs
    edges = np.linspace(-np.pi / 2, np.pi / 2, 257)
    middles, weights = (
        (edges[1:] + edges[:-1]) / 2,
        np.full(256, 1 / 256),
    )  # after two pairs the angle is uniform
    found = [np.inf, np.inf]
    for n in range(3, max_pairs + 1):
        across = np.sqrt(n - 1) * np.sin(middles)
        length, turned = np.hypot(across, 1), np.arctan(across)

        def beyond(angle):
            """Chance of being here and above each of the angles, (…, 1) in, (…,) out."""
            low = np.arcsin(np.clip(np.sqrt(n) * np.sin(angle) / length, -1, 1)) - turned
            ends = np.clip([low, np.pi - low - 2 * turned], -np.pi / 2, np.pi / 2)
            below = t.cdf(np.sqrt(n - 1) * np.tan(ends), n - 1)
            return ((below[1] - below[0]) * weights).sum(-1)

        stop = brentq(lambda angle: beyond(angle) - spend[n - 2], -1.5, np.pi / 2)
        found.append(np.sqrt(n - 1) * np.tan(stop))
        edges = np.linspace(-np.pi / 2, stop, 257)
        middles, weights = (edges[1:] + edges[:-1]) / 2, -np.diff(beyond(edges[:, None]))
    return np.array(found)


CONTINUE, BETTER, EQUAL, HOPELESS = range(4)


def deviations(d: np.ndarray, noise: Noise | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Standard deviation of each row of `d`, (rows, n), by its own pairs; with the noise floor pooled in; its df."""
    n = d.shape[1]
    squares, before, df = (
        d.var(1) * n,
        noise.sd**2 * noise.df if noise else 0.0,
        n - 1 + (noise.df if noise else 0),
    )
    own = np.maximum(np.sqrt(squares / (n - 1)), DUST) if n > 1 else np.full(len(d), np.inf)
    return own, np.sqrt((squares + before) / df) if df else np.full(len(d), np.inf), df


def look(
    d: np.ndarray,
    level: float,
    max_pairs: int,
    noise: Noise | None,
    minimum_effect: float,
    margin: float | None,
):
    """What each row of `d`, (rows, pairs so far), says at this look: (rows,) of the four constants above.

    Hopeless is who, with 95 % confidence, lacks the gain that max_pairs pairs could show (or the equality, where a
    margin is given). Here the noise floor helps, pooled with the row's own deviations: a loser leaves after one pair.
    """
    from scipy.stats import t

    n, limits, mean = d.shape[1], boundaries(level, max_pairs), d.mean(1)
    own, sd, df = deviations(d, noise)
    floor = FLOOR_SHARE * noise.sd if noise else 0.0
    better = (-mean * np.sqrt(n) >= limits[n - 1] * np.maximum(own, floor)) & (
        mean <= -minimum_effect
    )
    in_reach = limits[-1] * sd / np.sqrt(max_pairs)
    hoped = -np.maximum(in_reach, minimum_effect)
    equal = np.zeros(len(d), bool)
    if margin is not None:
        hoped = np.maximum(hoped, margin - in_reach)
        equal = (margin - abs(mean)) * np.sqrt(n) >= limits[n - 1] * own
    hopeless = mean - (t.isf(LEAVING, df) if df else 1) * sd / np.sqrt(n) > hoped
    return np.select([better, equal, hopeless], [BETTER, EQUAL, HOPELESS], CONTINUE)


def round_level(alpha: float) -> float:
    """The level of one round of two: sqrt(alpha), rounded down to a grid, so that few boundaries are ever computed."""
    return 2.0 ** (math.floor(4 * math.log2(alpha)) / 8)


@dataclass(frozen=True)
class Decision:
    """verdict: keep, keep (simpler), reject or undecided. mean, interval: of the differences, bits per byte; the
    interval is the plain 95 % t-interval, the noise floor pooled with the pairs, for orientation: the verdict rests on
    `boundaries`."""

    verdict: str
    reason: str
    mean: float
    interval: tuple[float, float]


def decide(
    differences: list[float],
    *,
    alpha: float,
    minimum_effect: float = MINIMUM_EFFECT,
    max_pairs: int = MAX_PAIRS,
    noise: Noise | None = None,
    lines: int = 0,
) -> Decision | None:
    """What the pairs so far say; None asks for another pair. A keep is provisional until `confirm` says keep as well.

    alpha: the trial's level, from `Night.alpha`. lines: added - removed in the spine; below 0 equality suffices.
    Equal is what differs by less than EQUAL_MARGIN, and than the minimum effect. Raises UserError.
    """
    from scipy.stats import t

    require(
        max_pairs >= 3,
        f"max_pairs={max_pairs}: fewer than 3 pairs cannot show anything, whatever they say",
    )
    require(minimum_effect >= 0, f"minimum_effect={minimum_effect} must not be below 0")
    if not np.isfinite(differences).all():
        return Decision("reject", "a score is not a finite number", math.nan, (math.nan, math.nan))
    d, n = np.array([differences]), len(differences)
    margin = max(minimum_effect, EQUAL_MARGIN * noise.sd if noise else 0.0)
    said = look(
        d, round_level(alpha), max_pairs, noise, minimum_effect, margin if lines < 0 else None
    )[0]
    mean, (_, sd, df) = float(d.mean()), deviations(d, noise)
    half = float(t.isf(0.025, df) * sd[0] / math.sqrt(n)) if df else math.inf
    interval = mean - half, mean + half
    told = f"{mean:+.4f} bits per byte over {n} pair{'s' * (n > 1)}"
    told += f", 95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}" if df else ""
    answers = {
        BETTER: ("keep", "better"),
        EQUAL: (
            "keep (simpler)",
            f"equal within ±{margin:.4f}, {-lines} line{'s' * (lines < -1)} fewer",
        ),
        HOPELESS: (
            "reject",
            "worse" if interval[0] > 0 else f"no gain that {max_pairs} pairs could show",
        ),
    }
    if n >= max_pairs:
        found = interval[0] <= -minimum_effect
        answers[CONTINUE] = (
            ("undecided", "no clear answer")
            if found
            else ("reject", f"no gain of {minimum_effect:g}")
        )
    if said not in answers:
        return None
    verdict, why = answers[said]
    return Decision(verdict, f"{why}: {told}", mean, interval)


def confirm(differences: list[float], **rules) -> Decision | None:
    """The second round: `decide` again, on the test split's differences of seeds that were not used before."""
    decision = decide(differences, **rules)
    if decision is None or decision.verdict.startswith("keep"):
        return decision
    return replace(
        decision, reason=f"not confirmed on fresh seeds and the test split ({decision.reason})"
    )


def smallest_effect(sd: float, pairs: int, alpha: float, power: float = 0.8) -> float:
    """The gain, bits per byte, that is kept with chance `power` if both rounds run to `pairs` pairs of this noise."""
    from scipy.optimize import brentq
    from scipy.stats import nct

    limit, hit = boundaries(round_level(alpha), pairs)[-1], math.sqrt(power)
    shift = brentq(lambda shift: nct.sf(limit, pairs - 1, shift) - hit, 0, 10 * limit)
    return sd * shift / math.sqrt(pairs)
