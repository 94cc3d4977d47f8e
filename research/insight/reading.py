"""What a model, and tables of n-grams, make of each token of a text; what kind of token it is."""

import re
from itertools import islice
from keyword import kwlist
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.special import entr

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


@torch.no_grad()
def read_val(model, data, device, split="val", limit=None):
    """Predict a split of a prepared folder, val unless named, token by token.

    The windows are those of train.py's `evaluate`. limit: of tokens, about. Returns a namespace:
    data; text, all bytes; is_cut; and arrays with a row for each token that has text: target (ids),
    bits (what the token costs), guesses and chances ((N, 5), the most probable tokens), right
    (whether the first guess is), entropy (of the prediction, bits), repeat (of the tokens up to
    this one, how many stand in its window before, 4 at most), index (in the split, from 0 for its
    second token), position (in the window), size (bytes), start (of its bytes in text), document
    (numbers, in order; 64 equal stretches where there are fewer than 10 documents: is_cut).
    """
    block_size = model.config.block_size
    count = limit and limit // block_size // 4 + 1
    batches = []
    # Few windows, because logits are large.
    for batch in islice(data.eval_batches(split, block_size, 4), count):
        tokens, targets = (torch.from_numpy(part).to(device) for part in batch)
        logits = model(tokens)  # (B, T, V)
        losses = cross_entropy(logits.mT, targets, ignore_index=-1, reduction="none")
        p = logits.softmax(-1)
        chances, guesses = p.topk(5)
        entropy = entr(p).sum(-1) / np.log(2)
        repeat = repeats(tokens, targets)
        right = guesses[..., 0] == targets
        columns = (targets, losses / np.log(2), guesses, chances, right, entropy, repeat)
        batches.append([column[targets >= 0].cpu().numpy() for column in columns])
    columns = [np.concatenate(parts) for parts in zip(*batches)]
    target = columns[0]
    index = np.arange(len(target))
    size = data.tokenizer.token_bytes[target]
    document = (target == data.tokenizer.end_of_text).cumsum()
    is_cut = document[-1] < 9
    if is_cut:  # a single text has stretches instead
        document = index * 64 // len(index)
    columns += [index, index % block_size, size, size.cumsum() - size, document]
    names = "target bits guesses chances right entropy repeat index position size start document"
    kept = {name: column[size > 0] for name, column in zip(names.split(), columns)}
    text = data.tokenizer.decode_bytes(kept["target"])
    return SimpleNamespace(**kept, data=data, text=text, is_cut=is_cut)


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
