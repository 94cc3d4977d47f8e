"""Bits per byte of a trained candidate, computed by the judge, and the probes that make the figure mean something.

The candidate's process (worker.py) gets windows of tokens and returns logits. Everything that counts is computed here,
from the judge's own copy of the data and of the bytes per token. But a window holds the next token of all its positions
but the last: a model that looks ahead would be told the answers. So every window that counts comes back, changed from
some place on, and what was said of the part before that place has to be the same. Scored and changed windows are mixed
and shuffled, and a window and its changed copies never go to the same process, so that none can know which counts, or
remember what it has said: two processes answer, one after the other, that share no memory.

What escapes: a model that looks ahead at a share f of all positions is missed with probability (1 - f)^R, R being the
number of changed windows; and a dependence too small for LEAK, in nats per token.
"""

import contextlib
import time
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import numpy as np

from nanoloop.data import Data
from research.patch import Invalid, refuse
from research.sandbox import Ended, Sandbox

WORKER = Path(__file__).with_name("worker.py")
TOKENS_AT_ONCE = 4096  # in one question to the worker
STRETCH = 1024  # tokens in a row that are scored of a split that is too long to be scored whole
JUMP = 0.25  # nats by which one prediction may change with what is asked beside it or after it
SHIVER = 5e-3  # … by which they may change in the root mean square, or ten times the baseline's: rounding
LEAK = 3e-4  # … and on average, beside six standard errors: rounding has no direction
CHANGED_WINDOWS = 256  # at least, however few windows the split has


class Crashed(Invalid):
    """The candidate did not come to its end."""


class Worker:
    """A candidate's process that answers questions. Raises Invalid where it answers late, badly or not at all."""

    def __init__(self, box: Sandbox, tree: Path, checkpoint: Path, seconds: float):
        self.box, self.seconds = box, seconds
        self.socket = box.start([WORKER, checkpoint], [tree, checkpoint, WORKER], max(1.0, seconds))
        self.answers = self.socket.makefile("rb")
        self.block_size, self.vocab_size = np.frombuffer(self.read(8), dtype="<i4").tolist()

    def read(self, count: int) -> bytes:
        with contextlib.suppress(OSError):
            if len(content := self.answers.read(count)) == count:
                return content
        ended = self.close()
        told = (
            f"evaluation takes more than {self.seconds:.0f} seconds, far more than the baseline's"
        )
        if ended.late:
            raise Invalid(told, ended.text)
        raise Crashed("its evaluation ended before it had answered", ended.text)

    def ask(self, tokens: np.ndarray) -> np.ndarray:
        """(B, T) token ids to (B, T, V) float32 logits."""
        with contextlib.suppress(OSError):  # whoever does not listen does not answer
            self.socket.sendall(np.array([*tokens.shape, *tokens.ravel()], dtype="<i4").tobytes())
        shape, expected = (
            np.frombuffer(self.read(12), dtype="<i4").tolist(),
            [*tokens.shape, self.vocab_size],
        )
        refuse(shape != expected, f"its logits have the shape {shape}, not {expected}")
        return np.frombuffer(self.read(4 * int(np.prod(shape))), dtype="<f4").reshape(shape)

    def close(self) -> Ended | None:
        """Let the process end, which it does when nobody asks."""
        if self.socket.fileno() >= 0:
            self.answers.close()
            self.socket.close()
            return self.box.finish()


def surprise(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats of the targets, (B, T) float64: normalised by the judge. Raises Invalid for logits that are no answer."""
    with np.errstate(invalid="ignore"):  # what is not finite is found below
        below = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(below, targets[..., None], axis=-1)[..., 0]
    total = np.exp(below, out=below).sum(axis=-1)  # (B, T)
    refuse(
        not np.isfinite(total).all() or not np.isfinite(chosen).all(), "its logits are not finite"
    )
    refuse(total.min() > logits.shape[-1] * 0.999, "its logits are constant")
    return np.log(total, dtype=np.float64) - chosen


# Windows to ask about. tokens, targets: (N, T); targets of a changed window are those of its original, known up to `cut`
# (inclusive). counted: (N,) whether it counts; original: (N,) index of the window it was made from, itself where it counts.
Plan = namedtuple("Plan", "tokens targets counted original cut")


def make_plan(
    data: Data, split: str, block_size: int, max_tokens: int, rng: np.random.Generator
) -> Plan:
    """Windows of the split, or of about max_tokens of it, and changed copies of each.

    Of a longer split stretches from all over it are taken, each behind an end-of-text token, as a document is: its first
    max_tokens may be one large file. Each token but the first is a target once, so that the same tokens are scored
    whatever the block_size.
    """
    stream, text = data.splits[split], []
    if (count := max_tokens // STRETCH) * STRETCH < len(stream):
        for start in np.linspace(0, len(stream) - STRETCH, count, dtype=int).tolist():
            text += [data.tokenizer.end_of_text, *stream.read(start, STRETCH)]
    text = np.array(text or stream.read(0, len(stream)))
    count = -(-(len(text) - 1) // block_size)
    tokens, targets = (
        np.zeros((count, block_size), dtype=np.int64),
        np.full((count, block_size), -1),
    )
    tokens.flat[: len(text) - 1], targets.flat[: len(text) - 1] = text[:-1], text[1:]
    length = (targets >= 0).sum(axis=1)
    copies = max(1, -(-CHANGED_WINDOWS // count))
    original = np.concatenate([np.arange(count), np.tile(np.arange(count), copies)])
    cut = (rng.random(len(original)) * np.maximum(length[original] - 1, 1)).astype(int)
    cut[:count] = length - 1
    changed, vocabulary = tokens[original], data.tokenizer.vocab_size
    for row in range(count, len(original)):
        after, other = cut[row] + 1, tokens[rng.integers(count)]
        if after < block_size:
            # The text of another place, or one other token alone; the first of them is another token for certain.
            end = block_size if row % 4 else after + 1
            changed[row, after:end] = other[after:end]
            if changed[row, after] == tokens[original[row], after]:
                changed[row, after] = (
                    changed[row, after] + rng.integers(1, vocabulary)
                ) % vocabulary
    return Plan(changed, targets[original], np.arange(len(original)) < count, original, cut)


def answer(
    worker: Worker, plan: Plan, rows: np.ndarray, losses: np.ndarray, rng: np.random.Generator
) -> None:
    """Ask about `rows` in the order given, in batches of one shape, and write their (T,) nats into `losses`."""
    size = max(2, TOKENS_AT_ONCE // plan.tokens.shape[1])
    filled = np.concatenate(
        [rows, rng.choice(rows, -len(rows) % size)]
    )  # the same shape throughout: the same rounding
    for batch in filled.reshape(-1, size):
        losses[batch] = surprise(worker.ask(plan.tokens[batch]), np.maximum(plan.targets[batch], 0))


def diagnose(worker: Worker, plan: Plan, rng: np.random.Generator) -> str:
    """Why equal beginnings got different answers: state, the other rows of the batch, or later tokens."""
    size = max(2, TOKENS_AT_ONCE // plan.tokens.shape[1])
    rows, others = (rng.choice(np.flatnonzero(plan.counted), size) for _ in range(2))
    half, targets = size // 2, np.maximum(plan.targets[rows], 0)
    first, again = (surprise(worker.ask(plan.tokens[rows]), targets) for _ in range(2))
    if np.abs(first - again).max() > 1e-3:
        return "the same input gets different answers: it keeps state between calls, or draws random numbers"
    company = plan.tokens[np.concatenate([rows[:half], others[half:]])]
    if np.abs(surprise(worker.ask(company), targets) - first)[:half].max() > 1e-3:
        return "a prediction depends on the other rows of the batch"
    return "a prediction depends on tokens that come after it"


def check(
    plan: Plan, losses: np.ndarray, moment: np.ndarray, usual: float
) -> tuple[str | None, float]:
    """Compare every changed window with its original up to the cut: what is wrong, None where all is well, and the root
    mean square of the changes.

    losses: (N, T) nats. moment: (N,) when each was asked: a candidate that learns from what it is asked gets better.
    usual: the root mean square of the baseline's changes.
    """
    changed = np.flatnonzero(~plan.counted)
    before = np.arange(plan.tokens.shape[1]) <= plan.cut[changed, None]  # (N, T)
    apart = np.where(before, losses[changed] - losses[plan.original[changed]], 0.0)
    at_cut = apart[np.arange(len(changed)), plan.cut[changed]]
    later = (
        np.sign(moment[changed] - moment[plan.original[changed]])
        * apart.sum(axis=1)
        / before.sum(axis=1)
    )
    shiver = float(np.sqrt((apart**2).sum() / before.sum()))
    if np.abs(apart).max() > JUMP or shiver > max(SHIVER, 10 * usual):
        return f"predictions change by {shiver:.4f} nats, at most {np.abs(apart).max():.2f}", shiver
    for values, told in ((at_cut, "when the next token is another"), (later, "when asked again")):
        if abs(values.mean()) > LEAK + 6 * values.std() / len(values) ** 0.5:
            return f"predictions change by {abs(values.mean()):.4f} nats on average {told}", shiver
    return None, shiver


def score(
    box,
    tree: Path,
    checkpoint: Path,
    data: Data,
    split: str,
    seconds: float,
    max_tokens: int,
    usual: float = 0.0,
) -> tuple[float, float, float]:
    """(bits per byte of the split, seconds of evaluation, what `check` found of rounding). Raises Invalid.

    max_tokens: of the split that are scored. usual: the baseline's rounding. The places of the changes and the order of
    the questions are drawn anew each time.
    """
    rng, started, plan = np.random.default_rng(), time.monotonic(), None
    for half in range(2):
        with closing(
            Worker(box, tree, checkpoint, seconds - (time.monotonic() - started))
        ) as worker:
            if plan is None:
                size, known = worker.block_size, data.tokenizer.vocab_size
                refuse(
                    worker.vocab_size != known,
                    f"its vocabulary is {worker.vocab_size}, not the data's {known}",
                )
                refuse(not 1 <= size <= 2**17, f"block_size={size} is out of bounds")
                plan = make_plan(data, split, size, max_tokens, rng)
                # Each of the two processes gets half of the windows that count, and the changed copies of the others.
                side = rng.permutation(plan.counted.sum())[plan.original] % 2 ^ ~plan.counted
                losses, moment = np.zeros(plan.tokens.shape), np.zeros(len(plan.tokens))
            refuse(worker.block_size != size, "its block_size changes from process to process")
            rows = rng.permutation(np.flatnonzero(side == half))
            moment[rows] = np.arange(len(rows)) / max(1, len(rows)) + rng.random() * 1e-9
            answer(worker, plan, rows, losses, rng)
    wrong, shiver = check(plan, losses, moment, usual)
    if wrong:
        with closing(Worker(box, tree, checkpoint, seconds)) as worker:
            raise Invalid(f"{diagnose(worker, plan, rng)} ({wrong})")
    scored = plan.counted[:, None] & (plan.targets >= 0)
    n_bytes = np.where(scored, data.tokenizer.token_bytes[np.maximum(plan.targets, 0)], 0)
    return (
        float((losses * (n_bytes > 0)).sum() / n_bytes.sum() / np.log(2)),
        time.monotonic() - started,
        shiver,
    )
