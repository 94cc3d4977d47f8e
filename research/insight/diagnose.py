"""Why a run went as it went: python -m research diagnose RUN --healthy=FILE,FILE,FILE

Rules that hold in any run are checked on a few steps, repeated in memory; signals by layer are
compared with those of healthy runs of the recipe; forks of the run measure what other options
would have done. Nothing in the run's folder changes.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import tyro

from nanoloop import checkpoint
from nanoloop.data import open_data
from nanoloop.options import reading, require
from research.insight.signals import Replay, gradient_norm
from train import TrainConfig, evaluate

# What a signal outside its band means; the first one counts most.
MEANINGS = {
    "start_weight": "the initialisation is unlike that of healthy runs",
    "start_update": "learning rates or optimizer are unlike those of healthy runs",
}
RATES = {"muon": "muon_lr embed_lr head_lr scalar_lr", "adamw": "learning_rate"}
FORKS = {  # by name: factor of the learning rates, steps whose text is skipped
    "as it is": (1, 0),
    "other text": (1, 1000),
    "lower rates": (1 / 3, 0),
    "higher rates": (3, 0),
}
KINDS = {"steady": math.inf, "falling": 1.5}  # of branches, by the slope of their rates


@dataclass(frozen=True)
class DiagnoseOptions:
    """Say why a run went as it went."""

    run: Annotated[str, tyro.conf.Positional] = ""  # folder of the run
    healthy: str = ""  # what --json=True printed for healthy runs, other seeds: FILE,FILE,FILE
    forks: bool = True  # measure other learning rates, at the cost of about a run
    json: bool = False  # print a JSON object, for programs


class Case:
    """A run, its first steps repeated, and a few steps from its checkpoint on.

    Raises UserError for a folder without a run, and for other data.
    """

    def __init__(self, folder: str):
        state = checkpoint.load_first(Path(folder), ("last.pt", "best.pt"), "train it again")
        require(state, f"'{folder}' holds no run with a checkpoint: type out/NAME of one that does")
        config = TrainConfig(**state["config"])
        require(not config.init_from, f"'{folder}' has --init_from: diagnose a run from step 0")
        self.data = open_data(config.data)
        self.config = checkpoint.complete(config, state, self.data, resuming=True)
        progress = config.progress(state["step"], state["seconds"])
        self.steps = round(state["step"] / progress)
        # Without dropout and rounding, figures that should be equal are equal.
        self.exact = replace(self.config, dropout=0.0, dtype="float32")
        self.first = Replay(self.exact, self.data)
        self.first.watch(0.0)
        self.last = Replay(self.exact, self.data, state)
        _, source = next(iter(self.data.sources.values()))
        # 64 sequences of the first folder are enough: forks are compared on the same ones.
        batches = source.eval_batches("val", config.block_size, 64)
        require(len(source.splits["val"]), f"'{config.data}' has no val split: prepare one")
        self.held_out = [torch.from_numpy(x).to(self.last.device) for x in next(batches)]
        self.last.watch(progress)
        self.signals = {}
        for name, weight in self.first.before.items():
            self.signals[f"start_weight {name}"] = weight.norm().item()
            self.signals[f"start_update {name}"] = self.first.change[name].norm().item()
            ratio = self.last.change[name].norm() / self.last.before[name].norm()
            self.signals[f"update_ratio {name}"] = ratio.item()

    def broken_rules(self) -> list[str]:
        """Check what holds in any run; return what is broken, with its figure."""
        first = self.first
        last = self.last
        count = first.passes
        tokens, targets, _, random = first.seen[0]  # (N, T) twice
        next_tokens, _, _, next_random = first.seen[count]
        size = tokens.size(1) - 2
        shares = [(tokens[:, n : n + size] == targets[:, :size]).float().mean() for n in range(3)]
        ahead = shares.index(max(shares))
        adjacent = (targets[:-1, -1] == tokens[1:, 0]).float().mean()
        read = torch.cat([seen[0] for seen in first.seen]).cpu()
        unseen = torch.isin(torch.arange(self.config.vocab_size), read, invert=True)
        moved = first.change["wte.weight"][: len(unseen)].cpu()[unseen].any()

        # What the mean loss over the text of the first step gives
        model = Replay(self.exact, self.data).model
        loss = sum(model(*seen[:2]) for seen in first.seen[:count]) / count
        loss.backward()
        surprise = loss.item() / math.log(self.config.vocab_size)
        clip = self.config.grad_clip or math.inf
        factor = first.norms[0] / min(clip, gradient_norm(model))
        always = min(first.norms + last.norms) > 0.99 * clip
        frozen = [name for name, change in first.change.items() if not change.any()]

        # What the trained model sees
        text, answers = self.held_out
        half = size // 2
        later = text.clone()
        later[:, half:] = text[:, half:].flip(0)  # of another sequence
        with torch.no_grad():
            losses = [last.model(x, answers, reduction="none") for x in (text, later)]
        leak = (losses[0] - losses[1])[:, :half].abs().max()
        stop = iter([False, True]).__next__
        evaluate(last.model, self.data, "val", size + 2, 1, last.device, stop)
        values = torch.cat([weight[weight != 0] for weight in last.before.values()])
        rounded = (values.half() == values).float().mean()

        scored, _, is_training, _ = last.seen[-1]
        foreign = not torch.equal(scored[0], text[0])
        repeats = torch.equal(tokens, next_tokens)
        stale = torch.equal(random, next_random)
        decays = self.config.optimizer == "muon" and moved
        rules = {
            f"targets wrong: they are {ahead} tokens ahead": ahead != 1,
            "batch repeated: steps 0 and 1 read the same": repeats,
            f"data in order: {adjacent:.0%} of sequences follow the one before": adjacent > 0.9,
            "evaluation not on val: it begins with other text": foreign,
            "dropout in evaluation: evaluate() calls a model that trains": is_training,
            "random numbers repeated: steps 0 and 1 begin with the same": stale,
            f"gradient wrong: {factor:.2f} times that of the mean loss": abs(factor - 1) > 0.05,
            f"always clipped: grad_clip={clip} shortens all gradients": always,
            f"first loss: {surprise:.2f} times ln(vocab_size)": abs(surprise - 1) > 0.03,
            f"frozen: nothing moves {', '.join(frozen)}": frozen,
            f"weights rounded: {rounded:.0%} of them have 16 bits": rounded > 0.5,
            "decay on tables: rows of tokens that were not read move": decays,
            f"future seen: later tokens change a loss by {leak:.2g}": leak > 1e-3,
        }
        return [text for text, is_broken in rules.items() if is_broken]


def unusual(signals: dict, healthy: list[dict]) -> list[str]:
    """Find signals that are outside the band of healthy runs.

    Their band is widened by 5 deviations (median distance from the median) and half the median.
    """
    found = []
    for kind, meaning in MEANINGS.items():
        for name in filter(lambda name: name.startswith(kind), signals):
            value = signals[name]
            usual = [figures[name] for figures in healthy if name in figures] or [value]
            middle = median(usual)
            slack = 5 * median(abs(figure - middle) for figure in usual) + 0.5 * abs(middle)
            low = min(usual) - slack
            high = max(usual) + slack
            if not low <= value <= high:
                found.append(f"{name} = {value:.3g}, not {low:.3g} to {high:.3g}: {meaning}")
    return found


def measure_forks(case: Case, steps: int) -> dict[str, dict]:
    """Continue the run from its first third with other rates, on the same text.

    steps: of each branch. Each fork has the held-out loss, nats per token, after steady rates and
    after falling ones. It is better if it gains in both more than other text changes; "may be" if
    it gains less.
    """
    base = Replay(case.config, case.data)
    while base.step < case.steps // 3:
        base.take_step(base.step / case.steps)
    forks = {}
    for name, (factor, skipped) in FORKS.items():
        losses = {}
        for kind, slope in KINDS.items():
            branch = base.fork()
            branch.step += skipped
            for number in range(steps):
                falling = min(1, slope * (1 - number / steps))
                branch.take_step(base.step / case.steps, factor * falling)
            with torch.no_grad():
                losses[kind] = branch.model.eval()(*case.held_out).item()
        rates = {rate: getattr(case.config, rate) for rate in RATES[case.config.optimizer].split()}
        options = " ".join(f"--{rate}={value * factor:g}" for rate, value in rates.items())
        forks[name] = losses | {"options": options}
    same = forks["as it is"]
    other = forks.pop("other text")
    floor = max(abs(other[kind] - same[kind]) for kind in KINDS)
    for fork in forks.values():
        gain = min(same[kind] - fork[kind] for kind in KINDS)
        fork["verdict"] = "better" if gain > floor else "may be better" if gain > 0 else ""
    return forks


def main(options: DiagnoseOptions) -> None:
    case = Case(options.run)
    with reading("--healthy cannot be read", "name files of `diagnose RUN --json=True`"):
        texts = [Path(name).read_bytes() for name in options.healthy.split(",") if name]
        healthy = [json.loads(text)["signals"] for text in texts]
    findings = case.broken_rules() + unusual(case.signals, healthy)
    forks = measure_forks(case, math.ceil(case.steps / 12)) if options.forks else {}
    for name, fork in forks.items():
        if fork["verdict"]:
            findings.append(f"{name}: {fork['verdict']}, {fork['options']}")
    if options.json:
        print(json.dumps({"findings": findings, "forks": forks, "signals": case.signals}))
        return
    print(*findings[:10], sep="\n")
    for name, figures in (forks | case.signals).items():
        print(f"{name:48}{figures}")
