"""Another optimizer step, in nanoloop/muon.py."""

EDITS = [
    (
        "wrap",
        "nanoloop/muon.py:orthogonalize",
        """
        def changed(original, matrices):
            return 0.9 * original(matrices)
        """,
    ),
]
