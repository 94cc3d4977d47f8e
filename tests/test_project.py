"""The project's promises about itself: size, style, imports and recipes."""

import ast
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import fields
from types import SimpleNamespace

import pytest

import train
from nanoloop.gpt2 import SWITCHES
from nanoloop.options import UserError, read_options
from tests import house
from tests.conftest import ROOT
from tests.house import files, parse, size_of, total

SPINE = [ROOT / "model.py", ROOT / "train.py"]
COMMANDS = files("*.py")
HOUSE = [*COMMANDS, *files("nanoloop/**/*.py", "corpus/**/*.py", "config/*.py")]
RESEARCH = files("research/**/*.py")
PRODUCT = [*HOUSE, *RESEARCH, *files("bench/**/*.py")]
TESTS = [path for path in files("tests/**/*.py") if "adversarial" not in path.parts]
ROOMS = {
    "the spine": SPINE,
    "the commands": COMMANDS,
    "nanoloop/": files("nanoloop/**/*.py"),
    "corpus/": files("corpus/**/*.py"),
    "bench/": files("bench/**/*.py"),
    "research/": RESEARCH,
    "tests/": TESTS,
}
RECIPES = files("config/*.py")


def short(path) -> str:
    """Name a file relative to the project."""
    return path.relative_to(ROOT).as_posix()


# --------------------------------------------------------------------------------------------------
# Budgets, in lexical tokens


def test_tokens_are_counted_without_comments_docstrings_and_layout():
    source = '''
        """A docstring."""

        # a comment
        def f(x):  # f ( x ) : are four tokens, def is one
            """A docstring
            of two lines."""
            return (x,
                    "text")
    '''
    size = house.size_of_text(textwrap.dedent(source))
    assert (size.tokens, size.lines) == (12, 3)


def test_a_line_of_25_tokens_is_crowded():
    assert house.size_of_text("x = [" + "1, " * 10 + "1]").crowded == 1
    assert house.size_of_text("x = [" + "1, " * 9 + "1, ]").crowded == 0


def test_a_swap_is_no_joined_assignment():
    assert house.size_of_text("a, b = b, a").joined == 0
    assert house.size_of_text("a, b = f(x)").joined == 0
    assert house.size_of_text("a, b = x, y").joined == 1


def test_the_spine_leaves_room_for_a_learner():
    """The limit is 6,000: a learner can add an activation and need not remove something first."""
    tokens = total(SPINE).tokens
    message = f"model.py and train.py hold {tokens:,} tokens. Move what is no lesson to nanoloop/"
    assert tokens <= 5_700, message


def test_the_spine_with_attention_loss_and_muon_is_small():
    parts = files("nanoloop/attention.py", "nanoloop/loss.py", "nanoloop/muon.py")
    tokens = total(SPINE + parts).tokens
    assert len(parts) == 3
    assert tokens <= 7_500, f"the recipe holds {tokens:,} tokens. Let a feature leave"


def test_the_spine_has_at_most_600_lines_of_code():
    lines = total(SPINE).lines
    assert lines <= 600, f"model.py and train.py have {lines} lines. Do not join: let a part leave"


@pytest.mark.parametrize("path", SPINE, ids=short)
def test_a_line_of_the_spine_holds_one_thought(path):
    size = size_of(path)
    density = size.tokens / size.lines
    assert density <= 11.5, f"{density:.1f} tokens a line: name intermediate results"


def test_importing_train_loads_little_code():
    """The aim is 18,000; options and logs that explain themselves to their user are above it.

    773 of them, nanoloop/loss_kernel.py, are loaded on CUDA alone.
    """
    loaded = {path: size_of(path).tokens for path in house.closure(ROOT / "train.py")}
    largest = sorted(loaded, key=loaded.get, reverse=True)[:5]
    names = ", ".join(f"{short(path)} {loaded[path]:,}" for path in largest)
    tokens = sum(loaded.values())
    message = (
        f"importing train.py loads {tokens:,} tokens ({names}, …). Move code to where it is used"
    )
    assert tokens <= 20_550, message


def test_the_house_does_not_grow():
    """The aim is 32,000; corpus/ reads what people really bring, and that takes its tokens."""
    tokens = total(HOUSE).tokens
    message = f"the house without research/, bench/ and tests/ holds {tokens:,} tokens"
    assert tokens <= 43_900, f"{message}. Let a feature leave, or use a library"


def test_research_does_not_grow():
    """The aim is 22,000. The referee takes 15,950, insight 11,800, the loop 6,500."""
    tokens = total(RESEARCH).tokens
    assert tokens <= 39_950, f"research/ holds {tokens:,} tokens. Let a feature leave"


# --------------------------------------------------------------------------------------------------
# How it reads


@pytest.mark.parametrize("room", ROOMS)
def test_crowded_lines_are_rare(room):
    size = total(ROOMS[room])
    share = size.crowded / max(1, size.lines)
    worst = sorted(ROOMS[room], key=lambda path: size_of(path).crowded, reverse=True)[:3]
    names = ", ".join(f"{short(path)} {size_of(path).crowded}" for path in worst)
    assert share <= 0.05, f"{share:.1%} of lines hold 25 tokens or more ({names}): split them"


@pytest.mark.parametrize("room", ROOMS)
def test_joined_assignments_are_rare(room):
    size = total(ROOMS[room])
    names = [short(path) for path in ROOMS[room] if size_of(path).joined]
    message = f"{size.joined} joined assignments in {names}: give each its own line"
    assert size.joined <= size.tokens / 1_000, message


def test_no_line_is_wider_than_100_columns():
    wide = [
        f"{short(path)}:{number}"
        for path in PRODUCT + TESTS
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > house.COLUMNS
    ]
    assert not wide, f"{len(wide)} lines are too wide: {wide[:10]}"


def test_the_formatter_is_never_switched_off():
    mark = "# " + "fmt:"
    marked = [short(path) for path in PRODUCT + TESTS if mark in path.read_text("utf-8")]
    assert not marked, f"remove the marks, then run `ruff format`: {marked}"


BANNED = {"told", "made", "place", "own", "theirs", "at", "both", "whole"}


def assigned_names(tree: ast.AST):
    """Yield each name that code gives to something, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield (node.id if isinstance(node, ast.Name) else node.attr), node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.alias | ast.ExceptHandler):
            yield getattr(node, "asname", None) or getattr(node, "name", None), node.lineno


def test_no_name_is_a_riddle():
    found = [
        f"{short(path)}:{line} {name}"
        for path in PRODUCT + TESTS
        for name, line in assigned_names(parse(path))
        if name in BANNED
    ]
    message = "use message, rank, cursor, index, existing, complete, …"
    assert not found, f"{len(found)} names say nothing: {found[:10]}; {message}"


def test_no_structure_hides_what_it_is():
    """A lambda with a name is a function; a filter assigns nothing; a class does not pretend."""
    found = []
    for path in PRODUCT:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                if isinstance(node.targets[0], ast.Name):
                    found.append(f"{short(path)}:{node.lineno} a lambda with a name")
            if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
                found.append(f"{short(path)}:{node.lineno} __getattr__")
            if isinstance(node, ast.comprehension):
                inner = [part for test in node.ifs for part in ast.walk(test)]
                for part in inner:
                    if isinstance(part, ast.NamedExpr):
                        found.append(f"{short(path)}:{part.lineno} an assignment in a filter")
    assert not found, found


def test_a_docstring_begins_with_one_short_sentence():
    """It ends with a full stop, a colon or a semicolon, after 80 characters at most."""
    long = []
    for path in PRODUCT:
        for node in ast.walk(parse(path)):
            text = ast.get_docstring(node) if isinstance(node, house.DOCUMENTED) else None
            sentence = re.split(r"[.:;](?:\s|$)|\n\n", text or "")[0]
            if len(sentence) > 80:
                long.append(f"{short(path)}:{node.body[0].lineno}")
    assert not long, f"{len(long)} docstrings begin with a long sentence: {long[:10]}"


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [short(path) for path in PRODUCT + TESTS if marks.search(path.read_text("utf-8"))]
    assert not found, found


# --------------------------------------------------------------------------------------------------
# The arrows: imports point downwards

# What the files of a room may import of the project. A room may always import from itself.
ALLOWED = {
    "model": {"nanoloop.attention", "nanoloop.loss"},
    "nanoloop": {"model"},
    "train": {"model", "nanoloop"},
    "sample": {"model", "nanoloop"},
    "corpus": {"nanoloop"},
    "prepare_data": {"corpus", "nanoloop"},
    "bench": {"train", "sample", "prepare_data", "model", "nanoloop"},
    "research": {"train", "sample", "prepare_data", "corpus", "model", "nanoloop"},
    "config": {"nanoloop.dial"},
}


def room_of(path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def module_of(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", PRODUCT, ids=short)
def test_imports_point_downwards(path):
    room = room_of(path)
    for imported in house.imported_files(path):
        allowed = ALLOWED[room] | {room}
        is_allowed = room_of(imported) in allowed or module_of(imported) in allowed
        is_package = imported.name == "__init__.py" and not size_of(imported).tokens
        assert is_allowed or is_package, f"{short(path)} must not import {short(imported)}"


def test_no_file_imports_itself_through_others():
    circles = []
    for path in PRODUCT:
        reached = set().union(*map(house.closure, house.imported_files(path)))
        if path in reached:
            circles.append(short(path))
    assert not circles, f"{circles} import each other: move what they share below them"


def test_model_imports_nothing_but_torch_attention_and_loss():
    names = {name.split(".")[0] for name in house.imported_names(ROOT / "model.py")}
    assert names == {"math", "dataclasses", "typing", "torch", "nanoloop"}
    project = {short(path) for path in house.imported_files(ROOT / "model.py")}
    assert project == {"nanoloop/attention.py", "nanoloop/loss.py"}


def test_requirements_name_every_library_that_is_imported():
    """Python writes _ in a name where pip writes -. A large library stands in a comment."""
    text = (ROOT / "requirements.txt").read_text().replace("-", "_")
    listed = re.findall(r"^(?:# )?(\w+)", text, flags=re.MULTILINE)
    known = {*listed, *sys.stdlib_module_names, *ALLOWED, "tests"}
    for path in PRODUCT + TESTS:
        folder = path.parent
        beside = {folder.name} | {neighbour.stem for neighbour in folder.iterdir()}  # of a script
        unknown = {name.split(".")[0] for name in house.imported_names(path)} - known - beside
        assert not unknown, f"{short(path)} imports {unknown}: add it to requirements.txt"


# What torchrun tells each process, and a secret, which must not be an option.
VARIABLES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "TORCHELASTIC_RESTART_COUNT",
    "ANTHROPIC_API_KEY",
}


def test_no_environment_variable_is_an_option_in_disguise():
    for path in HOUSE:
        lines = path.read_text("utf-8").splitlines()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
                names = set(re.findall(r'"([A-Z_]{2,})"', lines[node.lineno - 1]))
                assert names and names <= VARIABLES, f"{short(path)}:{node.lineno}"


# --------------------------------------------------------------------------------------------------
# What importing and running a command does, in an interpreter of its own

NEW_INTERPRETER = """
import json, os, runpy, signal, sys

# Libraries and folders that neither training nor sampling may need.
ABSENT = set(
    "rbloom rensa jinja2 pyarrow zstandard scipy rustbpe datasets py3langid anthropic optuna ray "
    "lm_eval transformers wandb trackio corpus research bench prepare_data".split()
)


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is absent", name=name)


def state():
    umask = os.umask(0o022)
    os.umask(umask)
    handlers = [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]
    return [dict(os.environ), handlers, umask, sorted(os.listdir())]


def run(name, *options):
    sys.argv = [name, *options]
    try:
        runpy.run_path(f"{root}/{name}", run_name="__main__")
    except SystemExit as exit:
        return exit.code


root, *options = sys.argv[1:]
sys.path.insert(0, root)
sys.meta_path.insert(0, Absent())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # an ignored signal would be inherited
before = state()
import train, sample

report = {"before": before, "after": state(), "modules": sorted(sys.modules)}
print("imported", flush=True)
report["train"] = run("train.py", *options)
report["sample"] = run("sample.py", "run", "--max_new_tokens=3", "--device=cpu", "--prompt=after")
with open("report.json", "w") as file:
    json.dump(report, file)
"""


@pytest.fixture(scope="module")
def interpreter(data_dir, tmp_path_factory):
    """Import train and sample, train and sample; return what was seen and what was printed."""
    folder = tmp_path_factory.mktemp("interpreter")
    options = (
        f"--data={data_dir} --out=run --block_size=16 --n_layer=1 --n_head=1 --n_embd=8 "
        "--value_embeds=0 --batch_tokens=32 --max_steps=2 --device=cpu"
    )
    command = [sys.executable, "-B", "-c", NEW_INTERPRETER, str(ROOT), *options.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    note = "this CPU has no native bfloat16: float32"  # true of some machines
    complaints = [line for line in done.stderr.splitlines() if line != note]
    assert done.returncode == 0 and not complaints, complaints
    report = json.loads((folder / "report.json").read_text())
    return SimpleNamespace(**report, printed=done.stdout)


def test_training_and_sampling_need_no_library_of_preparation_or_research(interpreter):
    """From the import to the summary, and a sample."""
    assert not interpreter.train and not interpreter.sample
    assert "val_loss: " in interpreter.printed and "after" in interpreter.printed


def test_importing_prints_writes_and_changes_nothing(interpreter):
    """Neither environment, signal handlers, umask nor files."""
    assert interpreter.printed.startswith("imported\n")
    assert interpreter.before == interpreter.after


def test_importing_loads_nothing_that_is_used_once(interpreter):
    heavy = {"matplotlib", "tiktoken", "gigatoken", "torch._dynamo"}
    loaded = heavy & set(interpreter.modules)
    assert not loaded, f"import {loaded} where it is used"


def test_importing_the_preparation_is_light(tmp_path):
    """Without torch; --help is for looking, not for waiting."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import prepare_data; "
        "print(*sys.modules, sep='\\n')"
    )
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    heavy = "torch datasets tiktoken gigatoken rustbpe scipy pyarrow tqdm jinja2 anthropic"
    loaded = set(heavy.split()) & set(done.stdout.split())
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not loaded, f"import {loaded} where it is used"
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# Options


def config_classes() -> list[tuple]:
    """Return (path, class definition) of each dataclass of options in the product."""
    return [
        (path, node)
        for path in PRODUCT
        for node in parse(path).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    ]


def test_every_option_explains_itself():
    """A field's comment, behind it or above it, is its text in --help."""
    classes = config_classes()
    assert {"GPTConfig", "TrainConfig", "SampleConfig"} <= {node.name for _, node in classes}
    for path, node in classes:
        lines = path.read_text("utf-8").splitlines()
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                text = lines[field.lineno - 2 : field.end_lineno]
                is_above = text[0].lstrip().startswith("#")
                has_comment = is_above or any("  # " in line for line in text[1:])
                assert has_comment, f"{short(path)}: what is {field.target.id}?"


def test_help_shows_the_comments(capsys):
    with pytest.raises(SystemExit) as done:
        read_options(train.TrainConfig, ["--help"], "train.py")
    out = capsys.readouterr().out
    text = " ".join(out.split())
    assert done.value.code == 0
    assert "--block_size=1024 context length in tokens" in text
    assert "--activation=relu2 of the MLP; gelu is" in text, "its comment stands above it"
    assert "\n\n\n" not in out


def test_every_option_is_read_somewhere():
    """Validation does not count: it names fields in strings."""
    read = {
        node.attr
        for path in [*SPINE, *files("nanoloop/*.py")]
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and ast.unparse(node.value) in ("config", "self", "self.config", "options")
    }
    unread = {field.name for field in fields(train.TrainConfig)} - read
    assert not unread, f"nothing reads {unread}: remove the options"


# --------------------------------------------------------------------------------------------------
# Recipes


def test_the_recipes_exist():
    names = {path.stem for path in RECIPES}
    assert {"quickstart", "shakespeare_char", "gpt2", "gpt2_classic", "finetune", "depth"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_its_command_hardware_time_and_loss(path):
    header = ast.get_docstring(parse(path))
    assert f"python train.py config/{path.name}" in header
    for word in ("Hardware:", "Time:", "Expected:"):
        assert word in header, word


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(path, data_dir, tmp_path):
    """The recipe as it stands, except for its size, its data and its length."""
    small = (
        "--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_tokens=128 --value_embeds=0 "
        "--micro_batch_size=2 --prepare=None --init_from=None --max_tokens=None --max_seconds=None "
        "--max_steps=3 --device=cpu --compile=False --sample_prompt=None --eval_interval=2"
    )
    flags = [*small.split(), f"--data={data_dir}", f"--out={tmp_path / 'run'}"]
    config = read_options(train.TrainConfig, [str(path), *flags], "train.py")
    summary = train.train(config)
    assert summary["steps"] == 3 and summary["val_loss"] < 5.7


def test_gpt2_classic_is_gpt2():
    """That these switches give GPT-2's logits is shown in test_gpt2.py."""
    config = read_options(train.TrainConfig, [str(ROOT / "config/gpt2_classic.py")], "train.py")
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (12, 12, 768, 1024)
    assert {name: getattr(config, name) for name in SWITCHES} == SWITCHES
    assert config.optimizer == "adamw"
    assert config.window_pattern is None and config.n_kv_head is None


# --------------------------------------------------------------------------------------------------
# The dial: one number from which config/depth.py derives the others


def depth(*flags: str) -> train.TrainConfig:
    return read_options(train.TrainConfig, [str(ROOT / "config/depth.py"), *flags], "train.py")


def test_the_dial_moves_everything_that_depends_on_depth():
    small = depth("--depth=4")
    large = depth("--depth=24")
    assert (small.n_embd, small.n_layer, small.n_head) == (256, 4, 2)
    assert (large.n_embd, large.n_layer, large.n_head) == (1536, 24, 12)
    assert large.max_tokens > 100 * small.max_tokens
    assert large.batch_tokens > small.batch_tokens
    assert large.muon_lr == small.muon_lr
    assert large.embed_lr < small.embed_lr
    assert large.head_lr < small.head_lr


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 12, 16, 20, 24])
def test_every_depth_is_a_run_that_can_begin(size):
    config = depth(f"--depth={size}")
    rows, grad_accum = config.split_batch()
    assert rows * grad_accum * config.block_size == config.batch_tokens
    assert 370 * config.batch_tokens < config.max_tokens < 10_000 * config.batch_tokens


def test_the_dials_batch_grows_with_compute_as_published():
    """To within the rounding to a power of two: B ∝ C^0.3271, with 2**18 at depth 12."""
    small = depth("--depth=4")
    large = depth("--depth=24")
    assert depth("--depth=12").batch_tokens == 2**18
    compute = (large.max_tokens / small.max_tokens) ** 2
    growth = large.batch_tokens / small.batch_tokens
    assert 0.7 < growth / compute**0.3271 < 1.42


def test_the_dial_leaves_other_options_free():
    assert depth("--depth=4", "--max_tokens=5000", "--muon_lr=0.5").muon_lr == 0.5
    assert depth() == depth("--depth=12")


@pytest.mark.parametrize(
    "flag", ["--depth=0", "--depth=x", "--depth=-3", "--depth=1.5", "--depth="]
)
def test_a_dial_that_is_no_whole_number_is_refused(flag):
    with pytest.raises(UserError, match="--depth must be a whole number above 0"):
        depth(flag)


def test_only_a_recipe_with_a_dial_has_one():
    recipe = str(ROOT / "config/quickstart.py")
    with pytest.raises(UserError, match="unknown option --depth"):
        read_options(train.TrainConfig, [recipe, "--depth=3"], "train.py")
