"""Why a run went as it went: python -m research diagnose RUN --healthy=RUN,RUN,RUN

Rules that hold in any run are checked on a few steps, repeated in memory; signals by layer are
compared with those of healthy runs of the recipe; forks of the run measure what other options
would have done. Nothing in the run's folder changes.
"""

import contextlib
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tyro.conf import Positional

from nanoloop import checkpoint
from nanoloop.data import open_data
from nanoloop.options import reading, require
from research.insight.signals import Replay, activations, gradient_norm, noise_scale
from train import TrainConfig, evaluate

# What to suspect if a signal of this kind is unusual; of others, the rates.
CAUSES = {
    "start_weight": "initialisation",
    "start_update": "rates",
    "entropy": "rates, or a missing --qk_norm=True",
    "attention_logit": "rates, or a missing --qk_norm=True",
}
LIMITS = {  # of any run, without a band too
    "entropy": (0.2, math.inf),
    "attention_logit": (0, 100),
    "dead": (0, 0.5),
}
RATES = {"muon": "muon_lr embed_lr head_lr scalar_lr", "adamw": "learning_rate"}
KINDS = {"steady": math.inf, "falling": 1.5}  # of branches, by the slope of their rates


@dataclass(frozen=True)
class DiagnoseOptions:
    """Say why a run went as it went."""

    run: Positional[str]  # folder of the run
    # runs of the healthy recipe with other seeds, or what --json=True printed for them: A,B,C
    healthy: str = ""
    forks: bool = True  # measure other rates and batches, at the cost of about a run
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
        self.val = source.splits["val"]
        require(len(self.val), f"'{config.data}' has no val split: prepare one")
        self.held_out = [torch.from_numpy(x).to(self.last.device) for x in next(batches)]
        self.signals = activations(self.last.model, self.held_out[0])
        self.noise = noise_scale(self.last)
        if self.noise[1] > 0:  # else it is unknown
            self.signals["noise_scale tokens"], self.signals["noise_scale ±"] = self.noise
        self.last.watch(progress)
        for name, weight in self.first.before.items():
            self.signals[f"start_weight {name}"] = weight.norm().item()
            self.signals[f"start_update {name}"] = self.first.change[name].norm().item()
            ratio = self.last.change[name].norm() / self.last.before[name].norm()
            self.signals[f"update_ratio {name}"] = ratio.item()

    def broken_rules(self) -> list[str]:
        """Check what holds in any run; return what is broken, with its figure."""
        checks = (check_text, check_gradient, check_steps, check_model)
        return [text for check in checks for text in check(self)]


# --------------------------------------------------------------------------------------------------
# Rules: each check yields what is broken


def check_text(case: Case):
    """Compare what the first two steps read."""
    first = case.first.seen[0]
    second = case.first.seen[case.first.passes]
    size = first.tokens.size(1) - 2
    answers = first.targets[:, :size]
    shares = [(first.tokens[:, n : n + size] == answers).float().mean() for n in range(3)]
    ahead = shares.index(max(shares))
    adjacent = (first.targets[:-1, -1] == first.tokens[1:, 0]).float().mean()
    tokens, _ = case.first.batches(0)
    val = case.val.read(0, len(case.val)).tobytes()
    rows = [row.tobytes() in val for row in tokens[:8]]
    if ahead != 1:
        yield f"targets wrong: they are {ahead} tokens ahead"
    if not np.array_equal(tokens, first.tokens.cpu()):
        yield "text changed: the model gets other tokens than the data has"
    if sum(rows) > len(rows) / 2:
        yield f"trained on val: it holds {sum(rows)} of the first {len(rows)} sequences"
    if torch.equal(first.tokens, second.tokens):
        yield "batch repeated: steps 0 and 1 read the same"
    if adjacent > 0.9:
        yield f"data in order: {adjacent:.0%} of sequences follow the one before"
    if torch.equal(first.random, second.random):
        yield "random numbers repeated: steps 0 and 1 begin with the same"


def check_gradient(case: Case):
    """Compare the first loss with ln(vocab_size), its gradient with the mean's."""
    model = Replay(case.exact, case.data).model
    step = case.first.seen[: case.first.passes]
    loss = sum(model(seen.tokens, seen.targets) for seen in step) / len(step)
    loss.backward()
    surprise = loss.item() / math.log(case.config.vocab_size)
    clip = case.config.grad_clip or math.inf
    factor = case.first.norms[0] / min(clip, gradient_norm(model))
    if abs(factor - 1) > 0.05:
        yield f"gradient wrong: {factor:.2f} times that of the mean loss"
    if min(case.first.norms + case.last.norms) > 0.99 * clip:
        yield f"always clipped: grad_clip={clip} shortens all gradients: --grad_clip=None"
    if abs(surprise - 1) > 0.03:
        yield f"first loss: {surprise:.2f} times ln(vocab_size)"


def check_steps(case: Case):
    """Check which weights the first steps move, and how exact the last ones are."""
    first = case.first
    frozen = [name for name, change in first.change.items() if not change.any()]
    read = torch.cat([seen.tokens for seen in first.seen])
    unread = torch.isin(torch.arange(case.config.vocab_size), read.cpu(), invert=True)
    moved = first.change["wte.weight"][: len(unread)].cpu()[unread].any()
    values = torch.cat([weight[weight != 0] for weight in case.last.before.values()])
    rounded = (values.half() == values).float().mean()
    if frozen:
        yield f"frozen: nothing moves {', '.join(frozen)}"
    if rounded > 0.5:
        yield f"weights rounded: {rounded:.0%} of them have 16 bits"
    if case.config.optimizer == "muon" and moved:
        yield "decay on tables: rows of tokens that were not read move"


def check_model(case: Case):
    """Check what the trained model sees, and what evaluate() calls it with."""
    model = case.last.model
    text, answers = case.held_out
    half = text.size(1) // 2
    later = text.clone()
    later[:, half:] = text[:, half:].flip(0)  # of another sequence
    with torch.no_grad():
        losses = [model(x, answers, reduction="none") for x in (text, later)]
    leak = (losses[0] - losses[1])[:, : half - 1].abs().max()
    stop = iter([False, True]).__next__
    evaluate(model, case.data, "val", text.size(1), 1, case.last.device, stop)
    scored = case.last.seen[-1]
    if not torch.equal(scored.tokens[0], text[0]):
        yield "evaluation not on val: it begins with other text"
    if scored.is_training:
        yield "dropout in evaluation: evaluate() calls a model that trains"
    if leak > 1e-3:
        yield f"future seen: later tokens change a loss by {leak:.2g}"


# --------------------------------------------------------------------------------------------------
# Bands and forks


def unusual(signals: dict, healthy: list[dict]) -> list[str]:
    """Find signals outside their limits, or outside the band of healthy runs.

    The band is widened by 5 deviations (median distance from the median) and half the median.
    Returns a text for the first such signal of each kind, the most telling kind first.
    """
    found = {}
    for name, value in signals.items():
        kind = name.split()[0]
        low, high = LIMITS.get(kind, (-math.inf, math.inf))
        # Residual scalars are few values: they vary too much between seeds. Others are printed.
        has_band = kind.startswith("start_") and not name.endswith("_scale")
        usual = [run[name] for run in healthy if has_band and name in run]
        if usual:
            middle = median(usual)
            slack = 5 * median(abs(x - middle) for x in usual) + 0.5 * abs(middle)
            low = min(usual) - slack
            high = max(usual) + slack
        if not low <= value <= high:
            text = f"{name} = {value:.3g}, not {low:.3g} to {high:.3g}"
            found.setdefault(kind, f"{text}: suspect the {CAUSES.get(kind, 'rates')}")
    return [found[kind] for kind in sorted(found, key=[*CAUSES, *LIMITS, *found].index)]


def other_options(config: TrainConfig) -> dict[str, dict]:
    """Return the options that each fork changes, by its name.

    No fork has a batch that the run's passes do not divide.
    """
    forks = {"as it is": {}, "other text": {}}
    for name, factor in {"lower rates": 1 / 3, "higher rates": 3}.items():
        rates = {rate: getattr(config, rate) * factor for rate in RATES[config.optimizer].split()}
        forks[name] = {rate: float(f"{value:.4g}") for rate, value in rates.items()}
    for name, factor in {"half the batch": 1 / 2, "twice the batch": 2}.items():
        batch = int(config.batch_tokens * factor)
        if batch % (config.block_size * (config.micro_batch_size or 1)) == 0:
            forks[name] = {"batch_tokens": batch}
            if config.max_steps:
                forks[name]["max_steps"] = int(config.max_steps / factor)
    return forks


def measure_forks(case: Case) -> dict[str, dict]:
    """Continue the run from its first quarter with other rates or batches.

    All forks but "other text" read the same text. Each has the held-out loss, nats per token, after
    steady rates and after falling ones. It is better if it gains in both more than other text
    changes; "may be" if it gains less. All branches together read as much text as three quarters of
    the run.
    """
    base = Replay(case.config, case.data)
    while base.step < case.steps // 8 * 2:
        base.take_step(base.step / case.steps)
    progress = base.step / case.steps
    steps = max(2, case.steps // 32 * 2)  # of a branch; even, as half of them may be taken
    forks = {}
    for name, options in other_options(case.config).items():
        losses = {}
        for kind, slope in KINDS.items():
            branch = base.fork(**options)
            if name == "other text":
                branch.step += 1000
            count = steps * case.config.batch_tokens // branch.config.batch_tokens
            for number in range(count):
                branch.take_step(progress, min(1, slope * (1 - number / count)))
            with torch.no_grad():
                losses[kind] = branch.model.eval()(*case.held_out).item()
        text = " ".join(f"--{option}={value}" for option, value in options.items())
        forks[name] = losses | {"options": text}
    same = forks["as it is"]
    other = forks.pop("other text")
    floor = max(abs(other[kind] - same[kind]) for kind in KINDS)
    for fork in forks.values():
        gain = min(same[kind] - fork[kind] for kind in KINDS)
        fork["verdict"] = "better" if gain > floor else "may be better" if gain > 0 else ""
    return forks


# --------------------------------------------------------------------------------------------------
# The report


def healthy_signals(name: str) -> dict:
    """Return the signals of a run, or those in a file of --json. Raises UserError."""
    if Path(name).is_dir():
        return Case(name).signals
    with reading("--healthy cannot be read", "name runs, or files of `diagnose RUN --json=True`"):
        return json.loads(Path(name).read_bytes())["signals"]


def diagnose(options: DiagnoseOptions) -> dict:
    """Return findings, forks and signals of a run, and the number of healthy runs."""
    case = Case(options.run)
    healthy = [healthy_signals(name) for name in options.healthy.split(",") if name]
    forks = measure_forks(case) if options.forks else {}
    findings = case.broken_rules() + unusual(case.signals, healthy)
    for name, fork in forks.items():
        if fork["verdict"]:
            findings.append(f"{name}: {fork['verdict']}, {fork['options']}")
    scale, half = case.noise
    if half < scale and case.config.batch_tokens > 2 * (scale + half):
        figures = f"the gradient noise scale is {scale:,.0f} ± {half:,.0f} tokens"
        findings.append(f"batch may be too large: {figures}; see the fork of half the batch")
    return {
        "findings": findings,
        "healthy": len(healthy),
        "forks": forks,
        "signals": case.signals,
    }


def summary(report: dict) -> list[str]:
    """Return what `diagnose` found in at most ten lines."""
    findings = report["findings"]
    counts = f"{len(findings)} findings, {len(report['signals'])} signals"
    return [*(text[:300] for text in findings[:9]), f"{counts}, {report['healthy']} healthy runs"]


def main(options: DiagnoseOptions) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        report = diagnose(options)
    if options.json:
        print(json.dumps(report))
        return
    print(*summary(report), sep="\n")
    for name, figures in (report["forks"] | report["signals"]).items():
        print(f"{name:48}{figures}")
