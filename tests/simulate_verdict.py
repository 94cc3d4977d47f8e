"""What the verdict's procedure does to simulated nights of patches, as Markdown tables:

    python -m tests.simulate_verdict

The noise of a difference has standard deviation 1 here; effects and margins are in that unit.
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from research.verdict import (
    BETTER,
    CONTINUE,
    EQUAL,
    EQUAL_MARGIN,
    LEVEL,
    MAX_PAIRS,
    Night,
    Noise,
    look,
    round_level,
)

SHAPES = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "heavy tails (t, 3 degrees of freedom)": lambda rng, size: (
        rng.standard_t(3, size) / math.sqrt(3)
    ),
    "mostly a little better, sometimes much worse (exponential)": lambda rng, size: (
        rng.exponential(size=size) - 1
    ),
    "mostly a little worse, sometimes much better (exponential)": lambda rng, size: (
        1 - rng.exponential(size=size)
    ),
    "one pair in ten blows up (by 5)": lambda rng, size: (
        (rng.standard_normal(size) + 5 * (rng.random(size) < 0.1) - 0.5) / math.sqrt(1 + 25 * 0.09)
    ),
}
RIGHT = Noise(1.0, 8)
BELIEFS = {
    "right": RIGHT,
    "half of it": Noise(0.5, 8),
    "a tenth of it": Noise(0.1, 8),
    "twice it": Noise(2.0, 8),
}
BELIEFS["unknown"] = None


def simulate(
    trials, alpha, rng, effect=0.0, shape="normal", noise=RIGHT, max_pairs=MAX_PAIRS, margin=None
):
    """(trials,) bool what was kept and (trials,) int pairs used, for patches that are better by `effect`.

    noise: what the noise floor is believed to be. margin: given for patches that remove lines.
    """
    kept, used, level = np.ones(trials, bool), np.zeros(trials, int), round_level(alpha)
    for _ in ("trial", "confirmation"):
        rows, d = np.flatnonzero(kept), np.empty((kept.sum(), 0))
        kept[:] = False
        for _ in range(max_pairs):
            used[rows] += 1
            d = np.hstack([d, SHAPES[shape](rng, (len(d), 1)) - effect])
            said = look(d, level, max_pairs, noise, 0.0, margin)
            kept[rows[(said == BETTER) | (said == EQUAL)]] = True
            rows, d = rows[said == CONTINUE], d[said == CONTINUE]
    return kept, used


def changeless_nights(nights: int, trials: int, rng, level=LEVEL, **rules) -> tuple[float, float]:
    """(share of nights of changeless patches in which any was kept, mean pairs per patch)."""
    night, clean, pairs = Night(level), np.ones(nights, bool), 0.0
    for _ in range(
        trials
    ):  # a night that kept something is lost already, so all others share one history
        kept, used = simulate(nights, night.alpha(), rng, **rules)
        clean &= ~kept
        pairs += used.mean() / trials
        night.record(False)
    return 1 - clean.mean(), pairs


def mixed_nights(
    nights: int, trials: int, rng, good: float, effect: float, level=LEVEL
) -> tuple[int, int]:
    """(false keeps, keeps) over nights in which a share `good` of the patches is better by `effect`, the rest by 0."""
    budgets, false, kept = [Night(level) for _ in range(nights)], 0, 0
    for _ in range(trials):
        is_good, alphas = (
            rng.random(nights) < good,
            np.array([round_level(night.alpha()) for night in budgets]),
        )
        for alpha in np.unique(alphas):
            for better in (False, True):
                rows = np.flatnonzero((alphas == alpha) & (is_good == better))
                won, _ = simulate(len(rows), alpha**2, rng, effect * better)
                false, kept = false + won.sum() * (not better), kept + won.sum()
                for row, keep in zip(rows, won):
                    budgets[row].record(bool(keep))
    return int(false), int(kept)


def table(nights: int = 10_000, trials: int = 4_000, seed: int = 0) -> str:
    """All figures of the documentation."""
    rng = np.random.default_rng(seed)
    lines = [f"{nights:,} nights of 100 changeless patches each, night's level {LEVEL:.0%}:", ""]
    lines += [
        "| noise of a difference | noise floor | nights with a false keep | pairs per patch |",
        "|---" * 4 + "|",
    ]
    cases = [(shape, "right") for shape in SHAPES] + [
        ("normal", belief) for belief in list(BELIEFS)[1:]
    ]
    cases += [(shape, belief) for belief in ("half of it", "unknown") for shape in list(SHAPES)[1:]]
    for shape, belief in cases:
        share, pairs = changeless_nights(nights, 100, rng, shape=shape, noise=BELIEFS[belief])
        lines += [f"| {shape} | {belief} | {100 * share:.2f} % | {pairs:.1f} |"]
    effects = (-1, 0, 0.5, 1, 2, 4)
    cases = [(f"noise floor {belief}", {"noise": noise}) for belief, noise in BELIEFS.items()]
    cases += [(f"lines removed, margin {EQUAL_MARGIN}", {"margin": EQUAL_MARGIN})]
    cases += [("16 pairs a round", {"max_pairs": 16})]
    lines += [
        "",
        f"Share kept, mean pairs used (at most {MAX_PAIRS} a round), by true gain in noise deviations:",
        "",
    ]
    lines += [
        "| | trial of the night | " + " | ".join(f"{effect:g}" for effect in effects) + " |",
        "|---" * 8 + "|",
    ]
    for told, rules in cases:
        for number in (1, 100, 300):
            alpha = Night(LEVEL, number - 1).alpha()
            cells = [simulate(trials, alpha, rng, effect, **rules) for effect in effects]
            shown = " | ".join(
                f"{100 * kept.mean():.1f} %, {used.mean():.1f}" for kept, used in cells
            )
            lines += [f"| {told} | {number} | {shown} |"]
    false, kept = mixed_nights(nights // 20, 100, rng, good=0.1, effect=3.0)
    lines += [
        "",
        f"{nights // 20} nights of 100 patches, a tenth of them better by 3: {kept:,} kept, {false} falsely.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
