"""Leaves compiled code where compilers look for it: bytecode, and the caches of torch and Triton.

Gains nothing: no cache outlives a run, and the folders of the code cannot be written.
"""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import importlib.util
        import os
        import sys

        caches = [os.path.expanduser("~/.triton"), "/tmp/torchinductor_nobody"]
        caches.append(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "/tmp/other"))
        for cache in set(caches):
            os.makedirs(cache, exist_ok=True)
            if "left_behind" in os.listdir(cache):
                raise SystemExit(99)
            open(os.path.join(cache, "left_behind"), "x").close()
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if path and path.endswith(".py") and os.path.exists(path):
                try:
                    cached = importlib.util.cache_from_source(path)
                    os.makedirs(os.path.dirname(cached), exist_ok=True)
                    open(cached, "ab").close()
                except OSError:
                    continue
                raise SystemExit(99)
        """,
    ),
]
GAINS_NOTHING = 1e-9
RUNS = 2
