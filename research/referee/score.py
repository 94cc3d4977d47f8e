"""Compute bits per byte of a trained candidate, and guard that figure by probes.

The candidate's process (worker.py) gets windows of tokens and returns logits. The judge computes
everything else from its copy of the data and of the bytes per token. But a window holds the next
token of all its positions except the last: a model that looks ahead would see the answers. So each
scored window comes back, changed from some position on, and the answers for the part before that
position must be the same. Scored and changed windows are mixed and shuffled, and a window and its
changed copies go to different processes, which run one after the other and share no memory. So a
process can neither know which windows count nor remember its earlier answers.

What escapes: a model that looks ahead at a share f of all positions is missed with probability
(1 - f)^R, where R is the number of changed windows; and a dependence below LEAK, in nats per token.
"""

import contextlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoloop.data import Data
from research.referee.patch import Invalid, refuse
from research.referee.sandbox import Ended, Limit, Sandbox

WORKER = Path(__file__).with_name("worker.py")
SCORED_TOKENS = 2**16  # of a split
QUESTION_TOKENS = 4096  # in one question to the worker
STRETCH = 1024  # tokens in a row that are scored of a longer split
MAX_CHANGE = 0.25  # nats by which one prediction may change with its batch or with later tokens
MAX_ROUNDING = 5e-3  # … by which they may change in the root mean square, or 10 × the baseline's
LEAK = 3e-4  # … and on average, beside six standard errors: rounding has no direction
CHANGED_WINDOWS = 256  # at least, however few windows the split has


class Crashed(Invalid):
    """The candidate ended before its work was done."""


@dataclass(frozen=True)
class Score:
    """What an evaluation found, and what the longer of its two processes used."""

    bpb: float  # bits per byte of the split
    first: float  # nats of its first window, the same in all pairs
    rounding: float  # root mean square of the changes that `check` saw, nats
    seconds: float
    processor_seconds: float


class Worker:
    """A candidate's process that answers questions.

    Raises Invalid where it answers late, badly or not at all.
    """

    def __init__(self, box: Sandbox, tree: Path, checkpoint: Path, limit: Limit):
        self.box = box
        self.limit = limit
        self.ended: Ended | None = None
        self.socket = box.start([WORKER, checkpoint], [tree, checkpoint, WORKER], limit)
        self.answers = self.socket.makefile("rb")
        self.block_size, self.vocab_size = self.read_integers(2)

    def read(self, count: int) -> bytes:
        content = b""
        with contextlib.suppress(OSError):
            content = self.answers.read(count)
        if len(content) < count:
            self.close()
            if self.ended.late:
                message = f"evaluation takes more than {self.limit.exceeded(self.ended)}"
                raise Invalid(f"{message}, far more than the baseline's", self.ended.text)
            raise Crashed("its evaluation ended before it had answered", self.ended.text)
        return content

    def read_integers(self, count: int) -> list[int]:
        return np.frombuffer(self.read(4 * count), dtype="<i4").tolist()

    def ask(self, tokens: np.ndarray) -> np.ndarray:
        """Turn (B, T) token ids into (B, T, V) float32 logits."""
        question = np.array([*tokens.shape, *tokens.ravel()], dtype="<i4").tobytes()
        with contextlib.suppress(OSError):  # a process that does not listen does not answer either
            self.socket.sendall(question)
        shape = self.read_integers(3)
        expected = [*tokens.shape, self.vocab_size]
        refuse(shape != expected, f"its logits have the shape {shape}, not {expected}")
        content = self.read(4 * int(np.prod(shape)))
        return np.frombuffer(content, dtype="<f4").reshape(shape)

    def close(self) -> None:
        """Let the process end, which it does when its input ends."""
        if self.ended is None:
            self.answers.close()
            self.socket.close()
            self.ended = self.box.finish()


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
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


@dataclass(frozen=True)
class Plan:
    """N windows of T tokens: those that count, then changed copies of them."""

    tokens: np.ndarray  # (N, T)
    targets: np.ndarray  # (N, T); of a changed window those of its original; -1: not scored
    counted: np.ndarray  # (N,) bool
    original: np.ndarray  # (N,) index of the window that it is a copy of
    cut: np.ndarray  # (N,) last position before the change


def make_plan(data: Data, text: np.ndarray, block_size: int, rng: np.random.Generator) -> Plan:
    """Cut the text, (n,) token ids, into windows and change copies of them.

    Each token except the first is a target once, so the same tokens are scored whatever the
    block_size.
    """
    count = -(-(len(text) - 1) // block_size)
    tokens = np.zeros((count, block_size), dtype=np.int64)
    tokens.flat[: len(text) - 1] = text[:-1]
    targets = np.full((count, block_size), -1)
    targets.flat[: len(text) - 1] = text[1:]
    length = (targets >= 0).sum(axis=1)

    copies = max(1, -(-CHANGED_WINDOWS // count))
    original = np.tile(np.arange(count), 1 + copies)
    cut = (rng.random(len(original)) * np.maximum(length[original] - 1, 1)).astype(int)
    cut[:count] = length - 1
    changed = tokens[original]
    for row in range(count, len(original)):
        start = cut[row] + 1
        # The text of another window, or one other token alone.
        end = block_size if row % 4 else start + 1
        changed[row, start:end] = tokens[rng.integers(count)][start:end]
        if start < block_size and changed[row, start] == tokens[original[row], start]:
            vocab_size = data.tokenizer.vocab_size
            changed[row, start] = (changed[row, start] + rng.integers(1, vocab_size)) % vocab_size
    counted = np.arange(len(original)) < count
    return Plan(changed, targets[original], counted, original, cut)


def scored_text(data: Data, split: str, seed: int, max_tokens: int) -> np.ndarray:
    """Read a split, or stretches from all over a longer one: its beginning may be one large file.

    A pair's seed draws the stretches, so nothing can fit them. Only the first is always the same.
    Each stands after an end-of-text token, as a document does.
    """
    stream = data.splits[split]
    count = max_tokens // STRETCH
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


@dataclass(frozen=True)
class Answers:
    """What the candidate said of a plan's windows."""

    losses: np.ndarray  # (N, T) nats
    moment: np.ndarray  # (N,) when each was asked, from 0 to 1 within its process

    def ask(self, worker: Worker, plan: Plan, rows: np.ndarray, rng: np.random.Generator) -> None:
        """Ask about `rows` of the plan in random order, in batches of one shape."""
        rows = rng.permutation(rows)
        self.moment[rows] = np.arange(len(rows)) / max(1, len(rows)) + rng.random() * 1e-9
        size = rows_at_once(plan)
        # Equal shapes give equal rounding.
        filled = np.concatenate([rows, rng.choice(rows, -len(rows) % size)])
        for batch in filled.reshape(-1, size):
            logits = worker.ask(plan.tokens[batch])
            self.losses[batch] = nats(logits, np.maximum(plan.targets[batch], 0))


def rows_at_once(plan: Plan) -> int:
    return max(2, QUESTION_TOKENS // plan.tokens.shape[1])


def check(plan: Plan, answers: Answers, usual: float) -> tuple[str | None, float]:
    """Compare each changed window with its original up to the cut.

    Returns what is wrong, None if nothing is, and the root mean square of the changes in nats.
    usual: that of the baseline.
    """
    losses = answers.losses
    changed = np.flatnonzero(~plan.counted)
    original = plan.original[changed]
    is_before = np.arange(plan.tokens.shape[1]) <= plan.cut[changed, None]  # (N, T)
    apart = np.where(is_before, losses[changed] - losses[original], 0.0)
    rounding = float(np.sqrt((apart**2).sum() / is_before.sum()))
    largest = np.abs(apart).max()
    if largest > MAX_CHANGE or rounding > max(MAX_ROUNDING, 10 * usual):
        return f"predictions change by {rounding:.4f} nats, at most {largest:.2f}", rounding

    # A candidate that learns from what it is asked gets better with time.
    order = np.sign(answers.moment[changed] - answers.moment[original])
    means = {
        "when the next token is another": apart[np.arange(len(changed)), plan.cut[changed]],
        "when asked again": order * apart.sum(axis=1) / is_before.sum(axis=1),
    }
    for case, values in means.items():
        mean = abs(values.mean())
        if mean > LEAK + 6 * values.std() / len(values) ** 0.5:
            return f"predictions change by {mean:.4f} nats on average {case}", rounding
    return None, rounding


def find_cause(worker: Worker, plan: Plan, rng: np.random.Generator) -> str:
    """Say why equal beginnings got different answers: state, other rows, or later tokens."""
    size = rows_at_once(plan)
    rows = rng.choice(np.flatnonzero(plan.counted), size)
    others = rng.choice(np.flatnonzero(plan.counted), size)
    targets = np.maximum(plan.targets[rows], 0)
    first = nats(worker.ask(plan.tokens[rows]), targets)
    again = nats(worker.ask(plan.tokens[rows]), targets)
    if np.abs(first - again).max() > 1e-3:
        return (
            "the same input gets different answers: "
            "it keeps state between calls, or draws random numbers"
        )
    half = size // 2
    mixed = np.concatenate([rows[:half], others[half:]])
    beside_others = nats(worker.ask(plan.tokens[mixed]), targets)
    if np.abs(beside_others - first)[:half].max() > 1e-3:
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
    usual_rounding: float = 0.0,
    max_tokens: int = SCORED_TOKENS,
) -> Score:
    """Score a checkpoint on a split. Raises Invalid.

    seed: of the stretches that are scored, the same for a pair. limit: of each of the candidate's
    two processes. usual_rounding: the baseline's. max_tokens: of the split that are scored. The
    positions of the changes and the order of the questions are drawn anew each time.
    """
    rng = np.random.default_rng()
    with closing(Worker(box, tree, checkpoint, limit)) as first:
        size = first.block_size
        known = data.tokenizer.vocab_size
        message = f"its vocabulary is {first.vocab_size}, not the data's {known}"
        refuse(first.vocab_size != known, message)
        refuse(not 1 <= size <= 2**17, f"block_size={size} is out of bounds")
        plan = make_plan(data, scored_text(data, split, seed, max_tokens), size, rng)
        answers = Answers(np.zeros(plan.tokens.shape), np.zeros(len(plan.tokens)))
        # Each process gets half of the windows that count, and the copies of the other half.
        side = rng.permutation(plan.counted.sum())[plan.original] % 2
        is_first = side == plan.counted
        answers.ask(first, plan, np.flatnonzero(is_first), rng)
    with closing(Worker(box, tree, checkpoint, limit)) as second:
        is_same = second.block_size == size and second.vocab_size == known
        refuse(not is_same, "its block_size or vocab_size changes from process to process")
        answers.ask(second, plan, np.flatnonzero(~is_first), rng)
    problem, rounding = check(plan, answers, usual_rounding)
    if problem:
        with closing(Worker(box, tree, checkpoint, limit)) as worker:
            raise Invalid(f"{find_cause(worker, plan, rng)} ({problem})")

    is_scored = plan.counted[:, None] & (plan.targets >= 0)
    n_bytes = data.tokenizer.token_bytes[np.maximum(plan.targets, 0)] * is_scored
    total = (answers.losses * (n_bytes > 0)).sum()
    return Score(
        bpb=float(total / n_bytes.sum() / np.log(2)),
        first=float(answers.losses[0].sum()),
        rounding=rounding,
        seconds=max(first.ended.seconds, second.ended.seconds),
        processor_seconds=max(first.ended.processor_seconds, second.ended.processor_seconds),
    )
