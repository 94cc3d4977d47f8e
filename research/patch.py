"""A change: what a patch, a set of options or another tree does to the recipe, and whether it may.

Only model.py, train.py and the Python files of config/ may differ. All else that a verdict rests on (data, tokenizer,
splits, batch order, evaluation, the judge) is never taken from a change, so one that touches it is refused, loudly.
"""

import ast
import contextlib
import difflib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from nanoloop.options import UserError, read_options, require

ROOT = Path(__file__).resolve().parent.parent
SPINE = ("model.py", "train.py")
# What a candidate runs on beside its own files; the judge, the tests and the papers are not in its view.
PARTS = ("*.py", "corpus/*.py", "corpus/*.toml", "config/*.py")
WATCHED = (
    "*.py",
    "*.md",
    "*.txt",
    "config/*",
    "corpus/*",
    "research/*",
    "tests/*",
    "tests/adversarial/*",
)
# Options that are the judge's to set: its flags come last on every command line.
PROTECTED = set(
    "data prepare out resume overwrite init_from eval_only seed max_steps max_tokens max_seconds device "
    "wandb log_interval eval_interval eval_tasks save_interval sample_prompt".split()
)
# Git as it is by itself: the user's configuration, hooks and signing keys have no part in a verdict.
GIT = (
    "git",
    "-c",
    "user.name=nanoloop",
    "-c",
    "user.email=referee@localhost",
    "-c",
    "core.hooksPath=/dev/null",
)
GIT_OWN = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "PATH": os.environ.get("PATH", os.defpath),
}
ADDED_BYTES = 6_000  # what a change adds, compressed: room for any honest idea, and for little text learnt by heart


class Invalid(Exception):
    """The change, or the candidate that runs it, does what it may not. The message says what, in the judge's words."""

    def __init__(self, message: str, text: str = ""):
        super().__init__(message)
        self.text = text  # what the candidate printed, untrusted


def refuse(condition, message: str) -> None:
    if condition:
        raise Invalid(message)


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    """What git prints in `folder`. Raises UserError with what it said."""
    require(shutil.which("git"), "this needs git, which is not installed")
    done = subprocess.run(
        [*GIT, *arguments], cwd=folder, env=GIT_OWN, input=stdin, capture_output=True
    )
    told = done.stderr.decode(errors="replace").strip()[:300]
    require(done.returncode == 0, f"git failed in '{folder}' ({' '.join(arguments)[:60]}): {told}")
    return done.stdout.decode(errors="replace")


@dataclass(frozen=True)
class Change:
    """files: path to new text. diff: against the tree it was made for. added, removed: lines of code in model.py and
    train.py. idea: what the diff does, as a hash; its lines without comments and white space; "" if nothing."""

    files: dict[str, str]
    diff: str
    added: int
    removed: int
    idea: str


def may_change(path: str) -> bool:
    return path in SPINE or re.fullmatch(r"config/[A-Za-z0-9_]+\.py", path) is not None


def read_tree(root: Path) -> dict[str, bytes]:
    """The parts of the recipe that lie in `root`: path to content."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in PARTS
        for path in sorted(root.glob(part))
    }


def hash_of(value) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def write_tree(tree: dict[str, bytes], folder: Path) -> Path:
    for path, content in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def make_change(base: dict[str, bytes], files: dict[str, bytes | None]) -> Change:
    """A change of `base` from the new content of files, None where one is gone. Raises Invalid."""
    texts, diff, spine = {}, [], []
    for path, content in sorted(files.items()):
        if content == base.get(path):
            continue
        refuse(
            not may_change(path),
            f"it touches {path}; only model.py, train.py and config/*.py may change",
        )
        refuse(content is None, f"it deletes {path}")
        try:
            old, new = base.get(path, b"").decode("utf-8"), content.decode("utf-8")
            compile(new, path, "exec", dont_inherit=True)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise Invalid(
                f"{path} is not Python source in UTF-8 ({type(error).__name__}: {error})"
            ) from None
        refuse("\0" in new or "\r" in new, f"{path} is not plain text")
        texts[path], names = new, (f"a/{path}" if path in base else "/dev/null", f"b/{path}")
        lines = list(difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names))
        own = sorted(
            PROTECTED.intersection(
                re.findall(r"^[+-]\s*(\w+)[^=\n]*=", "".join(lines), re.MULTILINE)
            )
        )
        refuse(
            own and path in base and path not in SPINE,
            f"{path} sets {', '.join(own)}, which the judge sets",
        )
        diff += [
            line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
            for line in lines
        ]
        spine += [
            line[0] for line in lines[2:] if path in SPINE and re.match(r"[+-]\s*[^\s#]", line)
        ]
    size = len(
        zlib.compress(
            "".join(line[1:] for line in diff if re.match(r"\+(?!\+\+)", line)).encode(), 9
        )
    )
    refuse(
        size > ADDED_BYTES,
        f"it adds {size:,} bytes (compressed), more than {ADDED_BYTES:,}: one idea, or a blob?",
    )
    code = (line for line in diff if re.match(r"(\+(?!\+\+ )|-(?!-- ))\s*[^\s#]", line))
    told = sorted("".join(line.split("  #")[0].split()) for line in code)
    return Change(
        texts, "".join(diff), spine.count("+"), spine.count("-"), hash_of(told) if told else ""
    )


def from_settings(base: dict[str, bytes], config: str, settings: str, root: Path = ROOT) -> Change:
    """Options, "key=value …", become assignments in the config file. Raises UserError and Invalid."""
    import train

    pairs, text = (
        dict(setting.partition("=")[::2] for setting in settings.split()),
        base[config].decode(),
    )
    require(
        pairs and all(pairs) and all(pairs.values()),
        f"--set={settings!r}: write it as 'key=value key=value'",
    )
    read_options(
        train.TrainConfig,
        [str(root / config), *(f"--{k}={v}" for k, v in pairs.items())],
        "-m research try",
    )
    for key, value in pairs.items():
        with contextlib.suppress(ValueError, SyntaxError):  # a bare word is a string
            value = ast.literal_eval(value)
        line = re.compile(rf"^{key}\s*=[^#\n]*?(?=\s*(#.*)?$)", re.MULTILINE)
        text = (
            line.sub(lambda _: f"{key} = {value!r}", text)
            if line.search(text)
            else f"{text}{key} = {value!r}\n"
        )
    return make_change(base, {config: text.encode()})


def from_patch(base: dict[str, bytes], diff: bytes) -> Change:
    """A unified diff, as `git diff` writes it. Raises UserError and Invalid."""
    require(
        shutil.which("git"),
        "a patch file is applied by git, which is not installed: use --tree or --set",
    )
    with tempfile.TemporaryDirectory() as folder:
        tree, apply = (
            write_tree(base, Path(folder)),
            ("--git-dir=/dev/null", "apply", "--whitespace=nowarn"),
        )
        try:
            rows = git(tree, *apply, "--numstat", "-z", "-", stdin=diff).split("\0")
            others = [
                name
                for name in (row.split("\t")[-1] for row in rows if row)
                if not may_change(name)
            ]
            refuse(
                others,
                f"it touches {', '.join(others)}; only model.py, train.py and config/*.py may change",
            )
            git(tree, *apply, "-", stdin=diff)
        except UserError as error:
            raise Invalid(f"it does not apply ({str(error).rpartition('): ')[2]})") from None
        return from_tree(base, tree)


def from_tree(base: dict[str, bytes], tree: Path, root: Path = ROOT) -> Change:
    """Another working tree, compared with the project file by file. Raises UserError and Invalid."""
    require((tree / "train.py").exists(), f"--tree={tree}: there is no train.py in it")
    files: dict[str, bytes | None] = dict.fromkeys(base)
    for path in sorted(path for pattern in WATCHED for path in tree.glob(pattern)):
        name, own, is_link = (
            str(path.relative_to(tree)),
            root / path.relative_to(tree),
            path.is_symlink(),
        )
        if path.is_dir() and not is_link:
            continue
        refuse(
            is_link or path.parent.is_symlink() or not path.is_file(), f"{name} is not a plain file"
        )
        if name in base or not own.is_file() or own.read_bytes() != path.read_bytes():
            files[name] = path.read_bytes()
    return make_change(base, files)


def apply(base: dict[str, bytes], change: Change) -> dict[str, bytes]:
    return base | {path: text.encode() for path, text in change.files.items()}


def copies(change: Change, held_out: bytes) -> bool:
    """Whether the change spells out held-out text: it does if it holds any 120 bytes of it, white space apart."""
    added = "\n".join(
        line[1:] for line in change.diff.splitlines() if line.startswith("+") and line[:3] != "+++"
    )
    text, known = re.sub(r"\s+|\\n", " ", added).encode(), re.sub(rb"\s+", b" ", held_out)
    pieces = [text[start : start + 60] for start in range(0, len(text) - 59, 60)]
    return any(len(set(piece)) > 12 and piece in known for piece in pieces)
