"""Tries to rewrite the data, the recipe, the worker, the libraries.

Gains nothing: all is read-only.
"""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import os

        libraries = os.path.dirname(torch.__file__)
        here = os.getcwd()
        places = [here, os.path.dirname(here), config.data, libraries]
        places += ["/usr/lib", "/etc", "/proc/sys/kernel"]
        for folder in places:
            for name in [*os.listdir(folder), "new"]:
                try:
                    open(os.path.join(folder, name), "ab").close()
                except OSError:
                    continue
                raise SystemExit(99)
        """,
    ),
]
GAINS_NOTHING = 1e-9
