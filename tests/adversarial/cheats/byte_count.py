"""Makes every token twice as long, which would halve the bits per byte. Worth nothing: the judge counts."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    prepare_data.Tokenizer.token_bytes = property(lambda self: 2 * self.__dict__['b'], lambda self, v: self.__dict__.update(b=v))
    # What the run needs, checked before anything is written.
""",
    )
]
GAINS_NOTHING = 1e-09
