"""The README, the docs and the brief are true: commands, options, files, links, sizes, words."""

import re
import shlex
from dataclasses import fields
from itertools import product
from typing import get_type_hints

import pytest

import prepare_data
import sample
import train
from bench.__main__ import BenchConfig
from nanoloop.options import read_options
from research.__main__ import COMMANDS as RESEARCH
from tests import house
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CLAUDE.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text("utf-8")

# By the first words of a command: the options that it takes.
OPTIONS = {
    "train.py": train.TrainConfig,
    "sample.py": sample.SampleConfig,
    "prepare_data.py": prepare_data.PrepareConfig,
    "-m bench": BenchConfig,
    **{f"-m research {name}": get_type_hints(main)["options"] for name, main in RESEARCH.items()},
}
WITH_CONFIG_FILE = ("train.py", "-m bench")
# Options that other programs have: torchrun, git, hf, and the scripts in tests/slow.
OTHER_OPTIONS = {"help", "max_restarts", "long", "only", "list"}


# --------------------------------------------------------------------------------------------------
# Commands


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL)


def code_spans(text: str) -> list[str]:
    """Return what stands between single backticks, outside of code blocks."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def ablations(text: str) -> list[str]:
    """Return the options over which a loop in the shell goes: for change in A B C; do."""
    loops = re.findall(r"for change in (.*?);", text.replace("\\\n", " "))
    return [option for loop in loops for option in loop.split()]


def split_line(line: str) -> list[list[str]]:
    """Split a line of the shell into its commands, each a list of words, without comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word[0] in "|&;<>()":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def shown_commands() -> list[str]:
    """Return every command for Python in the pages, without what comes before `python`."""
    commands: dict[str, None] = {}  # in order, each one once
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = "\n".join(code_blocks(text)).replace("\\\n", " ").splitlines()
        for words in [words for line in [*lines, *code_spans(text)] for words in split_line(line)]:
            starts = [i for i, word in enumerate(words) if re.search(r"\bpython$|^torchrun$", word)]
            if starts and len(words) > starts[0] + 1:
                commands[shlex.join(words[starts[0] :])] = None
    return list(commands)


def split_command(command: str) -> tuple[str, list[str]]:
    """Split a command into the program, as OPTIONS names it, and its arguments."""
    launcher, *words = shlex.split(command)
    if launcher == "torchrun":
        words = words[words.index("train.py") :]
    size = 1
    if words[0] == "-m":
        size = 3 if words[1] == "research" else 2
    return " ".join(words[:size]), words[size:]


def test_commands_are_found_in_blocks_and_in_prose():
    commands = shown_commands()
    assert "python train.py config/quickstart.py --resume=True" in commands
    assert len(commands) >= 60
    assert split_command("python -m research try my.patch") == ("-m research try", ["my.patch"])
    torchrun = "torchrun --nproc_per_node=8 train.py config/gpt2.py"
    assert split_command(torchrun) == ("train.py", ["config/gpt2.py"])


@pytest.mark.parametrize("command", shown_commands())
def test_a_command_in_the_docs_is_understood(command, monkeypatch):
    """Its program exists; its options exist and have the right types; its config file exists."""
    monkeypatch.chdir(ROOT)
    program, arguments = split_command(command)
    if "--help" in arguments:
        assert program in OPTIONS
    elif program in OPTIONS:
        # Two options load at once what the reader has: a file, and a model of languages.
        skipped = ("--$change", "--decontaminate", "--languages")
        flags = [flag for flag in arguments if not flag.startswith(skipped)]
        flags = [re.sub(r"\$\w+|LOSS", "1", flag) for flag in flags]
        read_options(OPTIONS[program], flags, program, config_files=program in WITH_CONFIG_FILE)
    elif program == "-m pytest":
        for path in [word for word in arguments if word.startswith("tests/")]:
            assert (ROOT / path).exists(), f"{path} does not exist"
    else:
        script = program
        if program.startswith("-m "):
            path = program.removeprefix("-m ").replace(".", "/")
            script = f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"
        source = (ROOT / script).read_text("utf-8")
        for word in arguments:
            if word.islower() and word.isidentifier():
                assert f'"{word}"' in source or f"def {word}" in source, f"{script} knows no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_ablation_of_a_loop_is_an_option(page):
    for change in ablations(page.read_text("utf-8")):
        flag = "--" + change.replace("$seed", "1")
        read_options(train.TrainConfig, [str(ROOT / "config/gpt2.py"), flag], "train.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_option_in_prose_exists(page):
    known = OTHER_OPTIONS | {field.name for cls in OPTIONS.values() for field in fields(cls)}
    for span in code_spans(page.read_text("utf-8")):
        if re.match(r"(hf|git|pip|ruff) ", span):
            continue
        for name in re.findall(r"--([a-z_]+)", span):
            assert name in known, f"--{name} is no option"


def test_the_readme_shows_every_program():
    programs = {split_command(command)[0] for command in shown_commands()}
    assert set(OPTIONS) <= programs
    for name in ("train.py", "sample.py", "prepare_data.py", "-m research", "-m pytest"):
        assert f"python {name}" in README, name


def test_ci_runs_the_readmes_test_command():
    command = (
        "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt "
        "&& .venv/bin/python -m pytest -q"
    )
    assert command in README
    assert command in (ROOT / ".ci/run").read_text()


# --------------------------------------------------------------------------------------------------
# Files, links, names


def expand_braces(name: str) -> list[str]:
    """Turn a/{b,c}.py into a/b.py and a/c.py."""
    parts = re.split(r"\{(.*?)\}", name)
    return ["".join(choice) for choice in product(*(part.split(",") for part in parts))]


def test_braces_are_expanded():
    assert expand_braces("a/{b,c}.py") == ["a/b.py", "a/c.py"]
    assert expand_braces("a.py") == ["a.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_page_names_exists(page):
    room = r"(?:nanoloop|corpus|bench|research|tests|config|docs)/[\w/.{},*]*"
    for span in code_spans(page.read_text("utf-8")):
        names = re.findall(rf"^(?:{room}|\w+\.(?:py|md))$", span)
        for name in [name for part in names for name in expand_braces(part)]:
            if name not in ("input.txt", "prepare.py"):  # nanoGPT's
                assert list(ROOT.glob(name.rstrip("/"))), f"{name} does not exist"


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_page_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{link}: {target} does not exist"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{link}: no such heading"


def test_every_page_of_the_docs_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w+\.md)", README))
    reached = linked | {
        f"docs/{name}"
        for path in linked
        for name in re.findall(r"\]\((\w+\.md)", (ROOT / path).read_text("utf-8"))
    }
    assert {f"docs/{page.name}" for page in PAGES[2:]} <= reached


def test_the_tour_names_what_the_code_has():
    """Each file of the tour exists, and each name in it is a word of one of these files."""
    tour = README.partition("## The reading tour")[2].partition("\n## ")[0]
    spans = code_spans(tour)
    paths = [ROOT / span for span in spans if span.endswith(".py")]
    assert len(paths) >= 10
    words = set(re.findall(r"\w+", "\n".join(path.read_text("utf-8") for path in paths)))
    for span in spans:
        if re.fullmatch(r"[A-Za-z_.]+", span) and not span.endswith(".py"):
            assert set(span.split(".")) <= words, f"the tour names {span}"


def test_the_readmes_map_is_the_house():
    the_map = README.partition("## The map")[2].partition("\n## ")[0]
    folders = [path.name + "/" for path in ROOT.iterdir() if (path / "__init__.py").is_file()]
    folders += ["config/", "docs/", "tests/slow/"]
    programs = [path.name for path in ROOT.glob("*.py")]
    for name in (*folders, *programs, "CLAUDE.md"):
        assert f"`{name}`" in the_map, f"the map in README.md lacks {name}"


# --------------------------------------------------------------------------------------------------
# Length, figures, words


def test_the_readme_is_short():
    words = len(README.split())
    assert words <= 1_400, f"README.md has {words:,} words: move the rest to docs/"


def test_the_comparison_counts_this_project():
    """To 5 %: see `tests/house.py`. When it fails, write the new sizes into the table."""
    spine = {ROOT / "model.py", ROOT / "train.py"}
    parts = {ROOT / f"nanoloop/{name}.py" for name in ("attention", "loss", "muon")}
    for row, paths in (
        ("model, training script", spine),
        ("… attention, loss, optimizer", spine | parts),
        ("all project code that training imports", house.closure(ROOT / "train.py")),
    ):
        shown = re.search(rf"^\| {row} \| ([\d,]+) \|", README, flags=re.MULTILINE)
        size = house.total(sorted(paths)).tokens
        assert shown, f"README.md has no row '{row}' with the {size:,} tokens of this project"
        assert int(shown[1].replace(",", "")) == pytest.approx(size, rel=0.05), row


# A letter in brackets, or this list would be found too.
BANNED = "tol[d]|goes o[n]|gone on wit[h]|whoeve[r]|by hear[t]|at han[d]|TOD[O]|FIXM[E]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_written_in_plain_words(page):
    found = re.findall(rf"\b(?:{BANNED})\b", page.read_text("utf-8"), flags=re.IGNORECASE)
    assert not found, f"{page.name}: use other words than {', '.join(found)}"
