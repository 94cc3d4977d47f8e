"""Edits of the recipe that a refactoring does not break: they name functions, not their text.

A case in cheats/ or honest/ lists EDITS, each (kind, target, code). The kinds:

    options   target a config file. Each `name = value` replaces the assignment of that name, or is
              appended; other lines are appended.
    append    target a file. The code goes to its end, before `if __name__ == "__main__":`.
    begin     target "train.py:train". The code becomes the first statements of that function, after
              its docstring.
    body      target "train.py:lr_scale". The code becomes the body of that function.
    rename    target "model.py:rotate". The code is the new name, wherever the file has the old.
    wrap      target "model.py:GPT.forward". The code is `def changed(original, …)`, which takes the
              function's place and calls `original(…)` where it wants to.

An edit whose target does not exist fails, so a case never tests something else by accident.
"""

import ast
import re
import textwrap

# Puts `changed` in the place of a function of a class or of this module.
REPLACE = """

def replace_function(holder, name, changed):
    original = getattr(holder, name)

    def call(*arguments, **options):
        return changed(original, *arguments, **options)

    setattr(holder, name, call)


"""
THIS_MODULE = "__import__('sys').modules[__name__]"


def apply_edits(files: dict[str, str], edits: list[tuple[str, str, str]]) -> dict[str, str]:
    """Return the files, path to text, with the edits made in order."""
    files = dict(files)
    for kind, target, code in edits:
        path, _, name = target.partition(":")
        code = textwrap.dedent(code).strip("\n") + "\n"
        if kind == "options":
            files[path] = set_options(files[path], code)
        elif kind == "append":
            files[path] = append(files[path], code)
        elif kind == "begin":
            files[path] = begin(files[path], find_function(files[path], path, name), code)
        elif kind == "body":
            files[path] = body(files[path], find_function(files[path], path, name), code)
        elif kind == "rename":
            find_function(files[path], path, name)
            old_name = name.rpartition(".")[2]
            files[path] = re.sub(rf"\b{old_name}\b", code.strip(), files[path])
        elif kind == "wrap":
            find_function(files[path], path, name)
            files[path] = append(files[path], wrapper(name, code))
        else:
            raise ValueError(f"unknown kind of edit: {kind}")
    return files


def set_options(text: str, code: str) -> str:
    for line in code.splitlines():
        name = line.partition(" = ")[0]
        existing = re.compile(rf"^{re.escape(name)} = .*$", re.MULTILINE)
        text, count = existing.subn(lambda match, line=line: line, text)
        if count == 0:
            text += line + "\n"
    return text


def append(text: str, code: str) -> str:
    body, guard, rest = text.partition('\nif __name__ == "__main__":')
    return f"{body}\n\n{code}\n{guard}{rest}"


def find_function(text: str, path: str, name: str) -> ast.FunctionDef:
    """Find a function, or a method as Class.method."""
    scope = ast.parse(text)
    for part in name.split("."):
        found = [node for node in scope.body if getattr(node, "name", None) == part]
        assert len(found) == 1, f"{path} has {len(found)} definitions of {name}"
        scope = found[0]
    assert isinstance(scope, ast.FunctionDef), f"{name} in {path} is no function"
    return scope


def first_statement(function: ast.FunctionDef) -> ast.stmt:
    has_docstring = ast.get_docstring(function) is not None
    return function.body[1 if has_docstring else 0]


def begin(text: str, function: ast.FunctionDef, code: str) -> str:
    first = first_statement(function)
    lines = text.splitlines(keepends=True)
    lines.insert(first.lineno - 1, textwrap.indent(code, " " * first.col_offset))
    return "".join(lines)


def body(text: str, function: ast.FunctionDef, code: str) -> str:
    first = first_statement(function)
    lines = text.splitlines(keepends=True)
    new_lines = [textwrap.indent(code, " " * first.col_offset)]
    lines[first.lineno - 1 : function.end_lineno] = new_lines
    return "".join(lines)


def wrapper(name: str, code: str) -> str:
    """Write code that calls `changed`, which `code` defines, instead of a function or method."""
    holder, _, function = name.rpartition(".")
    return f"{code}{REPLACE}replace_function({holder or THIS_MODULE}, {function!r}, changed)\n"
