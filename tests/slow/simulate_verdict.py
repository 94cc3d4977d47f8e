"""What the verdict's procedure does to simulated nights of patches, as Markdown tables:

    python -m tests.slow.simulate_verdict

The noise of a difference has standard deviation 1 here; effects and margins are in that unit.
"""

import math

import numpy as np

from research.referee import verdict
from research.referee.verdict import (
    BETTER,
    CONTINUE,
    EQUAL,
    EQUAL_MARGIN,
    LEVEL,
    MAX_PAIRS,
    Night,
    Noise,
    round_level,
)


def heavy_tails(rng, size):
    return rng.standard_t(3, size) / math.sqrt(3)


def sometimes_much_worse(rng, size):
    return rng.exponential(size=size) - 1


def sometimes_much_better(rng, size):
    return 1 - rng.exponential(size=size)


def blows_up(rng, size):
    normal = rng.standard_normal(size)
    jumps = 5 * (rng.random(size) < 0.1)
    return (normal + jumps - 0.5) / math.sqrt(1 + 25 * 0.09)


SHAPES = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "heavy tails (t, 3 degrees of freedom)": heavy_tails,
    "mostly a little better, sometimes much worse (exponential)": sometimes_much_worse,
    "mostly a little worse, sometimes much better (exponential)": sometimes_much_better,
    "one pair in ten blows up (by 5)": blows_up,
}
RIGHT = Noise(1.0, 8)
BELIEFS = {
    "right": RIGHT,
    "half of it": Noise(0.5, 8),
    "a tenth of it": Noise(0.1, 8),
    "twice it": Noise(2.0, 8),
    "unknown": None,
}


def simulate(
    trials: int,
    alpha: float,
    rng: np.random.Generator,
    effect: float = 0.0,
    shape: str = "normal",
    noise: Noise | None = RIGHT,
    max_pairs: int = MAX_PAIRS,
    margin: float | None = None,
    look=verdict.look,
) -> tuple[np.ndarray, np.ndarray]:
    """Judge patches that are better by `effect`.

    Returns (trials,) bool, whether each was kept, and (trials,) int, the pairs used.
    noise: the noise floor that the procedure believes in. margin: given for patches that remove
    tokens. look: the test at each look.
    """
    kept = np.ones(trials, bool)
    used = np.zeros(trials, int)
    level = round_level(alpha)
    for _ in ("trial", "confirmation"):
        rows = np.flatnonzero(kept)
        d = np.empty((len(rows), 0))
        kept[:] = False
        for _ in range(max_pairs):
            used[rows] += 1
            d = np.hstack([d, SHAPES[shape](rng, (len(d), 1)) - effect])
            seen = look(d, level, max_pairs, noise, 0.0, margin)
            kept[rows[(seen == BETTER) | (seen == EQUAL)]] = True
            rows = rows[seen == CONTINUE]
            d = d[seen == CONTINUE]
    return kept, used


def changeless_nights(
    nights: int, trials: int, rng: np.random.Generator, level: float = LEVEL, **rules
) -> tuple[float, float]:
    """Simulate nights of patches that change nothing.

    Returns the share of nights in which any was kept, and the mean number of pairs per patch.
    """
    night = Night(level)
    is_clean = np.ones(nights, bool)
    pairs = 0.0
    # A night that kept something is lost already, so all others share one history.
    for _ in range(trials):
        kept, used = simulate(nights, night.alpha(), rng, **rules)
        is_clean &= ~kept
        pairs += used.mean() / trials
        night.record(False)
    return 1 - is_clean.mean(), pairs


def mixed_nights(
    nights: int,
    trials: int,
    rng: np.random.Generator,
    good: float,
    effect: float,
    level: float = LEVEL,
) -> tuple[int, int]:
    """Return (false keeps, keeps) where a share `good` of the patches is better by `effect`."""
    budgets = [Night(level) for _ in range(nights)]
    n_false = 0
    n_kept = 0
    for _ in range(trials):
        is_good = rng.random(nights) < good
        levels = np.array([round_level(night.alpha()) for night in budgets])
        for round_alpha in np.unique(levels):
            for better in (False, True):
                rows = np.flatnonzero((levels == round_alpha) & (is_good == better))
                kept, _ = simulate(len(rows), round_alpha**2, rng, effect * better)
                n_kept += int(kept.sum())
                n_false += 0 if better else int(kept.sum())
                for row, keep in zip(rows, kept):
                    budgets[row].record(bool(keep))
    return n_false, n_kept


# --------------------------------------------------------------------------------------------------
# The tables of the documentation


def level_table(nights: int, rng: np.random.Generator) -> list[str]:
    lines = [
        f"{nights:,} nights of 100 changeless patches each, night's level {LEVEL:.0%}:",
        "",
        "| noise of a difference | noise floor | nights with a false keep | pairs per patch |",
        "|---|---|---|---|",
    ]
    others = list(SHAPES)[1:]
    cases = [(shape, "right") for shape in SHAPES]
    cases += [("normal", belief) for belief in list(BELIEFS)[1:]]
    cases += [(shape, belief) for belief in ("half of it", "unknown") for shape in others]
    for shape, belief in cases:
        share, pairs = changeless_nights(nights, 100, rng, shape=shape, noise=BELIEFS[belief])
        lines.append(f"| {shape} | {belief} | {100 * share:.2f} % | {pairs:.1f} |")
    return lines


def power_table(trials: int, rng: np.random.Generator) -> list[str]:
    effects = (-1, 0, 0.5, 1, 2, 4)
    head = " | ".join(f"{effect:g}" for effect in effects)
    lines = [
        f"Share kept, mean pairs used (at most {MAX_PAIRS} a round), by true gain in noise "
        "deviations:",
        "",
        f"| | trial of the night | {head} |",
        "|---" * 8 + "|",
    ]
    cases = {f"noise floor {belief}": {"noise": noise} for belief, noise in BELIEFS.items()}
    cases[f"tokens removed, margin {EQUAL_MARGIN}"] = {"margin": EQUAL_MARGIN}
    cases["16 pairs a round"] = {"max_pairs": 16}
    for name, rules in cases.items():
        for number in (1, 100, 300):
            alpha = Night(LEVEL, number - 1).alpha()
            cells = []
            for effect in effects:
                kept, used = simulate(trials, alpha, rng, effect, **rules)
                cells.append(f"{100 * kept.mean():.1f} %, {used.mean():.1f}")
            lines.append(f"| {name} | {number} | {' | '.join(cells)} |")
    return lines


def tables(nights: int = 10_000, trials: int = 4_000, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    lines = [*level_table(nights, rng), "", *power_table(trials, rng), ""]
    n_nights = nights // 20
    n_false, n_kept = mixed_nights(n_nights, 100, rng, good=0.1, effect=3.0)
    title = f"{n_nights} nights of 100 patches, a tenth of them better by 3"
    lines.append(f"{title}: {n_kept:,} kept, {n_false} falsely.")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
