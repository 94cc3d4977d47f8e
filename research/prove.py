"""Measure what an agent finds again: python -m research prove --agent="COMMAND"

In a copy of the recipe, parts that are known to be good are switched off and two bugs are planted.
Three arms repair a copy each, with equally many trials: the loop with the agent, random single
options, and `tune`. What they kept is scored on the test split with new seeds, beside the broken
recipe and the whole one. An arm's share of the gap is

    mean(broken - final) / mean(broken - whole)

over the seeds. Its 95 % interval is Fieller's (1954, JRSS B 16): the shares for which a t-test of
gain - share * gap finds no difference from 0.

The proof has a folder of its own inside --folder, whose name comes from the options and the recipe.
Its ledgers and repositories hold the state, so the same command resumes.
"""

import random
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nanoloop.files import write_json
from nanoloop.options import require
from research import loop, tune
from research.brief import is_kept
from research.page import write_page
from research.referee.judge import new_seeds, noise_row, plan, try_change
from research.referee.ledger import Ledger
from research.referee.patch import ROOT, hash_of, is_config, read_tree, write_tree
from research.referee.runs import Setup, Slot

# By name: a text of the recipe, and what stands in the copy instead.
PARTS = {
    "head_lr": (b"head_lr = 0.012", b"head_lr = 0.004"),
    "small batches": (b"batch_tokens = 1024", b"batch_tokens = 2048"),
    "embed_lr": (b"embed_lr = 0.6", b"embed_lr = 0.006"),
    "muon_lr": (b"muon_lr: float = 0.02", b"muon_lr: float = 0.2"),
    "decay": (b" decay: float = 0.6", b" decay: float = 0.0"),
    "value table": (b"value_embeds = 1", b"value_embeds = 0"),
}
BUGS = {
    "token table among the scalars": (b'(("wte", "wpe",', b'(("wpe",'),
    "blocks that begin as noise": (b'"c_proj": 0.0,', b'"c_proj": 0.6,'),
    "a loss of half the positions": (
        b"batches(step, micro_step, ranks.rank())\n",
        b"batches(step, micro_step, ranks.rank())\n        targets[:, ::2] = -1\n",
    ),
    "rates that rise for half the run": (
        b"progress < config.warmup:\n        return max(progress / config.warmup, 0.01)",
        b"progress < 0.5:\n        return max(progress / 0.5, 0.01)",
    ),
}
# What random options and `tune` choose from. Other weights at the start would go around a bug, so
# weight_init is not among them.
SPACE = (
    "head_lr=0.0012|0.004|0.012|0.04 batch_tokens=512|1024|2048|4096 embed_lr=0.006|0.06|0.6|2.0 "
    "muon_lr=0.006|0.02|0.06|0.2 decay=0.0|0.3|0.6|0.9 value_embeds=0|1 n_head=1|2|4|8 "
    "activation=relu2|gelu|swiglu qk_norm=True|False residual_scalars=True|False "
    "norm=rms|layer scalar_lr=0.006|0.02|0.06 momentum=0.9|0.95|0.98 beta2=0.9|0.95|0.99"
)


@dataclass(frozen=True)
class ProveOptions(loop.LoopOptions):
    """Measure how much of a known gap an agent closes."""

    config: str = "config/lesson.py"  # the recipe that is broken
    budget: str | None = "60steps"  # of each run, as 60s, 500steps or 2e6tokens
    max_pairs: int = 6  # pairs of runs in the second round, at most
    folder: str = "out/prove"  # of proofs, and of the noise floor
    tries: int = 12  # of each arm
    sweep_tries: int = 0  # settings of a search of a kept change's numbers; 0: no search
    scale: str | None = None  # at which a keep is confirmed: 3x budget, n_layer=4, or None
    parts: int = 4  # good parts that are switched off; two bugs are planted too
    seed: int = 0  # chooses parts and bugs
    seeds: int = 8  # runs of each arm's last recipe


def choose(options: ProveOptions) -> list[str]:
    """Name the parts and the bugs of a proof. Raises UserError."""
    require(0 <= options.parts <= len(PARTS), f"--parts must be 0 to {len(PARTS)}")
    rng = random.Random(options.seed)
    return rng.sample(list(PARTS), options.parts) + rng.sample(list(BUGS), 2)


def break_recipe(base: dict, config: str, names: list[str]) -> dict:
    """Return the broken copy, which holds nothing else that names the parts: path to content.

    base: the tree of the whole recipe. Raises UserError if it lacks one of the parts.
    """
    tree = {path: code for path, code in base.items() if path == config or not is_config(path)}
    for name in names:
        text, replacement = (PARTS | BUGS)[name]
        broken = {path: code.replace(text, replacement) for path, code in tree.items()}
        require(broken != tree, f"{config} has no {name}: use config/lesson.py")
        tree = broken
    brief = (ROOT / "CLAUDE.md").read_bytes().partition(b"## What has been learnt")[0]
    task = (ROOT / "research/task.md").read_bytes()
    return tree | {"CLAUDE.md": brief, "research/task.md": task}


# --------------------------------------------------------------------------------------------------
# The arms: each repairs the copy in `repo`, and resumes. options.folder is the arm's


def try_agent(options: ProveOptions, repo: Path) -> None:
    loop.main(options)  # it finds `repo` in its folder


def try_random(options: ProveOptions, repo: Path) -> None:
    ledger = Ledger(Path(options.folder))
    for number in range(sum("number" in row for row in ledger.trials()), options.tries):
        loop.recover(ledger, repo)
        rng = random.Random(f"{options.seed} {number}")
        name, _, values = rng.choice(SPACE.split()).partition("=")
        setting = f"{name}={rng.choice(values.split('|'))}"
        try_change(options, repo, settings=setting, number=number + 1)


def try_tune(options: ProveOptions, repo: Path) -> None:
    """Search as many settings as there are tries; judge the best."""
    shared = asdict(Setup(options, repo).options)
    tune.main(tune.TuneOptions(**shared, space=SPACE, tries=options.tries), repo)


ARMS = {"agent": try_agent, "random": try_random, "tune": try_tune}


# --------------------------------------------------------------------------------------------------
# The share of the gap that each closes


def share_of_gap(rows: list[dict], name: str) -> tuple:
    """Return the share of the gap that `name` closes, and its 95 % interval's ends."""
    from scipy.stats import t

    n = len(rows)
    pairs = np.array([[row["broken"] - row[end] for row in rows] for end in (name, "whole")])
    means = pairs.mean(1)
    # The ends solve a·share² - 2b·share + c = 0.
    (c, b), (_, a) = np.outer(means, means) - np.cov(pairs) * t.isf(0.025, n - 1) ** 2 / n
    require(a > 0, "the gap is not above the noise: type more --seeds or more --parts")
    half = max(b * b - a * c, 0.0) ** 0.5 / a
    return means[0] / means[1], b / a - half, b / a + half


def main(options: ProveOptions) -> None:
    loop.require_agent(options.agent)
    setup = Setup(options, ROOT)
    floor = noise_row(setup)
    off = choose(options)
    tree = break_recipe(setup.base, options.config, off)
    folder = setup.ledger.folder / hash_of([asdict(options), sorted(setup.base.items())])
    runs = (2 * options.tries + 1) * 4 * options.max_pairs + 2 * options.tries + 5 * options.seeds
    limit = plan(options, runs, floor.get("run_seconds"))
    print(f"{folder}: {options.parts} parts off, two bugs; at most {limit}, and the agent's time")

    broken = write_tree(tree, folder / "broken")
    trees = {"broken": tree, "whole": setup.base}
    for name, arm in ARMS.items():
        ledger = Ledger(folder / name)
        ledger.append(floor)
        repo = loop.open_repository(ledger.folder, broken)
        done = ledger.folder / "done"
        if not done.exists():
            arm(replace(options, folder=str(ledger.folder)), repo)
            for row in filter(is_kept, ledger.trials()):
                loop.commit(repo, row)
            done.touch()
        trees[name] = read_tree(repo)

    ledger = Ledger(folder)
    rows = ledger.trials()
    with closing(Slot(setup, {})) as slot:
        for seed in new_seeds(options.seeds - len(rows)):
            row = {"id": seed}
            for name, tree in trees.items():
                slot.install("baseline", tree)
                row[name] = slot.run_baseline(seed, "test")["bpb"]
            rows.append(ledger.append(row))

    shares = {name: share_of_gap(rows, name) for name in trees}
    for name, (share, low, high) in shares.items():
        print(f"{name:8}{share:8.1%} of the gap, 95 % interval {low:.1%} to {high:.1%}")
    result = {
        "options": asdict(options),
        "floor": floor,
        "off": off,
        "shares": shares,
        "scores": rows,
    }
    write_json(folder / "prove.json", result)
    write_page(folder / "prove.html", "prove.html", **result)
    print(f"off: {', '.join(off)}; all figures: prove.html and prove.json in {folder}")
