"""Compute bits per byte of a trained candidate, and guard that figure by probes.

The candidate's process (worker.py) gets windows of tokens and returns logits. The judge computes
everything else from its copy of the data and of the bytes per token. But a window holds the next
token of all its positions except the last: a model that looks ahead would see the answers. So a
second process, which shares no memory with the first, is asked about a copy of each scored window.
A copy is cut at a drawn position: later tokens are random, and other rows stand beside it. The
predictions up to the cut must be the same.

Where the baseline's losses for the same text are known, half of the cuts are drawn in proportion to
how much better the candidate predicts there. So an undue gain at few positions is found by its
size: if it is g nats per token on average, and honest predictions are better than the baseline's by
h on average, counting those that are better alone, it escapes with probability
exp(-R g / 2(g + h)) where it is spread over the windows, R being the number of copies. What a copy
changes at its cut, divided by the chance of that cut, is added to the score. So what later tokens
add is taken off again, on average exactly, however small it is.
"""

import statistics
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from nanoloop.data import Data
from research.referee.patch import Invalid, refuse
from research.referee.sandbox import Crashed, Ended, Limit, Sandbox

WORKER = Path(__file__).with_name("worker.py")
SCORED_TOKENS = 2**16  # of a split
QUESTION_TOKENS = 4096  # in one question to the worker
STRETCH = 1024  # tokens in a row that are scored of a longer split
MAX_CHANGE = 0.25  # nats by which one prediction may change with its batch or with later tokens
MAX_ROUNDING = 5e-3  # … by which they may change in the root mean square
LEAK = 3e-5  # … and on average, beside six standard errors: rounding has no direction
CHANGED_WINDOWS = 256  # copies at least, however few windows the split has
MAX_START = 2.0  # times the baseline's processor time to start
START_SLACK = 1.0  # … and seconds more


@dataclass(frozen=True)
class Score:
    """What an evaluation found, and what the longer of its two processes used."""

    bpb: float  # bits per byte of the split
    first: float  # nats of its first window, the same in all pairs
    seconds: float
    processor_seconds: float
    start_seconds: float  # of processor time to start
    losses: ndarray  # (n - 1,) nats of the text's tokens, all but the first


def usual(results: Sequence, name: str) -> float:
    """Return the median of a field."""
    return statistics.median(getattr(result, name) for result in results)


class Worker:
    """A candidate's process that answers questions.

    Raises Invalid where it answers late, badly or not at all.
    """

    def __init__(self, box: Sandbox, tree: Path, checkpoint: Path, limit: Limit):
        self.box = box
        self.limit = limit
        self.answered = 0
        self.first_seconds = 0.0  # of processor time until its first answer
        self.ended: Ended | None = None
        self.socket = box.start([WORKER, checkpoint], [tree, checkpoint, WORKER], limit)
        self.answers = self.socket.makefile("rb")
        self.block_size, self.vocab_size = self.read_integers(2)

    def read(self, count: int) -> bytes:
        content = b""
        with suppress(OSError):
            content = self.answers.read(count)
        if len(content) < count:
            self.close()
            if self.ended.late:
                message = f"evaluation takes more than {self.limit.exceeded(self.ended)}"
                raise self.ended.problem(Invalid, f"{message}, far more than the baseline's")
            raise self.ended.problem(Crashed, "its evaluation ended before it had answered")
        return content

    def read_integers(self, count: int) -> list[int]:
        return np.frombuffer(self.read(4 * count), dtype="<i4").tolist()

    def ask(self, tokens: ndarray, targets: ndarray) -> ndarray:
        """Ask about (B, T) token ids; return (B, T) nats at the targets, whatever where -1."""
        question = np.array([*tokens.shape, *tokens.ravel()], dtype="<i4").tobytes()
        with suppress(OSError):  # a process that does not listen does not answer either
            self.socket.sendall(question)
        shape = self.read_integers(3)
        expected = [*tokens.shape, self.vocab_size]
        refuse(shape != expected, f"its logits have the shape {shape}, not {expected}")
        content = self.read(4 * int(np.prod(shape)))
        if self.answered == 0:
            self.first_seconds = self.box.processor_seconds()
        self.answered += 1
        return nats(np.frombuffer(content, dtype="<f4").reshape(shape), np.maximum(targets, 0))

    def close(self) -> None:
        """Let the process end, which it does when its input ends."""
        if self.ended is None:
            self.answers.close()
            self.socket.close()
            self.ended = self.box.finish()

    def start_seconds(self) -> float:
        """Estimate the processor time that it needed to start, without its first answer."""
        rest = self.ended.processor_seconds - self.first_seconds
        return self.first_seconds - rest / max(1, self.answered - 1)


def nats(logits: ndarray, targets: ndarray) -> ndarray:
    """Compute the surprise at the targets: (B, T, V) and (B, T) to (B, T) float64.

    The judge normalizes the logits. Raises Invalid for logits that are no answer.
    """
    with np.errstate(invalid="ignore"):  # what is not finite is found below
        shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    total = np.exp(shifted, out=shifted).sum(axis=-1)  # (B, T)
    is_finite = np.isfinite(total).all() and np.isfinite(chosen).all()
    refuse(not is_finite, "its logits are not finite")
    refuse(total.min() > logits.shape[-1] * 0.999, "its logits are constant")
    return np.log(total, dtype=np.float64) - chosen


# --------------------------------------------------------------------------------------------------
# The windows to ask about


def cut_windows(text: ndarray, block_size: int) -> tuple[ndarray, ndarray]:
    """Cut (n,) token ids into N windows of T: tokens, and targets, -1 where there is none.

    Each token except the first is a target once, so the same tokens are scored whatever the
    block_size.
    """
    count = -(-(len(text) - 1) // block_size)
    tokens = np.zeros((count, block_size), dtype=np.int64)
    tokens.flat[: len(text) - 1] = text[:-1]
    targets = np.full((count, block_size), -1)
    targets.flat[: len(text) - 1] = text[1:]
    return tokens, targets


@dataclass(frozen=True)
class Copies:
    """R changed copies of N windows."""

    tokens: ndarray  # (R, T)
    original: ndarray  # (R,) index of the window
    cut: ndarray  # (R,) last position before the change
    weight: ndarray  # (R,) 1 / the expected number of copies of the window with this cut


def draw_copies(tokens: ndarray, targets: ndarray, gains: ndarray, vocab_size: int, rng) -> Copies:
    """Copy windows, with random tokens after a drawn position; all arrays (N, T).

    gains: nats by which each prediction is better than the baseline's, 0 where that is unknown.
    """
    is_scored = targets >= 0
    chance = is_scored / is_scored.sum(axis=1, keepdims=True)
    gains = np.maximum(gains, 0) * is_scored
    total = gains.sum(axis=1, keepdims=True)
    chance = np.where(total > 0, (chance + gains / np.maximum(total, 1e-9)) / 2, chance)

    copies = -(-CHANGED_WINDOWS // len(tokens))
    original = np.tile(np.arange(len(tokens)), copies)
    reached = chance.cumsum(axis=1)[original] > rng.random((len(original), 1))
    cut = reached.argmax(axis=1)
    is_later = np.arange(tokens.shape[1]) > cut[:, None]
    other = rng.integers(vocab_size, size=is_later.shape)
    changed = np.where(is_later, other, tokens[original])
    return Copies(changed, original, cut, 1 / (copies * chance[original, cut]))


def scored_text(data: Data, split: str, seed: int) -> ndarray:
    """Read a split, or stretches from all over a longer one: its beginning may be one large file.

    A pair's seed draws the stretches, so nothing can fit them. Only the first is always the same.
    Each stands after an end-of-text token, as a document does.
    """
    stream = data.splits[split]
    count = SCORED_TOKENS // STRETCH
    if count * STRETCH >= len(stream):
        return stream.read(0, len(stream))
    parts = []
    steps = np.arange(count) + np.random.default_rng(seed).random(count)
    steps[0] = 0
    for start in (steps * (len(stream) - STRETCH) / count).astype(int).tolist():
        parts += [[data.tokenizer.end_of_text], stream.read(start, STRETCH)]
    return np.concatenate(parts)


# --------------------------------------------------------------------------------------------------
# The answers, and what they reveal


def ask_all(worker: Worker, tokens: ndarray, targets: ndarray, rng) -> tuple:
    """Ask about all windows, (N, T), in random order, in batches of one shape.

    Returns (N, T) nats and (N,) when each was asked, from 0 to 1.
    """
    count = len(tokens)
    order = rng.permutation(count)
    losses = np.zeros(tokens.shape)
    moment = np.zeros(count)
    moment[order] = np.arange(count) / count
    size = rows_at_once(tokens)
    # Equal shapes give equal rounding.
    filled = np.concatenate([order, rng.choice(order, -count % size)])
    for batch in filled.reshape(-1, size):
        losses[batch] = worker.ask(tokens[batch], targets[batch])
    return losses, moment


def rows_at_once(tokens: ndarray) -> int:
    return max(2, QUESTION_TOKENS // tokens.shape[1])


def check(copies: Copies, apart: ndarray, later: ndarray) -> str | None:
    """Judge by how much the answers for copies are apart from those for their windows.

    apart: (R, T) nats, 0 after the cut. later: (R,) by how much later, within its process, a copy
    was asked. Returns what is wrong, None if nothing is. Baseline and candidate have the same
    limits, so what is kept can be judged as the next baseline, and no limit grows with it.
    """
    at_cut = apart[np.arange(len(apart)), copies.cut]
    everywhere = (apart**2).sum() / (copies.cut + 1).sum()
    rounding = float(np.sqrt(max(everywhere, (at_cut**2).mean())))
    largest = np.abs(apart).max()
    if largest > MAX_CHANGE or rounding > MAX_ROUNDING:
        return f"predictions change by {rounding:.4f} nats, at most {largest:.2f}"

    # A candidate that learns from what it is asked gets better with time.
    of_window = apart.sum(axis=1) / (copies.cut + 1)
    means = {
        "when the next token is another": at_cut,
        "from process to process": of_window,
        "when asked again": np.sign(later) * of_window,
    }
    for case, values in means.items():
        mean = abs(values.mean())
        if mean > LEAK + 6 * values.std() / len(values) ** 0.5:
            return f"predictions change by {mean:.4f} nats on average {case}"
    return None


def find_cause(worker: Worker, tokens: ndarray, targets: ndarray, suspects: ndarray, rng) -> str:
    """Say why equal beginnings got different answers: state, other rows, or later tokens.

    suspects: indices of windows, those with the largest changes first.
    """
    size = rows_at_once(tokens)
    rows = rng.integers(len(tokens), size=size)
    count = len(suspects[: size // 2])
    rows[: 2 * count : 2] = suspects[:count]
    mixed = rows.copy()
    mixed[1::2] = rng.integers(len(tokens), size=size // 2)

    answers = [worker.ask(tokens[batch], targets[batch]) for batch in (rows, rows, mixed)]
    first, again, beside_others = answers
    if np.abs(first - again).max() > 1e-3:
        return (
            "the same input gets different answers: "
            "it keeps state between calls, or draws random numbers"
        )
    if np.abs(beside_others - first)[::2].max() > 1e-3:
        return "a prediction depends on the other rows of the batch"
    return "a prediction depends on tokens that come after it"


def score(
    box: Sandbox,
    tree: Path,
    checkpoint: Path,
    data: Data,
    split: str,
    seed: int,
    limit: Limit,
    baseline: Sequence[Score] = (),
) -> Score:
    """Score a checkpoint on a split. Raises Invalid.

    seed: of the stretches that are scored, the same for a pair. limit: of each of the candidate's
    two processes. baseline: its scores so far, that of the same text last. The positions of the
    changes and the order of the questions are drawn anew each time.
    """
    rng = np.random.default_rng()
    text = scored_text(data, split, seed)
    with closing(Worker(box, tree, checkpoint, limit)) as first:
        size = first.block_size
        known = data.tokenizer.vocab_size
        message = f"its vocabulary is {first.vocab_size}, not the data's {known}"
        refuse(first.vocab_size != known, message)
        refuse(not 1 <= size <= 2**17, f"block_size={size} is out of bounds")
        tokens, targets = cut_windows(text, size)
        losses, moment = ask_all(first, tokens, targets, rng)

    is_scored = targets >= 0
    gains = np.zeros(tokens.shape)
    if baseline:
        gains[is_scored] = baseline[-1].losses - losses[is_scored]
    copies = draw_copies(tokens, targets, gains, known, rng)
    with closing(Worker(box, tree, checkpoint, limit)) as second:
        is_same = second.block_size == size and second.vocab_size == known
        refuse(not is_same, "its block_size or vocab_size changes from process to process")
        answers, copy_moment = ask_all(second, copies.tokens, targets[copies.original], rng)
    slower = max(first, second, key=Worker.start_seconds)
    start_seconds = slower.start_seconds()
    if baseline:
        usual_start = usual(baseline, "start_seconds")
        message = f"it computes for {start_seconds:.1f} seconds before its first answer, where the "
        message += f"baseline needs {usual_start:.1f}: training ends with its run"
        if start_seconds > MAX_START * usual_start + START_SLACK:
            raise slower.ended.problem(Invalid, message)
    is_before = np.arange(size) <= copies.cut[:, None]
    apart = np.where(is_before, answers - losses[copies.original], 0.0)  # (R, T) nats
    later = copy_moment - moment[copies.original]
    problem = check(copies, apart, later)
    if problem:
        suspects = copies.original[np.argsort(-np.abs(apart).max(axis=1))]
        with closing(Worker(box, tree, checkpoint, limit)) as worker:
            cause = find_cause(worker, tokens, targets, suspects, rng)
        raise Invalid(f"{cause} ({problem})")

    n_bytes = data.tokenizer.token_bytes[np.maximum(targets, 0)] * is_scored  # (N, T)
    total = (losses * (n_bytes > 0)).sum()
    is_text = n_bytes[copies.original, copies.cut] > 0
    at_cut = apart[np.arange(len(apart)), copies.cut]
    undue = (copies.weight * at_cut * is_text).sum()  # what later tokens have saved
    return Score(
        bpb=float((total + undue) / n_bytes.sum() / np.log(2)),
        first=float(losses[0].sum()),
        seconds=max(first.ended.seconds, second.ended.seconds),
        processor_seconds=max(first.ended.processor_seconds, second.ended.processor_seconds),
        start_seconds=start_seconds,
        losses=losses[is_scored],
    )
