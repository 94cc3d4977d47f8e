"""The referee's parts: what may change, what a run can reach, how it is scored and recorded.

What differences mean is in test_verdict.py; trials and cheats are in tests/slow/.
"""

import json
import math
import os
import re
import runpy
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nanoloop.data import Data
from nanoloop.options import UserError
from research import brief, loop
from research.referee import judge, patch, runs, sandbox, score, starter, views
from research.referee.ledger import Ledger
from research.referee.sandbox import Crashed, Disturbed, Ended, Limit, Sandbox, remove_leftovers
from research.referee.tokens import count_tokens
from research.referee.verdict import Noise
from tests.conftest import ROOT
from tests.slow.adversarial.edits import apply_edits
from tests.trials import RECIPE, make_project, prepare_words, record_noise

BASE = patch.read_tree(ROOT)
QUICKSTART = "config/quickstart.py"
CASES = sorted((ROOT / "tests/slow/adversarial").glob("*/*.py"))


# --------------------------------------------------------------------------------------------------
# Lexical tokens


def test_a_token_is_a_name_a_number_a_string_or_an_operator():
    assert count_tokens("x = f(1, 'text')\n") == 8
    assert count_tokens("if x:\n    y += 1\n") == 6
    assert count_tokens("") == 0


def test_comments_docstrings_and_layout_cost_nothing():
    plain = "def f(a, b):\n    return a + b\n"
    laid_out = '''
        """About the module."""

        # a comment


        def f(
            a, b
        ):
            """Add two numbers.

            With a long explanation.
            """
            return a + b  # the sum
    '''
    assert count_tokens(textwrap.dedent(laid_out)) == count_tokens(plain) == 12


def test_code_beside_a_docstring_and_other_strings_count():
    assert count_tokens('"""A docstring."""; x = 1\n') == 4
    assert count_tokens('x = 1\n"no docstring"\n') == 4
    assert count_tokens('class A:\n    "a docstring"\n    x = "text"\n') == 6


# --------------------------------------------------------------------------------------------------
# Changes


def change_of(path: str, text: str) -> patch.Change:
    return patch.make_change(BASE, {path: text.encode()})


def test_a_patch_a_tree_and_an_option_say_the_same(tmp_path):
    new = re.sub(rb"n_layer = \d+", b"n_layer = 3", BASE[QUICKSTART])
    tree = patch.write_tree(BASE | {QUICKSTART: new}, tmp_path / "tree")
    by_tree = patch.from_tree(BASE, tree)
    by_patch = patch.from_patch(BASE, by_tree.diff.encode())
    by_option = patch.from_settings(BASE, QUICKSTART, "n_layer=3")
    assert by_tree == by_patch == by_option
    assert patch.apply(BASE, by_patch)[QUICKSTART] == new


def test_the_tokens_of_all_files_count():
    """Code that moves from model.py to a new file in config/ makes nothing simpler."""
    files = {
        "model.py": BASE["model.py"] + b"# a comment\n\nx = 1\n",
        "nanoloop/loss.py": BASE["nanoloop/loss.py"] + b"y = (2)\n",
        "config/new.py": b"z = -3\n",
    }
    assert patch.make_change(BASE, files).tokens == 3 + 5 + 4


def test_another_layout_removes_no_tokens():
    change = change_of(
        "model.py", "# nothing\n" + BASE["model.py"].decode().replace("\n\n\n", "\n")
    )
    assert change.files and change.tokens == 0


@pytest.mark.parametrize("path", patch.RECIPE)
def test_a_file_of_the_recipe_may_change(path):
    change = change_of(path, BASE[path].decode() + "x = 1\n")
    assert list(change.files) == [path] and change.tokens == 3


@pytest.mark.parametrize(
    "path",
    [
        "sample.py",
        "nanoloop/data.py",
        "nanoloop/generate.py",
        "nanoloop/new.py",
        "nanoloop/checkpoint.py",
        "corpus/synthetic.py",
        "research/referee/score.py",
        "tests/test_model.py",
        "config/data.txt",
        "config/more/x.py",
        "README.md",
    ],
)
def test_no_other_file_may_change(path):
    with pytest.raises(patch.Invalid, match=f"it touches {path}; only model.py, train.py"):
        change_of(path, "x = 1\n")
    diff = f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x = 1\n"
    with pytest.raises(patch.Invalid, match=f"touches {path}|does not apply"):
        patch.from_patch(BASE, diff.encode())


def test_a_tree_is_searched_for_other_files(tmp_path):
    tree = patch.write_tree(BASE, tmp_path / "tree")
    assert not patch.from_tree(BASE, tree).files
    (tree / "corpus" / "deep").mkdir(parents=True)
    (tree / "corpus" / "deep" / "rules.toml").write_text("x = 1\n")
    with pytest.raises(patch.Invalid, match="it touches corpus/deep/rules.toml"):
        patch.from_tree(BASE, tree)


@pytest.mark.parametrize("name", ["model.py", "config", "research/link.py"])
def test_a_link_in_a_tree_is_refused(tmp_path, name):
    tree = patch.write_tree(BASE, tmp_path / "tree")
    (tree / "research").mkdir()
    original = tmp_path / "moved"
    if (tree / name).exists():
        (tree / name).rename(original)
    (tree / name).symlink_to(original)
    with pytest.raises(patch.Invalid, match=f"{name}.* is not a plain file"):
        patch.from_tree(BASE, tree)


def test_a_new_option_is_appended_and_a_string_is_quoted():
    settings = "activation=gelu window_pattern=SL dropout=0.1"
    text = patch.from_settings(BASE, QUICKSTART, settings).files[QUICKSTART]
    assert text.endswith("activation = 'gelu'\nwindow_pattern = 'SL'\ndropout = 0.1\n")


@pytest.mark.parametrize("settings", ["n_layers=3", "n_layer=many", "n_layer", ""])
def test_a_wrong_option_is_a_mistake_of_the_user(settings):
    with pytest.raises((UserError, SystemExit)):
        patch.from_settings(BASE, QUICKSTART, settings)


def test_a_patch_that_does_not_apply_is_refused_with_gits_reason():
    diff = b"--- a/model.py\n+++ b/model.py\n@@ -1 +1 @@\n-not there\n+new\n"
    with pytest.raises(patch.Invalid, match="does not apply .*patch failed: model.py:1"):
        patch.from_patch(BASE, diff)


@pytest.mark.parametrize("encoding", ["unicode_escape", "utf-7", "iso-8859-1"])
def test_source_that_python_reads_in_another_way_is_refused(encoding):
    """There, code could stand in what the judge takes for a comment."""
    with pytest.raises(patch.Invalid, match=f"config/new.py says that it is in {encoding}"):
        change_of("config/new.py", f"# coding: {encoding}\n# \\u000ax = 1\n")
    assert change_of("config/new.py", "# coding: utf-8\n").tokens == 0


def test_every_added_line_counts_whatever_it_begins_with():
    """A line such as `++x` looks like the header of a diff."""
    blob = "".join(f"{byte:02x}" for byte in np.random.default_rng(0).bytes(10_000))
    with pytest.raises(patch.Invalid, match="more than 6,000"):
        change_of("model.py", BASE["model.py"].decode() + f"x = (\n++0x{blob}\n)\n")
    held_out = "the quick brown fox jumps over the lazy dog; " * 4
    change = change_of("model.py", BASE["model.py"].decode() + f"x = (\n++'{held_out}'\n)\n")
    assert patch.copies(change, held_out.encode())


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_adversarial_case_fits_the_recipe(path):
    """Its edits find their functions, and the result compiles. The slow tier judges it."""
    case = runpy.run_path(str(path))
    texts = {name: content.decode() for name, content in BASE.items()}
    texts["config/tiny.py"] = RECIPE
    edited = apply_edits(texts, case.get("EDITS", []))
    for name in edited:
        if edited[name] != texts[name]:
            compile(edited[name].replace("BLOB", "00").replace("HASHES", "00"), name, "exec")
    assert edited != texts or case.keys() & {"FILES", "LINK", "PATCH"}


# --------------------------------------------------------------------------------------------------
# The sandbox

LONG = Limit(600)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """Make a sandbox whose starter imports no library: these runs need none, and torch is slow."""
    source = sandbox.STARTER.read_text()
    quick = tmp_path_factory.mktemp("starter") / "starter.py"
    quick.write_text(re.sub(r"(?ms)^IMPORTED = \(.*?^\)", "IMPORTED = ()", source))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sandbox, "STARTER", quick)
        box = Sandbox(tmp_path_factory.mktemp("judge"), [min(os.sched_getaffinity(0))])
    yield box
    box.close()


def run(box: Sandbox, folder: Path, source: str, limit=LONG, **collect) -> Ended:
    """Run Python source in folder/tree, with OUT for its output folder."""
    script = folder / "tree" / "x.py"
    script.parent.mkdir()
    script.write_text(textwrap.dedent(source).replace("OUT", str(box.folder / "out")))
    files = {name.replace("_", "."): path for name, path in collect.items()}
    return box.run([script], [script.parent], limit, files)


def children(pid: int) -> list[int]:
    """List the processes that `pid` has started and that are running."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(name))
    return found


def wait_until(condition) -> None:
    """Wait up to a minute: a busy machine is slow."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.02)


def test_a_run_prints_writes_and_ends_with_its_status(box, tmp_path):
    source = "import sys\nprint('hello')\nopen('OUT/last.pt', 'w').write('weights')\nsys.exit(7)"
    result = run(box, tmp_path, source, last_pt=tmp_path / "got")
    assert (result.status, result.late, result.text) == (7, False, "hello\n")
    assert (tmp_path / "got").read_text() == "weights"


def test_a_run_that_waits_too_long_is_ended_with_all_its_processes(box, tmp_path):
    source = "import os, time\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(600)"
    result = run(box, tmp_path, source, Limit(0.3))
    assert result.late and result.status
    wait_until(lambda: not children(box.starter.process.pid))


def test_processor_time_is_counted_and_limited(box, tmp_path):
    """Whatever the clock says, and also of a process that ends late, since it has much memory."""
    source = """
    import os, time
    if os.fork() == 0:
        memory = bytearray(200_000_000)
        while time.process_time() < SECONDS:
            pass
        os._exit(0)
    os.wait()
    """
    for name in ("little", "much"):
        (tmp_path / name).mkdir()
    little = run(box, tmp_path / "little", source.replace("SECONDS", "0.3"), Limit(600, 20.0))
    assert not little.late and little.status == 0
    assert 0.2 < little.processor_seconds < 20
    much = run(box, tmp_path / "much", source.replace("SECONDS", "600"), Limit(3000, 0.5))
    assert much.late and much.status
    assert much.processor_seconds >= 0.5


def test_a_run_leaves_no_trace_by_reading(box, tmp_path):
    """The time of the last access to a file could tell a later run one bit."""
    if box.isolation != "namespaces":
        pytest.skip("this system allows no namespaces")
    (tmp_path / "tree").mkdir()
    path = tmp_path / "tree" / "text"
    path.write_text("words")
    script = tmp_path / "tree" / "x.py"
    script.write_text(f"print(open({str(path)!r}).read())")
    os.utime(path, (1, 1))
    assert box.run([script], [script.parent], LONG).text == "words\n"
    assert path.stat().st_atime == 1


def test_the_processor_time_of_a_run_is_known_before_its_end(box, tmp_path):
    source = """
    import os, time
    while time.process_time() < 0.3:
        pass
    os.write(0, b"!")
    os.read(0, 1)
    """
    script = tmp_path / "tree" / "x.py"
    script.parent.mkdir()
    script.write_text(textwrap.dedent(source))
    with box.start([script], [script.parent], LONG) as channel:
        assert channel.recv(1) == b"!"
        wait_until(lambda: box.processor_seconds() >= 0.25)
    assert box.finish().processor_seconds < 20


def test_a_run_sees_nothing_of_the_machine(box, tmp_path):
    if box.isolation != "namespaces":
        pytest.skip("this system allows no namespaces")
    (tmp_path / "beside").write_text("not for a run")
    source = f"""
    import os
    print(os.listdir({str(tmp_path)!r}), os.path.exists({str(ROOT / "README.md")!r}))
    print(sorted(name for name in os.environ if "PYTEST" in name))
    print([name for name in os.listdir("/proc") if name.isdigit()])
    """
    assert "PYTEST_CURRENT_TEST" in os.environ
    assert run(box, tmp_path, source).text == "['tree'] False\n[]\n['1', '2']\n"


def test_the_folders_of_a_killed_judge_are_removed_and_those_of_a_living_one_stay(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    dead = tmp_path / f"slot-here-{child.pid}-x_1"
    living = tmp_path / f"slot-here-{os.getpid()}-x_1"
    elsewhere = tmp_path / f"slot-there-{child.pid}-x_1"
    for folder in (dead, living, elsewhere):
        (folder / "root").mkdir(parents=True)
    remove_leftovers(tmp_path, "slot-here-")
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere])


def test_held_out_files_of_the_library_work_but_show_no_text(tmp_path):
    """The quickstart's text is the interpreter's library, which every run needs."""
    plan = {
        "source": ["python"],
        "include_site_packages": False,
        "val_fraction": 0.02,
        "test_fraction": 0.0,
    }
    data = type("Data", (), {"meta": {"prepared_from": plan}})
    pairs = views.library_covers(data, tmp_path / "covers")
    covers = {path: cover for cover, path in pairs if path.suffix == ".py"}
    assert 5 <= len(covers) <= 40
    path = next(path for path in covers if path.parent.name.startswith("python3"))
    text = covers[path].read_text()
    assert "import marshal" in text
    assert path.read_text()[:200] not in text
    namespace = {"__name__": "covered", "__file__": str(path)}
    exec(text, namespace)
    assert len(namespace) > 3


# --------------------------------------------------------------------------------------------------
# Scores


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("block_size", [32, 200])
def test_each_token_of_the_text_is_a_target_once_whatever_the_block_size(data_dir, block_size):
    text = Data(data_dir).splits["val"].read(0, 2000)
    tokens, targets = score.cut_windows(text, block_size)
    assert targets[targets >= 0].tolist() == text[1:].tolist()
    is_inside = targets[:, :-1] >= 0
    assert (tokens[:, 1:][is_inside] == targets[:, :-1][is_inside])[:-1].all()


def test_each_pair_is_scored_on_stretches_of_its_own_from_all_over_a_long_split(
    data_dir, monkeypatch
):
    """Fixed stretches could be fitted. The first is fixed, to notice a run without its seed."""
    data = Data(data_dir)
    stream = data.splits["val"].read(0, len(data.splits["val"]))
    count = 2
    monkeypatch.setattr(score, "SCORED_TOKENS", count * score.STRETCH)
    step = (len(stream) - score.STRETCH) / count
    assert step > 100
    drawn = []
    for seed in range(20):
        text = score.scored_text(data, "val", seed)
        assert (text == score.scored_text(data, "val", seed)).all()
        parts = text.reshape(count, score.STRETCH + 1)
        assert (parts[:, 0] == data.tokenizer.end_of_text).all()
        windows = np.lib.stride_tricks.sliding_window_view(stream, score.STRETCH)
        starts = [int((windows == part).all(1).argmax()) for part in parts[:, 1:]]
        for start, part in zip(starts, parts[:, 1:]):
            assert (stream[start : start + score.STRETCH] == part).all()
        assert starts[0] == 0
        assert all(int(step * i) <= start <= step * (i + 1) for i, start in enumerate(starts))
        drawn.append(tuple(starts))
    assert len(set(drawn)) > 15


def draw_copies(rng, gains=None) -> tuple:
    """Draw copies of 40 windows of 32 random tokens, the last of them half empty."""
    tokens, targets = score.cut_windows(rng.integers(256, size=39 * 32 + 17), 32)
    gains = np.zeros(tokens.shape) if gains is None else gains
    return tokens, targets, score.draw_copies(tokens, targets, gains, 256, rng)


def test_each_window_has_copies_that_differ_after_the_cut(rng):
    tokens, targets, copies = draw_copies(rng)
    assert len(copies.tokens) >= score.CHANGED_WINDOWS
    assert set(copies.original) == set(range(40))
    assert set(copies.cut) == set(range(32))
    assert (targets[copies.original, copies.cut] >= 0).all()
    for row, original, cut in zip(copies.tokens, copies.original, copies.cut):
        assert (row[: cut + 1] == tokens[original, : cut + 1]).all()
        assert cut > 25 or (row[cut + 1 :] != tokens[original, cut + 1 :]).any()


def test_what_later_tokens_add_is_taken_off_on_average_wherever_it_is(rng):
    """The mean of all that is added to the score is what a model gains that looks ahead."""
    undue = rng.exponential(size=(40, 32)) * (rng.random((40, 32)) < 0.1)
    for gains in (None, undue + rng.normal(size=undue.shape)):
        added = []
        for _ in range(300):
            _, targets, copies = draw_copies(rng, gains)
            added.append((copies.weight * undue[copies.original, copies.cut]).sum())
        error = np.std(added) / len(added) ** 0.5
        assert abs(np.mean(added) - (undue * (targets >= 0)).sum()) < 5 * error
    # Where it is known that the baseline does worse, few copies miss it.
    assert np.std(added) < 0.5 * np.mean(added)


def test_a_gain_at_one_position_is_asked_about(rng):
    gains = rng.normal(0, 0.1, (40, 32))
    gains[7, 30] = 8.0
    _, _, copies = draw_copies(rng, gains)
    assert 30 in copies.cut[copies.original == 7]


@pytest.mark.parametrize("size, is_fine", [(1e-4, True), (4e-3, True), (6e-3, False)])
def test_rounding_has_one_limit_that_no_baseline_widens(rng, size, is_fine):
    """With a limit relative to the baseline's, each kept change could be ten times worse."""
    _, _, copies = draw_copies(rng)
    is_before = np.arange(32) <= copies.cut[:, None]
    sign = rng.choice([-1.0, 1.0], size=is_before.shape)
    problem = score.check(copies, size * sign * is_before, rng.normal(size=len(copies.cut)))
    assert (problem is None) == is_fine, problem


# --------------------------------------------------------------------------------------------------
# The ledger


def test_a_torn_line_costs_itself_alone(tmp_path):
    book = Ledger(tmp_path)
    book.append({"id": "a", "state": "begun"})
    with open(book.path, "a") as file:
        file.write('{"id": "b", "sta')
    book.append({"id": "a", "state": "done"})
    assert book.trials() == [{"id": "a", "state": "done"}]
    assert len(book.path.read_bytes().splitlines()) == 3


# --------------------------------------------------------------------------------------------------
# A trial


class FakeRunner:
    """Answers each pair with the next difference of its split."""

    def __init__(self, **differences: list[float]):
        self.left = {split: list(found) for split, found in differences.items()}

    def run(self, seeds: list[int], split: str):
        for seed in seeds:
            scores = {"baseline": 1.5, "candidate": 1.5 + self.left[split].pop(0)}
            pair = {arm: {"bpb": bpb, "first": bpb + seed} for arm, bpb in scores.items()}
            yield pair | {"seed": seed, "split": split}


def judge_fake(tokens: int, echo, **found: list[float]) -> dict:
    rules = {"noise": Noise(0.004, 8), "minimum_effect": 0.001, "tokens": tokens, "lost": 0.0}
    rounds = [(0.015, 8), (0.015, 8)]
    pairs: list[dict] = []
    seeds = [list(range(8)), list(range(8, 16))]
    row = judge.decide(FakeRunner(**found), pairs, seeds, rounds, rules, echo)
    return row | {"pairs": pairs, "differences": judge.differences(pairs, "val")}


def test_what_an_agent_reads_holds_no_score_on_the_test_split():
    """Who saw it for many changes could choose those that fit the test split by chance."""
    lines = []
    row = judge_fake(0, lines.append, val=[-0.03, -0.034, -0.028, -0.033], test=[-0.0517] * 4)
    assert row["verdict"] == "keep" and row["mean"] == pytest.approx(-0.0517)
    row |= {"id": "t1", "kind": "trial", "state": "done"}
    lesson = brief.lesson(row)
    assert lesson["mean"] == pytest.approx(-0.03125)
    for text in (*lines, row["reason"], json.dumps(lesson)):
        assert "0517" not in text and "1.448" not in text
    assert sum("0.03" in line for line in lines) == 3 and len(lines) == 8


def test_what_is_equal_first_and_better_then_is_simpler():
    row = judge_fake(-5, print, val=[0.0] * 2, test=[-0.03, -0.034, -0.028, -0.033])
    assert row["verdict"] == "keep (simpler)"
    assert row["reason"].endswith("then, on fresh seeds and the test split: keep")


def test_a_candidate_that_ignores_its_seed_is_noticed_on_other_stretches_too():
    """The scores of its pairs differ with the text; those of the first window do not."""
    arms = {"baseline": [1.5, 1.6], "candidate": [1.4, 1.3]}
    pairs = []
    for number in range(2):
        pair = {arm: {"bpb": bpb[number], "first": bpb[number]} for arm, bpb in arms.items()}
        pairs.append(pair | {"split": "val"})
    assert judge.same_for_every_seed(pairs) is None
    for pair in pairs:
        pair["candidate"]["first"] = 9.0
    assert judge.same_for_every_seed(pairs)["verdict"] == "invalid"


def test_a_kept_change_does_not_choose_data_and_budget(data_dir, tmp_path, monkeypatch):
    """Its config would run in the judge, and is the baseline of later trials."""
    user = make_project(tmp_path / "user", data_dir)
    kept = make_project(tmp_path / "kept", data_dir)
    with open(kept / "config/tiny.py", "a") as config:
        config.write("globals().update({'max_' + 'steps': 7})\nraise SystemExit('run')\n")
    monkeypatch.setattr(patch, "ROOT", user)
    setup = runs.Setup(runs.Options(config="config/tiny.py", folder=str(tmp_path / "x")), kept)
    assert setup.amount == 20 * 512
    assert setup.base["config/tiny.py"].endswith(b"('run')\n")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_pairs": 2}, "max_pairs must be at least 3 .*, got 2"),
        ({"minimum_effect": -1.0}, "minimum_effect must be at least 0, got -1.0"),
        ({"slowdown": 0.5}, "slowdown must be at least 1, .*, got 0.5"),
        ({"workers": 0}, "--workers=0"),
    ],
)
def test_rules_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        runs.Options(**options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"patch_file": "nope.patch"}, "nope.patch"),
        ({"settings": "n_layers=3"}, "n_layers"),
        ({"tree": "nowhere"}, "nowhere.* holds no train.py"),
        ({"settings": "n_layer=2"}, "holds no noise floor"),
    ],
)
def test_no_data_is_prepared_before_what_is_cheap_to_check(
    change, message, data_dir, tmp_path, monkeypatch
):
    root = make_project(tmp_path / "root", data_dir)
    monkeypatch.setattr(runs, "prepare_missing", lambda *_: pytest.fail("it prepared data"))
    options = runs.Options(config="config/tiny.py", folder=str(tmp_path / "book"))
    with pytest.raises(UserError, match=message):
        judge.try_change(options, root, **change)


def test_a_floor_of_other_data_or_of_another_budget_does_not_count(data_dir, tmp_path):
    root = make_project(tmp_path / "root", data_dir)
    book = Ledger(tmp_path / "book")
    options = runs.Options(config="config/tiny.py", folder=str(book.folder))
    other = prepare_words(tmp_path / "other")
    record_noise(book, 0.001, other)
    record_noise(book, 0.001, data_dir, budget="30steps")
    with pytest.raises(UserError, match="no noise floor"):
        judge.noise_row(runs.Setup(options, root))
    record_noise(book, 0.002, data_dir)
    for budget in (None, "20steps", "20 steps"):
        options = runs.Options(config="config/tiny.py", folder=str(book.folder), budget=budget)
        assert judge.noise_row(runs.Setup(options, root))["differences"][0] == 0.002


def test_without_a_noise_floor_nothing_is_tried_and_the_way_to_one_is_named(data_dir, tmp_path):
    root = make_project(tmp_path / "root", data_dir)
    book = Ledger(tmp_path / "book")
    options = runs.Options(config="config/tiny.py", budget="30steps", folder=str(book.folder))
    record_noise(book, 0.001, data_dir)  # of another budget
    with pytest.raises(UserError) as caught:
        judge.try_change(options, root, settings="muon_lr=0.01")
    for part in (
        book.path,
        "24 runs",
        "research noise --config=config/tiny.py",
        "--budget=30steps",
    ):
        assert str(part) in str(caught.value)
    assert len(book.trials()) == 1


# --------------------------------------------------------------------------------------------------
# A machine that is busy with other work


class FakeSlot(runs.Slot):
    """Trains in no time: each run takes the next (seconds, processor seconds, seconds of waiting).

    Its budget is 10 seconds. A score is the number of runs before.
    """

    def __init__(self, monkeypatch, figures: list[tuple[float, float, float]]):
        self.setup = SimpleNamespace(kind="seconds", amount=10.0, options=runs.Options())
        self.box = None
        self.data = None
        self.folder = Path("nowhere")
        self.n_cores = 1
        self.charge = 0.0
        self.trained = []
        self.scored = []
        self.left = list(figures)
        self.arms = []  # that ran, in order
        monkeypatch.setattr(runs, "read_curve", lambda path: [[512, 2.0]])
        monkeypatch.setattr(runs, "score", self.score)

    def train_once(self, arm, seed, amount, limit) -> Ended:
        self.arms.append(arm)
        seconds, processor_seconds, waited_seconds, *stalled = self.left.pop(0)
        stalled_seconds = stalled[0] if stalled else 0.0
        return Ended(
            0, seconds, processor_seconds, waited_seconds, stalled_seconds, late=False, text=""
        )

    def score(self, *arguments) -> SimpleNamespace:
        bpb = float(len(self.scored))
        return SimpleNamespace(bpb=bpb, first=bpb, seconds=1.0, processor_seconds=1.0)


QUIET = (10.5, 10.0, 0.2)
SHARED = (10.5, 6.0, 4.2)  # a neighbour had the core for a while
MUCH_SHARED = (10.5, 4.0, 6.2)


def test_which_arm_runs_first_is_drawn_with_the_seed_not_in_turn(monkeypatch):
    """So a replay has the same order, and no regular neighbour always meets one arm."""
    seeds = [1, *judge.new_seeds(200)]
    orders = []
    for _ in range(2):
        slot = FakeSlot(monkeypatch, [QUIET] * 2 * len(seeds))
        for seed in seeds:
            slot.pair(seed, "val")
        orders.append([arm == "candidate" for arm in slot.arms[::2]])
    order = orders[0]
    assert order == orders[1]
    assert not order.pop(0)  # the baseline sets the candidate's limits
    assert 60 < sum(order) < 140
    assert 60 < sum(one == other for one, other in zip(order, order[1:])) < 140


def test_a_pair_whose_runs_had_other_shares_of_the_processor_is_repeated(monkeypatch):
    slot = FakeSlot(monkeypatch, [QUIET, SHARED, SHARED, SHARED])
    row = slot.pair(7, "val")
    assert "failed" not in row and row["repeats"] == 1 and not slot.left
    assert row["baseline"]["share"] == row["candidate"]["share"] == pytest.approx(0.588)
    assert len(judge.differences([row], "val")) == 1


def test_a_budget_of_steps_is_worth_the_same_whatever_share_a_run_gets(monkeypatch):
    slot = FakeSlot(monkeypatch, [QUIET, MUCH_SHARED])
    slot.setup.kind = "tokens"
    row = slot.pair(7, "val")
    assert "failed" not in row and row["repeats"] == 0


def test_a_trial_that_is_disturbed_thrice_has_no_verdict_and_can_be_tried_again(monkeypatch):
    slot = FakeSlot(monkeypatch, [QUIET, SHARED] * 3)
    pairs = []
    runner = SimpleNamespace(run=lambda seeds, split: [slot.pair(7, split)])
    row = judge.decide(runner, pairs, [[7], [8]], [(0.05, 8)] * 2, {}, print)
    assert row["verdict"] == "disturbed" and judge.exit_code(row) == 4
    assert "98% and 59% of the processor" in row["reason"] and "try it again" in row["reason"]
    assert pairs[0]["repeats"] == 2 and judge.differences(pairs, "val") == []
    row |= {"id": "t1", "state": "done", "shape": "x"}
    assert loop.judged([row], "x") == []
    assert loop.judged([row | {"verdict": "reject"}], "x") == ["t1"]


def test_who_waits_for_a_core_is_not_refused_for_the_time(monkeypatch):
    """Nor does it get less time in the next attempt."""
    slow = (14.0, 10.0, 4.0)
    slot = FakeSlot(monkeypatch, [QUIET, slow, QUIET, QUIET])
    row = slot.pair(7, "val")
    assert "failed" not in row and row["repeats"] == 1 and slot.charge == 0
    idle = (14.0, 13.8, 0.2)
    slot = FakeSlot(monkeypatch, [QUIET, idle, idle, idle, idle])
    row = slot.pair(7, "val")
    assert row["failed"]["verdict"] == "invalid" and "14.0 seconds" in row["failed"]["reason"]


def ended(seconds: float, stalled_seconds: float) -> Ended:
    return Ended(9, seconds, 12.0, 0.1, stalled_seconds, late=True, text="printed")


@pytest.mark.parametrize("waited, name", [(0.0, "60.0 seconds"), (80.0, "12.0 seconds of proc")])
def test_the_limit_that_a_late_run_exceeded_is_named_on_a_busy_machine_too(waited, name):
    late = Ended(9, 100.0, 12.1, waited, 0.0, late=True, text="")
    assert Limit(60.0, 12.0).exceeded(late).startswith(name)


@pytest.mark.parametrize("kind", [patch.Invalid, Crashed])
def test_a_run_that_failed_while_memory_was_short_is_disturbed_and_never_refused(kind):
    """The kernel charges its search for memory to the run, and may end the run for it."""
    quiet = ended(10.0, 0.2).problem(kind, "training took too much")
    assert type(quiet) is kind and str(quiet) == "training took too much"
    short = ended(10.0, 4.0).problem(kind, "training took too much")
    assert type(short) is Disturbed and short.text == "printed"
    assert "memory was short for 4.0 of 10.0 seconds: try it again" in str(short)


def test_a_pair_is_repeated_where_memory_was_short_for_one_of_its_runs(monkeypatch):
    thrashing = (14.0, 13.8, 0.1, 5.0)
    slot = FakeSlot(monkeypatch, [QUIET, thrashing, QUIET, QUIET])
    row = slot.pair(7, "val")
    assert "failed" not in row and row["repeats"] == 1 and slot.charge == 0
    slot = FakeSlot(monkeypatch, [QUIET, thrashing] * 3)
    row = slot.pair(7, "val")
    assert row["failed"]["verdict"] == "disturbed" and "memory was short" in row["failed"]["reason"]


def test_the_kernel_says_how_long_memory_was_short_and_else_its_own_work_does(
    monkeypatch, tmp_path
):
    pressure = tmp_path / "memory"
    pressure.write_text("some avg10=0.00 avg60=1.50 avg300=3.20 total=14127736\nfull total=1\n")
    assert starter.stalled(str(pressure)) == pytest.approx(14.127736)
    usage = SimpleNamespace(ru_utime=3.0, ru_stime=10.0)
    monkeypatch.setattr(starter.resource, "getrusage", lambda who: usage)
    assert starter.stalled(str(tmp_path / "absent")) == 7.0
    pressure.write_text("")
    assert starter.stalled(str(pressure)) == 7.0


def test_a_setting_counts_when_two_runs_in_a_row_got_the_same_share(monkeypatch):
    slot = FakeSlot(monkeypatch, [QUIET, SHARED, SHARED])
    assert slot.run_alone(0) == 0
    assert runs.undisturbed(lambda: slot.run_alone(1)) == 2
    slot = FakeSlot(monkeypatch, [QUIET, SHARED, QUIET, SHARED])
    slot.run_alone(0)
    with pytest.raises(runs.Disturbed):
        runs.undisturbed(lambda: slot.run_alone(1))


@pytest.mark.parametrize("waits", [True, False])
def test_the_clock_of_a_run_stands_still_while_others_have_its_core(monkeypatch, waits, tmp_path):
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    fake_time = SimpleNamespace(sleep=sleep, perf_counter=lambda: clock.now)
    monkeypatch.setattr(starter, "time", fake_time)
    monkeypatch.setattr(starter, "times", lambda *_: (0.1, 0.9 * clock.now if waits else 0.0))
    candidate = SimpleNamespace(pid=1, is_alive=lambda: clock.now < 5)
    run = {"processor_seconds": math.inf, "isolated": True, "seconds": 1.0}
    with open(tmp_path / "meter", "wb") as meter:
        assert starter.ends_within(candidate, run, meter.fileno()) == waits
    used, waited = (tmp_path / "meter").read_text().split()
    assert used == "0.10" and float(waited) == pytest.approx(4.5 if waits else 0, abs=0.1)


def test_a_plan_names_runs_and_time():
    options = runs.Options(workers=2)
    assert judge.plan(options, 16, 70.2) == "16 runs of about 70 s, 10 minutes"
    assert judge.plan(options, 16, None) == "16 runs"


@pytest.mark.parametrize("budget", ["60", "steps", "0s", "-5s", "1e3", "1.2.3s", ".s"])
def test_a_wrong_budget_is_a_mistake_of_the_user(budget):
    with pytest.raises(UserError, match="--budget"):
        runs.read_budget(budget, recipe=None)
