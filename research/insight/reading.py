"""What a model, and tables of n-grams, make of each token of a text; what kind of token it is."""

import math
import re
from itertools import islice
from keyword import kwlist
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import nll_loss

from model import GPT
from nanoloop.checkpoint import load_weights, model_config, restore
from nanoloop.data import open_data
from nanoloop.options import require
from nanoloop.tokenizer import Tokenizer, load_tokenizer

ROWS = 4  # windows of a forward pass; few, because logits are large
PRIOR = 64  # tokens

# What a byte is. A token is the first in this order of what its bytes are.
CLASSES = "string or comment,keyword,name,number,not ASCII,punctuation,whitespace".split(",")
PLAIN = r"([A-Za-z_]\w*)|(\d[\w.]*)|([\x80-\xff])|([!-/:-@[-^`{-~])|([\x00-\x20\x7f])"
# A comment, or a string with its prefix; three quotes may stay open to the end of the text.
STRING = (
    r"(#[^\n]*|(?i:\b[rbfu]{1,2})?(?:"
    r"'''(?s:\\.|.)*?(?:'''|\Z)|'(?:\\(?s:.)|[^'\\\n])*'|"
    r'"""(?s:\\.|.)*?(?:"""|\Z)|"(?:\\(?s:.)|[^"\\\n])*"))'
)
PYTHON = rf"{STRING}|(\b(?:{'|'.join(kwlist)})\b)|{PLAIN}"
STATEMENT = r"(?m)^\s*(import \w|from \S+ import |def \w+\(|class \w+.*:)"


# --------------------------------------------------------------------------------------------------
# A run


def model_of(state, device="cpu", dtype=torch.float32):
    """Return the model of a checkpoint, ready to predict. Raises UserError."""
    model = GPT(model_config(state), dtype).to(device).eval()
    restore(state | {"optimizer": {}}, False, model, [], None)
    return model


def tokenizer_of(state):
    """Return the tokenizer of a checkpoint, GPT-2's where it has none."""
    values = state["tokenizer"]
    return Tokenizer.from_json(values) if values else load_tokenizer("gpt2")


def data_of(state):
    """Open the data that a checkpoint was trained on. Raises UserError if they are others now."""
    data = open_data(state["config"].get("data", ""))
    message = f"'{data.folder}' is not the data of the run: prepare it as it was"
    require(state.get("data") == data.fingerprint, message)
    return data


def open_run(run: str, device, dtype, source: str | None = None):
    """Return the model of a run, and its prepared folder with a val split. Raises UserError.

    source: the name of the folder, which a run of a mixture needs.
    """
    state = load_weights(run)
    sources = data_of(state).sources
    names = ", ".join(sources)  # the name, if there is one folder
    _, data = sources.get(source or names, (1, None))
    require(data, f"the data of '{run}' are {names}: choose one by --source=NAME")
    require(len(data.splits["val"]) > 1, f"'{data.folder}' has no val split: prepare one")
    return model_of(state, device, dtype), data


# --------------------------------------------------------------------------------------------------
# A text, token by token


@torch.no_grad()
def read_split(model, data, device, split="val"):
    """Predict a split of a prepared folder, about as much of it as val has.

    The windows are those of train.py's `evaluate`. Returns a namespace: data; text, all bytes;
    is_cut; and arrays with a row for each token that has text: target (ids), bits (what the token
    costs), guesses and chances ((N, 5), the most probable tokens), right (whether the first guess
    is), entropy (of the prediction, bits), repeat (of the tokens up to this one, how many stand in
    its window before, 4 at most), index (in the split, from 0 for its second token), position (in
    the window), size (bytes), start (of its bytes in text), document (numbers, in order; 64 equal
    stretches where there are fewer than 10 documents: is_cut).
    """
    block_size = model.config.block_size
    count = len(data.splits["val"]) // (ROWS * block_size) + 1
    batches = []
    for batch in islice(data.eval_batches(split, block_size, ROWS), count):
        tokens, targets = (torch.from_numpy(part).to(device) for part in batch)
        target = targets.flatten()
        logs = model(tokens).flatten(0, 1).log_softmax(-1)  # (N, V)
        best, guesses = logs.topk(5)
        columns = {
            "target": target,
            "bits": nll_loss(logs, target, ignore_index=-1, reduction="none") / math.log(2),
            "guesses": guesses,
            "chances": best.exp(),
            "right": guesses[:, 0] == target,
            "entropy": -(logs.exp() * logs).sum(-1) / math.log(2),
            "repeat": repeats(tokens, targets).flatten(),
        }
        batches.append({name: x[target >= 0].cpu().numpy() for name, x in columns.items()})
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in columns}
    target = columns["target"]
    index = np.arange(len(target))
    size = data.tokenizer.token_bytes[target]
    document = (target == data.tokenizer.end_of_text).cumsum()
    is_cut = document[-1] < 9
    if is_cut:
        document = index * 64 // len(index)
    columns |= {
        "index": index,
        "position": index % block_size,
        "size": size,
        "start": size.cumsum() - size,
        "document": document,
    }
    with_text = {name: column[size > 0] for name, column in columns.items()}
    text = data.tokenizer.decode_bytes(with_text["target"])
    return SimpleNamespace(**with_text, data=data, text=text, is_cut=is_cut)


def repeats(tokens, targets):
    """Return how many tokens, up to each target, stand in its window before, 4 at most.

    All are (B, T).
    """
    window = torch.cat([tokens[:, :1], targets], 1)
    same = (window[:, :, None] == window[:, None]).tril(-1)  # and so are the tokens before
    found = torch.zeros_like(window)
    for n in range(4):
        found[:, n:] += same.any(-1)
        same = same[:, 1:, 1:] & same[:, :-1, :-1]
    return found[:, 1:]


def ngram_bits(train, text, vocab_size):
    """Yield the bits of each token of text by n-grams of 1, 2, … 5 tokens.

    They are counted in train. A context of n tokens adds PRIOR tokens to its counts, distributed as
    after its last n - 1 (MacKay & Peto 1995). train, text: ids, int64.
    """
    stream = np.append(train, text)
    context = np.zeros_like(stream)
    p = np.full(len(stream), 1 / vocab_size)
    for _ in range(5):
        grams, ids = np.unique(context * vocab_size + stream, return_inverse=True)
        counts = np.bincount(ids[: len(train)], minlength=len(grams))
        total = np.bincount(grams // vocab_size, counts)[context]
        p = (counts[ids] + PRIOR * p) / (total + PRIOR)
        yield -np.log2(p[len(train) :])
        # The first token has a context that no other has.
        context = np.append(len(grams), ids[:-1])


def byte_classes(text: bytes) -> np.ndarray:
    """Return the number in CLASSES of each byte; broken Python is no error.

    Keywords, strings and comments are found in text that holds a statement of Python alone.
    """
    classes = np.zeros(len(text), int)
    characters = text.decode("latin-1")  # one for each byte
    offset = 0 if re.search(STATEMENT, characters) else 2
    pattern = PLAIN if offset else PYTHON
    for match in re.finditer(pattern, characters, re.ASCII):
        classes[slice(*match.span())] = match.lastindex - 1 + offset
    return classes


# --------------------------------------------------------------------------------------------------
# Intervals


def half_interval(parts, sizes, count=1):
    """Return half the width of the 95 % interval of sum(parts) / sum(sizes).

    parts, sizes: (D,), of documents: they are independent, the tokens of one are not. The deviation
    is the jackknife's, the distribution Student's with as many degrees of freedom as documents of
    equal size would have (Kish 1965). count: of intervals that shall hold together (Bonferroni).
    """
    from scipy.stats import t

    total = sizes.sum()
    shift = (parts - parts.sum() / total * sizes) / (total - sizes)  # without the document
    freedom = total**2 / (sizes**2).sum() - 1
    return np.sqrt((shift**2).sum()) * t.isf(0.025 / count, freedom)
