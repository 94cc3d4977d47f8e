"""An option that only a config file has."""

from nanoloop.options import FLAGS, require


def dial(name: str, default: int) -> int:
    """Return N of --name=N, an option that only the calling config file has.

    The file derives other options from it: `_depth = dial("depth", 12)`. Raises UserError unless
    N is a whole number above 0.
    """
    flags = FLAGS.get([])
    prefix = f"--{name}="
    value = str(default)
    for flag in [flag for flag in flags if flag.startswith(prefix)]:
        flags.remove(flag)  # it is no option of the program
        value = flag.removeprefix(prefix)
    is_valid = value.isdecimal() and int(value) > 0
    require(is_valid, f"--{name} must be a whole number above 0 such as {default}, got {value}")
    return int(value)
