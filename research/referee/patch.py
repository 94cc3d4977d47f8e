"""A change: what a patch, a set of options or another tree does to the recipe.

Only the recipe may differ: the files in RECIPE and the Python files of config/. Everything else
that a verdict rests on (data, tokenizer, splits, batch order, evaluation, the judge) is never
taken from a change, so a change that touches it is refused.
"""

import ast
import difflib
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import tokenize
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanoloop.options import UserError, read_options, require
from research.referee.tokens import count_tokens

Tree = dict[str, bytes]  # files of a project: path to content
ROOT = Path(__file__).resolve().parents[2]
PARTS = "attention loss loss_kernel muon".split()
RECIPE = ["model.py", "train.py", *(f"nanoloop/{part}.py" for part in PARTS)]
MAY_CHANGE = (
    f"only model.py, train.py, nanoloop/{{{','.join(PARTS)}}}.py and config/*.py may change"
)
# What a run can see of the project. The judge, the tests and the documents are not in its view.
VISIBLE = "*.py nanoloop/*.py config/*.py".split()
# What another tree is searched for: nothing else in these places may differ.
SEARCHED = (
    "*.py *.md *.txt *.toml bench/**/* config/**/* corpus/**/* docs/**/* nanoloop/**/* "
    "research/**/* tests/**/*"
).split()
# Options that the judge sets: its flags come last on every command line.
PROTECTED = set(
    "data prepare out resume overwrite init_from eval_only seed max_steps max_tokens max_seconds "
    "device wandb log_interval eval_interval save_interval sample_prompt".split()
)
# Git without the user's configuration, hooks and signing keys.
GIT = (
    "git -c user.name=nanoloop -c user.email=referee@localhost -c core.hooksPath=/dev/null"
).split()
GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "PATH": os.environ.get("PATH", os.defpath),
}
MAX_ADDED_BYTES = 6_000  # compressed: room for any honest idea, and for little memorized text


class Invalid(Exception):
    """The change, or the candidate that runs it, breaks a rule; the message names the rule.

    text: what the candidate printed, untrusted.
    """

    verdict = "invalid"

    def __init__(self, message: str, text: str = ""):
        # It may name a path of the change, which may hold anything.
        super().__init__("".join(c if c.isprintable() else " " for c in message))
        self.text = text


def refuse(condition, message: str) -> None:
    if condition:
        raise Invalid(message)


@dataclass(frozen=True)
class Change:
    """A change of a tree."""

    files: dict[str, str]  # path to new text
    diff: str  # a unified diff of the tree
    added: str  # the lines that it adds
    tokens: int  # lexical tokens of its files, minus those before


# --------------------------------------------------------------------------------------------------
# Git and trees


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    """Return what git prints in `folder`. Raises UserError with its message."""
    require(
        shutil.which("git"), "git is not installed: install it, or use try with --tree or --set"
    )
    result = subprocess.run(
        [*GIT, *arguments], cwd=folder, env=GIT_ENVIRONMENT, input=stdin, capture_output=True
    )
    message = result.stderr.decode(errors="replace").strip()[:300]
    require(result.returncode == 0, f"git {' '.join(arguments)[:60]}: {message}")
    return result.stdout.decode(errors="replace")


def is_config(path: str) -> bool:
    return re.fullmatch(r"config/[A-Za-z0-9_]+\.py", path) is not None


def may_change(path: str) -> bool:
    return path in RECIPE or is_config(path)


def read_tree(root: Path) -> Tree:
    """Read what a run can see of the project in `root`: path to content."""
    paths = [path for pattern in VISIBLE for path in sorted(root.glob(pattern))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def write_tree(tree: Tree, folder: Path) -> Path:
    for path, content in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def apply(base: Tree, change: Change) -> Tree:
    return base | {path: text.encode() for path, text in change.files.items()}


def hash_of(value) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


# --------------------------------------------------------------------------------------------------
# Three ways to say a change


def from_patch(base: Tree, diff: bytes) -> Change:
    """Read a unified diff, as `git diff` writes it. Raises UserError and Invalid."""
    apply_command = ("--git-dir=/dev/null", "apply", "--whitespace=nowarn")
    with tempfile.TemporaryDirectory() as folder:
        tree = write_tree(base, Path(folder))
        git(tree, "--version")  # where git is missing, that is no fault of the patch
        try:
            listed = git(tree, *apply_command, "--numstat", "-z", "-", stdin=diff)
            paths = [row.split("\t", 2)[2] for row in listed.split("\0") if row]
            others = [path for path in paths if not may_change(path)]
            refuse(others, f"it touches {', '.join(others)}; {MAY_CHANGE}")
            git(tree, *apply_command, "-", stdin=diff)
        except UserError as error:
            raise Invalid(f"it does not apply ({error})") from None
        return from_tree(base, tree)


def from_tree(base: Tree, tree: Path, root: Path = ROOT) -> Change:
    """Compare another working tree with the project in `root`. Raises UserError and Invalid."""
    require((tree / "train.py").exists(), f"--tree={tree}: it holds no train.py")
    files: dict[str, bytes | None] = dict.fromkeys(base)  # None: missing in the tree
    for path in sorted({path for pattern in SEARCHED for path in tree.glob(pattern)}):
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        name = str(path.relative_to(tree))
        is_link = path.is_symlink() or path.parent.is_symlink()
        refuse(is_link or not path.is_file(), f"{name} is not a plain file")
        content = path.read_bytes()
        existing = root / name
        if name in base or not existing.is_file() or existing.read_bytes() != content:
            files[name] = content
    return make_change(base, files)


def from_settings(base: Tree, config: str, settings: str, root: Path = ROOT) -> Change:
    """Turn options, "key=value …", into assignments in the config file.

    Raises UserError and Invalid.
    """
    from train import TrainConfig

    values = dict(setting.partition("=")[::2] for setting in settings.split())
    is_complete = values and all(values) and all(values.values())
    require(is_complete, f"--set={settings!r}: write it as 'key=value key=value'")
    flags = [f"--{key}={value}" for key, value in values.items()]
    read_options(TrainConfig, [str(root / config), *flags], "-m research try")
    text = base[config].decode()
    for key, value in values.items():
        with suppress(ValueError, SyntaxError):  # a bare word is a string
            value = ast.literal_eval(value)
        assignment = f"{key} = {value!r}"
        existing = re.compile(rf"^{key}\s*=[^#\n]*?(?=\s*(#.*)?$)", re.MULTILINE)
        text, count = existing.subn(assignment.replace("\\", r"\\"), text)
        if count == 0:
            text += assignment + "\n"
    return make_change(base, {config: text.encode()})


# --------------------------------------------------------------------------------------------------
# What a change may do


def make_change(base: Tree, files: dict[str, bytes | None]) -> Change:
    """Compare files with `base`; a content of None says that a file is gone. Raises Invalid."""
    texts = {}
    diff = []
    added = []
    tokens = 0
    for path, content in sorted(files.items()):
        if content == base.get(path):
            continue
        refuse(not may_change(path), f"it touches {path}; {MAY_CHANGE}")
        refuse(content is None, f"it deletes {path}")
        new = read_source(path, content)
        old = base.get(path, b"").decode("utf-8")
        lines = compare(path, old, new, is_new=path not in base)
        if is_config(path) and path in base:
            names = re.findall(r"^[+-]\s*(\w+)[^=\n]*=", "".join(lines), re.MULTILINE)
            protected = sorted(PROTECTED.intersection(names))
            refuse(protected, f"{path} sets {', '.join(protected)}, which the judge sets")
        texts[path] = new
        diff += lines
        added += [line[1:] for line in lines[2:] if line.startswith("+")]
        tokens += count_tokens(new) - count_tokens(old)
    size = len(zlib.compress("".join(added).encode(), 9))
    refuse(
        size > MAX_ADDED_BYTES,
        f"it adds {size:,} bytes (compressed), more than {MAX_ADDED_BYTES:,}: one idea, or a blob?",
    )
    return Change(texts, "".join(diff), "".join(added), tokens)


def read_source(path: str, content: bytes) -> str:
    """Decode Python source. Raises Invalid for anything else."""
    try:
        text = content.decode("utf-8")
        compile(text, path, "exec", dont_inherit=True)
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        kind = type(error).__name__
        raise Invalid(f"{path} is not Python source in UTF-8 ({kind}: {error})") from None
    # Python would read other text than the judge, code in what looks like a comment.
    refuse(encoding != "utf-8", f"{path} says that it is in {encoding}, not in UTF-8")
    refuse("\0" in text or "\r" in text, f"{path} is not plain text")
    return text


def compare(path: str, old: str, new: str, is_new: bool) -> list[str]:
    """Return the lines of a unified diff, two of header first; each ends with a line end."""
    old_name = "/dev/null" if is_new else f"a/{path}"
    # Not splitlines: in a diff only \n ends a line.
    old_lines = io.StringIO(old).readlines()
    new_lines = io.StringIO(new).readlines()
    lines = list(difflib.unified_diff(old_lines, new_lines, old_name, f"b/{path}"))
    for index, line in enumerate(lines):
        if not line.endswith("\n"):
            lines[index] = line + "\n\\ No newline at end of file\n"
    return lines


def copies(change: Change, held_out: bytes) -> bool:
    """Say whether the change holds 120 bytes of the held-out text, ignoring space."""
    text = re.sub(r"\s+|\\n", " ", change.added).encode()
    known = re.sub(rb"\s+", b" ", held_out)
    pieces = [text[start : start + 60] for start in range(0, len(text) - 59, 60)]
    return any(len(set(piece)) > 12 and piece in known for piece in pieces)
