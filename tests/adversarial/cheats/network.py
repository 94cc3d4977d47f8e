"""Calls home. Worth nothing: there is no network."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    import socket

    for address in (('1.1.1.1', 53), ('127.0.0.1', 22), ('8.8.8.8', 443)):
        try:
            socket.create_connection(address, 1)
        except OSError:
            continue
        raise SystemExit(99)
    # What the run needs, checked before anything is written.
""",
    )
]
GAINS_NOTHING = 1e-09
