"""Training a byte-pair tokenizer (Sennrich et al. 2016, arXiv:1508.07909)."""

from collections.abc import Iterable
from itertools import chain

from nanoloop.options import require
from nanoloop.tokenizer import END_OF_TEXT, GPT4_PATTERN, Tokenizer


def train_bpe(name: str, texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer "bpe:N": merge the most frequent pair until there are N tokens.

    N counts the 256 bytes and end-of-text. Raises UserError for another name.
    """
    import rustbpe

    size = name.removeprefix("bpe:")
    is_valid = size.isascii() and size.isdecimal() and 257 <= int(size) < 2**24
    require(
        is_valid,
        f"--tokenizer=bpe:N needs 257 (256 bytes and end-of-text) <= N < 2**24, got {name}",
    )
    texts = iter(texts)
    first = next(texts, "")  # raises the errors of the source before anything is printed
    print(f"training the tokenizer {name} on the training documents")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(chain([first], texts), int(size) - 1, pattern=GPT4_PATTERN)
    merges = sorted(trainer.get_mergeable_ranks(), key=lambda merge: merge[1])
    tokens = [bytes(token) for token, _ in merges]
    end_of_text = len(tokens)
    if end_of_text < int(size) - 1:
        print(
            f"the text has no more pairs to merge: the vocabulary is {end_of_text + 1}, not {size}"
        )
    tokens.append(END_OF_TEXT.encode())
    return Tokenizer(name, tokens, {END_OF_TEXT: end_of_text}, GPT4_PATTERN)
