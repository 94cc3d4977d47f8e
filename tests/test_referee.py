"""The referee's core: what may change, what a run can reach, what is recorded, and trials from the command line.

What a candidate may not do is in test_adversarial.py, what differences mean in test_verdict.py.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from nanoloop.options import UserError
from research import __main__ as program
from research import judge, ledger, patch, runs, sandbox, score
from tests.conftest import ROOT

BASE = patch.read_tree(ROOT)
TINY = """
data = "{data}"
n_layer = 1
n_head = 2
n_embd = 32
block_size = 32
value_embeds = 1
batch_tokens = 512
max_steps = 20
dtype = "float32"
"""


# ---------------------------------------------------------------------------------------------------------------------
# Changes


def test_a_patch_a_tree_and_an_option_say_the_same(tmp_path):
    new = BASE["config/quickstart.py"].replace(b"n_layer = 2\n", b"n_layer = 3\n")
    tree = patch.write_tree(BASE | {"config/quickstart.py": new}, tmp_path / "tree")
    by_tree = patch.from_tree(BASE, tree)
    by_patch = patch.from_patch(BASE, by_tree.diff.encode())
    by_option = patch.from_settings(BASE, "config/quickstart.py", "n_layer=3")
    assert by_tree == by_patch == by_option
    assert patch.apply(BASE, by_patch)["config/quickstart.py"] == new


def test_lines_of_code_are_counted_in_the_spine_alone():
    files = {
        "model.py": BASE["model.py"] + b"# a comment\n\nx = 1\n",
        "config/new.py": b"n_layer = 1\n",
    }
    change = patch.make_change(BASE, files)
    assert (change.added, change.removed) == (1, 0)


def test_a_new_option_is_appended_and_a_string_is_quoted():
    change = patch.from_settings(
        BASE, "config/quickstart.py", "activation=gelu window_pattern=SL dropout=0.1"
    )
    text = change.files["config/quickstart.py"]
    assert text.endswith("activation = 'gelu'\nwindow_pattern = 'SL'\ndropout = 0.1\n")


@pytest.mark.parametrize("settings", ["n_layers=3", "n_layer=many", "n_layer", ""])
def test_a_mistaken_option_is_the_users_mistake(settings):
    with pytest.raises((UserError, SystemExit)):
        patch.from_settings(BASE, "config/quickstart.py", settings)


def test_what_does_not_apply_is_told():
    with pytest.raises(patch.Invalid, match="does not apply"):
        patch.from_patch(BASE, b"--- a/model.py\n+++ b/model.py\n@@ -1 +1 @@\n-not there\n+new\n")


# ---------------------------------------------------------------------------------------------------------------------
# The sandbox


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    box = sandbox.Sandbox(tmp_path_factory.mktemp("judge"), [min(os.sched_getaffinity(0))])
    yield box
    box.close()


def test_what_a_killed_judge_left_is_removed_and_a_living_ones_stays(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    dead, alive, elsewhere = (
        tmp_path / f"slot-{name}-x_1"
        for name in (
            f"{platform.node()}-{child.pid}",
            f"{platform.node()}-{os.getpid()}",
            f"another.machine-{child.pid}",
        )
    )
    for folder in (dead, alive, elsewhere):
        (folder / "root").mkdir(parents=True)
    sandbox.Sandbox(tmp_path, [min(os.sched_getaffinity(0))]).close()
    assert not dead.exists() and sorted(tmp_path.glob("slot-*")) == sorted([alive, elsewhere])


def run(box, folder: Path, source: str, seconds: float = 20, **collect) -> sandbox.Ended:
    (folder / "tree").mkdir()
    (folder / "tree" / "x.py").write_text(source.replace("OUT", str(box.folder / "out")))
    collect = {name.replace("_", "."): path for name, path in collect.items()}
    return box.run([folder / "tree" / "x.py"], [folder / "tree"], seconds, collect)


def test_a_run_prints_writes_and_ends_as_it_likes(box, tmp_path):
    source = "import sys\nprint('hello')\nopen('OUT/last.pt', 'w').write('weights')\nsys.exit(7)"
    result = run(box, tmp_path, source, last_pt=tmp_path / "got")
    assert (result.status, result.text, (tmp_path / "got").read_text()) == (7, "hello\n", "weights")


def test_a_run_that_lasts_too_long_is_ended_with_all_its_processes(box, tmp_path):
    source = (
        "import os, sys, time\nos.fork()\nos.setsid() if os.getpid() != 2 else 0\ntime.sleep(60)"
    )
    before = set(os.listdir("/proc"))
    result = run(box, tmp_path, source, seconds=1.0)
    time.sleep(0.3)
    left = [
        pid
        for pid in set(os.listdir("/proc")) - before
        if pid.isdigit() and parent(pid) == box.starter.pid
    ]
    assert result.late and result.status and result.seconds < 5 and not left


def parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def test_nothing_of_the_machine_is_in_reach(box, tmp_path, monkeypatch):
    if box.isolation != "namespaces":
        pytest.skip("this system allows no namespaces")
    (tmp_path / "beside").write_text("not for a run")
    looks = f"os.listdir({str(tmp_path)!r}), os.path.exists({str(ROOT / 'README.md')!r}), os.environ.get('SECRET')"
    monkeypatch.setenv("SECRET", "x")
    assert run(box, tmp_path, f"import os\nprint({looks})").text == "['tree'] False None\n"


def test_the_end_of_the_judge_is_the_end_of_its_runs(tmp_path):
    """Killed outright, it leaves no process behind."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from research.sandbox import Sandbox
box = Sandbox(Path({str(tmp_path)!r}), [0])
tree = Path({str(tmp_path / "tree")!r})
box.start([tree / "x.py"], [tree], 60)
print(box.starter.pid, flush=True)
box.finish()
"""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x.py").write_text("import time\ntime.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    starter = process.stdout.readline().strip()
    deadline, run = time.monotonic() + 10, []
    while time.monotonic() < deadline and not run:
        run = [pid for pid in os.listdir("/proc") if pid.isdigit() and parent(pid) == int(starter)]
    pids = [
        starter,
        *run,
        *(pid for pid in os.listdir("/proc") if pid.isdigit() and str(parent(pid)) in run),
    ]
    assert len(pids) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_without_namespaces_a_run_goes_on_without(box, tmp_path, monkeypatch):
    monkeypatch.setattr(box, "isolation", "none (for this test)")
    source = "import os\nprint(os.getuid())\nopen('OUT/last.pt', 'w').write('weights')"
    result = run(box, tmp_path, source, last_pt=tmp_path / "got")
    assert (result.status, result.text, (tmp_path / "got").read_text()) == (
        0,
        f"{os.getuid()}\n",
        "weights",
    )


def test_held_out_files_of_the_library_are_not_readable_but_work(tmp_path):
    """The quickstart's text is the interpreter's own library, which every run needs: its held-out files are covered."""
    plan = {
        "source": ["python"],
        "include_site_packages": False,
        "val_fraction": 0.02,
        "test_fraction": 0.0,
    }
    data = type("Data", (), {"meta": {"prepared_from": plan}})
    covers = {path: cover for cover, path in runs.library_covers(data, tmp_path / "covers")}
    held_out = [path for path in covers if path.endswith(".py")]
    assert 5 <= len(held_out) <= 40
    file = next(path for path in held_out if "/python3" in str(Path(path).parent)[-11:])
    cover, text = Path(covers[file]).read_text(), Path(file).read_text()
    assert "import marshal" in cover and len(cover) and text[:200] not in cover
    namespace = {"__name__": "covered", "__file__": file}
    exec(cover, namespace)
    assert len(namespace) > 3


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def test_the_judges_score_is_the_trainers_own(data_dir, tmp_path, box):
    """Bits per byte from raw logits over a pipe are what `evaluate` says in the training process."""
    import train

    options = dict(n_layer=1, n_head=2, n_embd=32, block_size=32, value_embeds=1, batch_tokens=512)
    flags = [f"--{key}={value}" for key, value in options.items()]
    config = train.read_options(
        train.TrainConfig,
        [*flags, f"--data={data_dir}", "--max_steps=20", "--device=cpu", "--dtype=float32"],
        "x",
    )
    summary = train.train(train.replace(config, out=str(tmp_path / "run")))
    tree = patch.write_tree(BASE, tmp_path / "tree")
    data = prepare_data.Data(data_dir)
    for max_tokens in (2**16, 2 * score.STRETCH):
        bpb, _, rounding = score.score(
            box, tree, tmp_path / "run" / "last.pt", data, "val", 60, max_tokens
        )
        assert rounding < 1e-5
        assert bpb == pytest.approx(summary["val_bpb"], rel=1e-5 if max_tokens == 2**16 else 0.1)


@pytest.mark.parametrize("block_size", [32, 200])
def test_a_long_split_is_scored_in_stretches_from_all_over_it(data_dir, block_size):
    """Not by its beginning, which may be one large file; and the same tokens whatever the block_size."""
    data = prepare_data.Data(data_dir)
    stream, end = data.splits["val"], data.tokenizer.end_of_text
    count = 2
    assert len(stream) > count * score.STRETCH
    plan = score.make_plan(data, "val", block_size, count * score.STRETCH, np.random.default_rng(0))
    targets = plan.targets[plan.counted]
    starts = np.linspace(0, len(stream) - score.STRETCH, count, dtype=int)
    scored = np.concatenate(
        [np.append(end, stream.read(start, score.STRETCH)) for start in starts.tolist()]
    )
    assert targets[targets >= 0].tolist() == scored[1:].tolist()
    assert starts[0] == 0 and starts[-1] + score.STRETCH == len(stream)


def test_every_counted_window_has_changed_copies_and_a_target_that_was_changed(data_dir):
    data, rng = prepare_data.Data(data_dir), np.random.default_rng(0)
    plan = score.make_plan(data, "val", 32, 2**16, rng)
    count = plan.counted.sum()
    assert (plan.targets[plan.counted] >= 0).sum() == len(data.splits["val"]) - 1
    assert set(plan.original[count:]) == set(range(count))
    for row in range(count, len(plan.tokens)):
        before, cut = plan.tokens[plan.original[row]], plan.cut[row]
        assert (plan.tokens[row, : cut + 1] == before[: cut + 1]).all()
        assert cut == 31 or plan.tokens[row, cut + 1] != before[cut + 1]


# ---------------------------------------------------------------------------------------------------------------------
# The ledger


def test_a_torn_line_costs_itself_alone(tmp_path):
    book = ledger.Ledger(tmp_path)
    book.append({"id": "a", "state": "begun"})
    with open(book.path, "a") as file:
        file.write('{"id": "b", "sta')
    book.append({"id": "a", "state": "done"})
    assert (
        book.trials() == [{"id": "a", "state": "done"}]
        and len(book.path.read_bytes().splitlines()) == 3
    )


# ---------------------------------------------------------------------------------------------------------------------
# Trials, as a user starts them


@pytest.fixture
def project(data_dir, tmp_path, monkeypatch):
    """A copy of the recipe with a tiny config; research(command, …) runs the program on it: its exit code."""
    root = patch.write_tree(
        BASE | {"config/tiny.py": TINY.format(data=data_dir).encode()}, tmp_path / "root"
    )
    monkeypatch.setattr(patch, "ROOT", root)
    folder = str(tmp_path / "book")
    shared = ["--config=config/tiny.py", f"--folder={folder}"]

    def research(command: str, *argv: str):
        code = program.main(
            [command, *argv, *(shared if command in ("try", "noise") else shared[1:])]
        )
        return code

    research.root, research.book = root, ledger.Ledger(Path(folder))
    return research


def test_a_better_recipe_is_kept_and_the_trial_can_be_done_again(project, capsys):
    bad = project.root / "config" / "tiny.py"
    bad.write_text(bad.read_text() + "muon_lr = 0.0001\nembed_lr = 0.0001\nhead_lr = 0.00001\n")
    settings = "muon_lr=0.02 embed_lr=0.3 head_lr=0.006"
    assert (
        project(
            "try", f"--set={settings}", "--max_pairs=5", "--workers=2", "--hypothesis=Far too low"
        )
        == 0
    )
    row = project.book.trials()[-1]
    assert row["verdict"] == "keep" and row["mean"] < -0.5 and row["state"] == "done"
    assert {pair["split"] for pair in row["pairs"]} == {"val", "test"}
    assert len({pair["seed"] for pair in row["pairs"]}) == len(row["pairs"])
    capsys.readouterr()
    assert project("replay", row["id"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("holds")
    again = project.book.trials()[-1]
    assert again["differences"] == row["differences"] and again["kind"] == "replay"


def test_what_breaks_a_rule_costs_no_training_and_has_its_row(project, capsys):
    assert project("try", "--set=seed=7", "--json=True") == 3
    row = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "invalid" and "seed" in row["reason"] and "pairs" not in row
    states = [json.loads(line)["state"] for line in project.book.path.read_text().splitlines()]
    assert states == ["begun", "done"]


def test_a_crash_is_recorded_and_its_words_are_marked(project, capsys):
    tree = patch.write_tree(patch.read_tree(project.root), project.root / "tree")
    text = (tree / "model.py").read_text()
    (tree / "model.py").write_text(text + "\nprint('keep \\x1b[2J me')\nraise SystemExit(5)\n")
    assert project("try", f"--tree={tree}") == 3
    row = project.book.trials()[-1]
    assert (
        row["verdict"] == "crash"
        and row["reason"] == "training ended with exit status 5"
        and "keep" in row["stderr"]
    )
    project("show", row["id"])
    shown = capsys.readouterr().out
    assert "untrusted" in shown and "| keep \ufffd[2J me" in shown and "\x1b" not in shown
    project("log")
    assert row["id"] in capsys.readouterr().out


def test_the_noise_floor_is_stored_and_used(project, capsys):
    project("noise", "--pairs=3")
    row = project.book.trials()[-1]
    assert (
        row["kind"] == "noise"
        and len(row["differences"]) == 3
        and row["noise"] > 0
        and row["seed_spread"] > 0
    )
    assert "noise floor" in capsys.readouterr().out
    options = runs.Options(config="config/tiny.py", folder=str(project.book.path.parent))
    assert judge.known_noise(project.book, options).sd == pytest.approx(row["noise"])


@pytest.mark.parametrize("argv", [("nonsense",), ("show", "nothing"), ("replay", "nothing")])
def test_a_mistaken_command_is_told(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        program.main(list(argv))


@pytest.mark.parametrize("budget", ["60", "steps", "0s", "-5s", "1e3"])
def test_a_mistaken_budget_is_told(budget, project):
    with pytest.raises(UserError, match="--budget"):
        project("try", "--set=n_layer=2", f"--budget={budget}")


def test_a_ray_cluster_of_two_workers_keeps_the_same_ledger(project):
    """Pairs on other machines: the same trial, one pair after the other in each of two actors."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        assert project("try", "--set=n_embd=16", "--max_pairs=3", "--ray=True", "--workers=2") == 1
    finally:
        ray.shutdown()
    row = project.book.trials()[-1]
    assert (
        row["verdict"] in ("reject", "undecided") and row["pairs"][0]["isolation"] == "namespaces"
    )
