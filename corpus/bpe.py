"""Training a byte-pair tokenizer (Sennrich et al. 2016, arXiv:1508.07909)."""

from nanoloop.options import require
from nanoloop.tokenizer import GPT4_PATTERN, Tokenizer
from nanoloop.vocabulary import END_OF_TEXT

TRAINING_BYTES = 100_000_000  # more text changes a tokenizer very little


def training_texts(rows, config):
    """Yield the text of training documents, within the options' limits.

    rows: from a BatchReader without a tokenizer. Held-out text shapes nothing, not even the
    tokenizer.
    """
    max_bytes = min(TRAINING_BYTES, config.max_bytes or TRAINING_BYTES)
    n_bytes = 0
    for n_documents, row in enumerate((row for row in rows if row.content), 1):
        text = row.content[: max_bytes - n_bytes].decode(errors="ignore")
        n_bytes += row.size
        if row.split == "train":
            yield text
        if n_bytes >= max_bytes or n_documents == config.max_documents:
            return


def train_bpe(name: str, texts) -> Tokenizer:
    """Train "bpe:N": merge the most frequent pair until there are N tokens.

    N counts the 256 bytes and end-of-text. texts: an iterable. Raises UserError for another name.
    """
    import rustbpe

    size = name.removeprefix("bpe:")
    is_valid = size.isascii() and size.isdecimal() and 257 <= int(size) < 2**24
    expected = "N from 257 (256 bytes and end-of-text) to 16 million"
    require(is_valid, f"--tokenizer=bpe:N needs {expected}, got {name}")
    print(f"training the tokenizer {name} on the training documents")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, int(size) - 1, pattern=GPT4_PATTERN)
    merges = sorted(trainer.get_mergeable_ranks(), key=lambda merge: merge[1])
    tokens = [*(bytes(token) for token, _ in merges), END_OF_TEXT.encode()]
    if 257 < len(tokens) < int(size):
        print(f"the text has no more pairs to merge: {len(tokens)} tokens instead of {size}")
    return Tokenizer(name, tokens, {END_OF_TEXT: len(merges)}, GPT4_PATTERN)
