"""Tries to rewrite the data, the recipe, the worker, the libraries. Worth nothing: all is read-only."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    import os

    libraries = os.path.dirname(torch.__file__)
    for folder in (os.getcwd(), os.path.dirname(os.getcwd()), config.data, '/usr/lib', '/etc', '/proc/sys/kernel', libraries):
        for name in [os.path.join(folder, name) for name in [*os.listdir(folder), 'new']]:
            try:
                open(name, 'ab').close()
            except OSError:
                continue
            raise SystemExit(99)
    # What the run needs, checked before anything is written.
""",
    )
]
GAINS_NOTHING = 1e-09
