"""Makes every token twice as long, which would halve the bits per byte.

Gains nothing: the judge counts the bytes.
"""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        from nanoloop.vocabulary import Vocabulary

        initialize = Vocabulary.__init__

        def initialize_twice_as_long(self, *arguments, **options):
            initialize(self, *arguments, **options)
            self.token_bytes = 2 * self.token_bytes

        Vocabulary.__init__ = initialize_twice_as_long
        """,
    ),
]
GAINS_NOTHING = 1e-9
