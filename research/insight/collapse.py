"""What becomes of models that read their own text: python -m research collapse [RUN]

Without RUN it trains generations of a small model. Each writes text. The next one reads it
(replace), or all real and written text so far (accumulate), or as much as the first one, drawn from
all of it (subsample). Controls read real text alone: the same with other seeds (real), as often as
accumulate reads (repeat), or drawn again and again with replacement (resample).

With RUN it compares samples of that run with the held-out text after the same prompts.
"""

import gzip
import json
import time
from dataclasses import dataclass, replace

import numpy as np
from tyro.conf import Positional

from corpus.curation import ngrams
from nanoloop import checkpoint
from nanoloop.data import Data, Split
from nanoloop.device import pick_device
from nanoloop.generate import generate
from nanoloop.options import note, read_options, require
from nanoloop.programs import prepare_missing
from research.insight.reading import open_run, read_split
from research.insight.signals import Replay
from research.page import write_page
from train import TrainConfig

PROMPT = 32  # tokens of real or written text that a sample continues
LENGTH = 256  # tokens of a sample
SAMPLES = 320  # at most: what a model writes, and what the first one reads
PARTS = 8  # of the samples, for how much a figure varies
MOST = 5_000_000  # tokens of a split that are looked at
REGIMES = ("real", "repeat", "resample", "replace", "accumulate", "subsample")


@dataclass(frozen=True)
class CollapseOptions:
    """Train generations on their own text, or examine the samples of a run."""

    # folder of a run whose samples are examined; none: train generations
    run: Positional[str] = ""
    config: str = "config/lesson.py"  # recipe of the generations
    generations: int = 5  # that read written text
    seed: int = 1337  # of the first generation; the next ones have the next numbers
    page: str = "out/collapse.html"  # file of the figures, for a browser
    json: bool = False  # print a JSON object, for programs


# --------------------------------------------------------------------------------------------------
# Measures


def windows(data, split, size):
    """Return up to SAMPLES windows of a split, evenly spaced, (R, size). Raises UserError."""
    tokens = data.splits[split].read(0, MOST)
    count = len(tokens) // size
    require(count >= PARTS, f"'{data.folder}' needs {PARTS * size} tokens in {split}: add text")
    return tokens[: count * size].reshape(count, size)[:: 1 + count // SAMPLES]


def grams(rows, n):
    """Hash each n tokens of (R, T) that follow one another, (R, T - n + 1)."""
    return ngrams(rows.T.astype(np.uint64), n).T


def first(values):
    """Mark where each value stands for the first time."""
    _, index = np.unique(values, return_index=True)
    return np.isin(np.arange(values.size), index).reshape(values.shape)


def measure_text(rows, held_out, data):
    """Return the figures of samples, beside those of held-out text.

    rows, held_out: (R, LENGTH) tokens each.
    habits: what samples may do more often than held-out text, shares in each of PARTS parts. Of
    phrases of 8 tokens, those that stand in the same sample before, or in an earlier one; of 13
    tokens, those that are in train; of the other phrases' first tokens, those that are not among
    the rarest tenth of the held-out ones.
    gzip: bytes by compressed bytes. distinct_n: the share of n-grams that are different.
    held_out_n: the share of different held-out n-grams that occur.
    """
    phrases = grams(rows, 8)
    is_new = first(phrases)
    is_first = np.apply_along_axis(first, 1, phrases)  # in its sample
    train = data.splits["train"].read(0, MOST)
    counts = np.bincount(held_out.ravel(), minlength=data.tokenizer.vocab_size)
    is_common = counts > np.quantile(counts[held_out], 0.1)
    habits = {
        "repeated in the same sample": ~is_first,
        "repeated from another sample": is_first & ~is_new,
        "copied from train": np.isin(grams(rows, 13), grams(train[None], 13)),
        "common tokens": is_common[rows[:, :-7]][is_new],
    }
    shares = {
        name: [part.mean() for part in np.array_split(marks.ravel(), PARTS)]
        for name, marks in habits.items()
    }
    text = data.tokenizer.decode_bytes(rows.ravel())
    figures = {"habits": shares, "gzip": len(text) / len(gzip.compress(text))}
    for n in range(1, 5):
        written = grams(rows, n)
        figures[f"distinct_{n}"] = first(written).mean()
        figures[f"held_out_{n}"] = np.isin(np.unique(grams(held_out, n)), written).mean()
    return figures


def measure_model(model, data):
    """Return the figures of a model on the val split.

    All are bits per byte. tenths: of tenths of the tokens, those that are rarest there first.
    entropy: of the predictions; it equals val_bpb if the model is as sure as it should be.
    """
    a = read_split(model, data, model.wte.weight.device)
    order = np.argsort(np.bincount(a.target)[a.target], kind="stable")
    tenths = np.array_split(order, 10)
    return {
        "val_bpb": a.bits.sum() / a.size.sum(),
        "tenths": [a.bits[tenth].sum() / a.size[tenth].sum() for tenth in tenths],
        "entropy": a.entropy.sum() / a.size.sum(),
    }


# --------------------------------------------------------------------------------------------------
# A run


def examine(options):
    """Yield the figures of a run's samples, then of text behind the same prompts."""
    model, data = open_run(options.run, *pick_device("auto", "auto"))
    prompts, held_out = np.split(windows(data, "val", PROMPT + LENGTH), [PROMPT], axis=1)
    written = generate(model, prompts.tolist(), LENGTH, seed=options.seed)
    yield {"text": "samples"} | measure_text(np.array(written), held_out, data)
    yield {"text": "held-out"} | measure_text(held_out, held_out, data)


def findings(rows):
    """Name the habits that samples have more of than held-out text.

    Each part of the samples has more of them than any part of that text. If both were alike, that
    would happen once in 12,870 times.
    """
    ours = rows[0]["habits"]
    usual = rows[-1]["habits"]
    return [
        f"{name}: {np.mean(ours[name]):.1%}, in held-out text {np.mean(usual[name]):.1%}"
        for name in ours
        if min(ours[name]) > max(usual[name])
    ] or ["samples do nothing more often than held-out text"]


# --------------------------------------------------------------------------------------------------
# Generations


def next_text(regime, texts, seed):
    """Return what a generation reads, (rows, LENGTH).

    texts: the real one, then what each generation before wrote.
    """
    draw = np.random.default_rng(seed).choice
    everything = np.concatenate(texts)
    real = texts[0]
    drawn = real
    for _ in texts[1:]:
        drawn = draw(drawn, len(real))
    return {
        "real": real,
        "repeat": np.concatenate([real] * len(texts)),
        "resample": drawn,
        "replace": texts[-1],
        "accumulate": everything,
        "subsample": draw(everything, len(real), replace=False),
    }[regime]


def train_on(text, config, data):
    """Return a model that has read a text, (rows, LENGTH), once: now it is data's train split."""
    data.splits["train"] = Split([text.ravel()])
    replay = Replay(config, data)
    steps = text.size // config.batch_tokens
    for step in range(steps):
        replay.take_step(step / steps)
    return replay.model.eval()


def run_generations(options):
    """Train all generations; yield the figures of each."""
    config = read_options(TrainConfig, [options.config], "train.py")
    data = Data(prepare_missing(config.data, config.prepare))
    # In float32 all machines compute nearly the same.
    config = checkpoint.complete(replace(config, dtype="float32"), None, data, False)
    real = windows(data, "train", LENGTH)
    held_out = windows(data, "val", LENGTH)
    texts = {regime: [real] for regime in REGIMES}
    count = options.generations
    started = time.monotonic()
    for n in range(count + 1):
        seed = options.seed + n
        for regime in REGIMES if n else ["real"]:
            text = next_text(regime, texts[regime], options.seed)
            model = train_on(text, replace(config, seed=seed), data)
            prompts = text[:: len(text) // len(real), :PROMPT]
            written = np.array(generate(model, prompts.tolist(), LENGTH, seed=seed))
            for name in [regime] if n else REGIMES:
                texts[name].append(written)
            figures = measure_text(written[: len(held_out)], held_out, data)
            yield {"text": f"{regime} {n}"} | measure_model(model, data) | figures
        if n == 0:  # as if training took all of the time
            seconds = (time.monotonic() - started) * count * (count + 7)
            note(f"{6 * count} models follow, in {seconds / 60:.0f} minutes at most")


def changes(rows):
    """Yield lines that compare the newest models with those that read real text."""
    real = [row["val_bpb"] for row in rows if "real" in row["text"]]
    yield f"real text, {len(real)} seeds: val_bpb {min(real):.4f} to {max(real):.4f}"
    for row in rows[-len(REGIMES) :]:
        rise = np.subtract(row["tenths"], rows[0]["tenths"])
        yield (
            f"{row['text']}: val_bpb {row['val_bpb']:.4f}, {row['val_bpb'] - real[0]:+.4f}; "
            f"rarest tenth of tokens {rise[0]:+.4f}, most frequent {rise[-1]:+.4f}"
        )


def main(options: CollapseOptions) -> None:
    rows = []
    for row in examine(options) if options.run else run_generations(options):
        rows.append(row)
        lines = list(findings(rows) if options.run else changes(rows))
        if not options.run:
            note(lines[-1])
        write_page(options.page, "insight/collapse.html", rows=rows, lines=lines)
    print(json.dumps({"summary": lines, "rows": rows}) if options.json else "\n".join(lines))
