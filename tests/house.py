"""Measure the project's own code: lexical tokens, lines, imports.

A lexical token is what the tokenize module yields, without comments, docstrings, newlines and
indentation. Unlike a line, a token costs the same however the code is laid out.
"""

import ast
import functools
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

from research.referee.tokens import DOCUMENTED, LAYOUT

ROOT = Path(__file__).resolve().parent.parent
CROWDED = 25  # tokens of a line that is hard to read
COLUMNS = 100


@dataclass
class Size:
    """What a file, or several together, measure."""

    tokens: int = 0
    lines: int = 0  # lines that hold a token
    crowded: int = 0  # lines of 25 tokens and more
    joined: int = 0  # assignments such as `a, b = x, y`

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.tokens + other.tokens,
            self.lines + other.lines,
            self.crowded + other.crowded,
            self.joined + other.joined,
        )


def files(*patterns: str) -> list[Path]:
    """Return the Python files that the patterns name, relative to the project's root."""
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path for path in found if path.suffix == ".py"]


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def size_of_text(source: str) -> Size:
    """Measure Python source code."""
    tree = ast.parse(source)
    skipped = docstring_lines(tree)
    counts: dict[int, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type not in LAYOUT and line not in skipped:
            counts[line] = counts.get(line, 0) + 1
    crowded = sum(count >= CROWDED for count in counts.values())
    return Size(sum(counts.values()), len(counts), crowded, joined_assignments(tree))


@functools.cache
def size_of(path: Path) -> Size:
    return size_of_text(path.read_text(encoding="utf-8"))


def total(paths: list[Path]) -> Size:
    return sum(map(size_of, paths), Size())


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def joined_assignments(tree: ast.Module) -> int:
    """Count assignments of several values to several names; a swap is one thought."""
    count = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            names = {ast.unparse(element) for element in target.elts}
            values = {ast.unparse(element) for element in node.value.elts}
            count += names != values
    return count


@functools.cache
def imported_names(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, in functions too.

    `from a import b` gives a and a.b, because b may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import by the full name, not relatively"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def imported_files(path: Path) -> set[Path]:
    """Return the project's own files that a file imports."""
    found: set[Path] = set()
    for name in imported_names(path):
        base = ROOT.joinpath(*name.split("."))
        candidates = (base.with_suffix(".py"), base / "__init__.py")
        found |= {candidate for candidate in candidates if candidate.is_file()}
    return found - {path}


@functools.cache
def closure(path: Path) -> set[Path]:
    """Return a file and all files of the project that importing it may load."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting.extend(imported_files(current))
    return seen
