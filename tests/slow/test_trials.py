"""Trials from the command line, in a copy of the project; and what a judge leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from nanoloop.data import Data
from nanoloop.options import read_options
from research.referee import judge, patch, runs, score
from research.referee.ledger import Ledger
from research.referee.sandbox import Limit, Sandbox
from tests.conftest import ROOT, SMALL
from tests.test_referee import children, run, wait_until
from tests.trials import make_project, record_noise

FIRST_CORE = min(os.sched_getaffinity(0))
NO_LIMIT = Limit(3600)


class Project(SimpleNamespace):
    """A copy of the project: root, its folder; book, the ledger of its trials."""

    def research(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run python -m research COMMAND … on the recipe config/tiny.py."""
        command = [sys.executable, "-m", "research", *arguments, f"--folder={self.book.folder}"]
        if arguments[0] in ("try", "noise", "tune"):
            command.append("--config=config/tiny.py")
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True)


@pytest.fixture
def project(data_dir, tmp_path) -> Project:
    root = make_project(tmp_path / "root", data_dir)
    for name in ("corpus", "research", "CLAUDE.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    book = Ledger(tmp_path / "book")
    record_noise(book, 0.01, data_dir)
    return Project(root=root, book=book)


# --------------------------------------------------------------------------------------------------
# Trials


def test_a_clear_loser_is_rejected_after_one_pair_and_recorded(data_dir, tmp_path):
    root = make_project(tmp_path / "root", data_dir)
    options = runs.Options(config="config/tiny.py", folder=str(tmp_path / "book"))
    book = Ledger(tmp_path / "book")
    record_noise(book, 0.001, data_dir)
    lines = []
    settings = "muon_lr=0.00001 embed_lr=0.00001 head_lr=0.00001"
    row = judge.try_change(options, root, settings=settings, echo=lines.append)
    assert judge.exit_code(row) == 1
    assert row["verdict"] == "reject" and row["reason"].startswith("worse: +")
    assert row["tokens"] == 9  # three options were appended
    assert len(row["pairs"]) == len(row["differences"]) == 1
    assert lines[0].startswith("at most 64 runs") and len(lines) == 2
    assert row["pairs"][0]["candidate"]["curve"][-1][0] == 20 * 512
    assert book.trials()[-1].items() >= row.items()
    assert not list(book.folder.glob("slot-*"))


def test_a_better_recipe_is_kept_and_a_replay_agrees_to_the_last_bit(project):
    recipe = project.root / "config" / "tiny.py"
    bad = "muon_lr = 0.0001\nembed_lr = 0.0001\nhead_lr = 0.00001\n"
    recipe.write_text(recipe.read_text() + bad)
    settings = "--set=muon_lr=0.02 embed_lr=0.3 head_lr=0.006"
    flags = ["--max_pairs=5", "--workers=2", "--hypothesis=Far too low"]
    result = project.research("try", settings, *flags)
    assert result.returncode == 0, result.stdout + result.stderr
    row = project.book.trials()[-1]
    assert row["verdict"] == "keep" and row["mean"] < -0.5 and row["state"] == "done"
    assert {pair["split"] for pair in row["pairs"]} == {"val", "test"}
    assert len({pair["seed"] for pair in row["pairs"]}) == len(row["pairs"])
    result = project.research("replay", row["id"])
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "the verdict holds"
    again = project.book.trials()[-1]
    assert again["kind"] == "replay" and again["differences"] == row["differences"]


def test_a_change_that_breaks_a_rule_is_not_trained_and_has_its_row(project):
    result = project.research("try", "--set=seed=7", "--json=True")
    assert result.returncode == 3
    row = json.loads(result.stdout)
    assert row["verdict"] == "invalid" and "seed" in row["reason"] and "pairs" not in row
    states = [json.loads(line)["state"] for line in project.book.path.read_text().splitlines()]
    assert states[1:] == ["begun", "done"]  # after the noise floor


def test_a_crash_is_recorded_and_its_output_is_marked(project):
    tree = patch.write_tree(patch.read_tree(project.root), project.root / "tree")
    text = (tree / "model.py").read_text()
    (tree / "model.py").write_text(text + "\nprint('keep \\x1b[2J me')\nraise SystemExit(5)\n")
    assert project.research("try", f"--tree={tree}").returncode == 3
    row = project.book.trials()[-1]
    assert row["verdict"] == "crash"
    assert row["reason"] == "training ended with exit status 5"
    shown = project.research("show", row["id"]).stdout
    assert "untrusted" in shown and "| keep \ufffd[2J me" in shown and "\x1b" not in shown
    assert row["id"] in project.research("log").stdout


def test_the_noise_floor_is_stored_and_used(project):
    result = project.research("noise", "--pairs=3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "noise floor of a pair" in result.stdout
    row = project.book.trials()[-1]
    assert row["kind"] == "noise" and len(row["differences"]) == 3
    assert row["noise"] > 0
    assert re.search(
        r"true difference is -0\.\d+ with --max_pairs=8, -0\.\d+ with .*=16", result.stdout
    )
    result = project.research("try", "--set=muon_lr=0.00001 embed_lr=0.00001 head_lr=0.00001")
    assert result.returncode == 1
    assert len(project.book.trials()[-1]["pairs"]) == 1


def test_a_search_is_judged_like_any_change(project):
    pytest.importorskip("optuna")
    recipe = project.root / "config" / "tiny.py"
    recipe.write_text(recipe.read_text() + "muon_lr = 0.0001\nembed_lr = 0.0001\n")
    space = "muon_lr=float(0.02,0.03) embed_lr=float(0.2,0.4)"
    flags = ["--tries=3", "--seeds=1", "--max_pairs=5"]
    result = project.research("tune", space, *flags)
    assert result.returncode == 0, result.stdout + result.stderr
    row = project.book.trials()[-1]
    assert row["verdict"] == "keep"
    assert row["hypothesis"].startswith("The best of 3 settings")


# --------------------------------------------------------------------------------------------------
# Sandbox and score


def test_the_end_of_the_judge_is_the_end_of_its_runs(tmp_path):
    """Killed outright, it leaves no process behind."""
    script = tmp_path / "tree" / "x.py"
    script.parent.mkdir()
    script.write_text("import time\ntime.sleep(3600)")
    code = f"""
    from pathlib import Path
    from research.referee.sandbox import Limit, Sandbox
    box = Sandbox(Path({str(tmp_path)!r}), [{FIRST_CORE}])
    box.start([{str(script)!r}], [Path({str(script.parent)!r})], Limit(3600))
    print(box.starter.process.pid, flush=True)
    box.finish()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    starter = int(process.stdout.readline())
    wait_until(lambda: children(starter) and children(children(starter)[0]))
    run_process = children(starter)[0]
    pids = [starter, run_process, *children(run_process)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_an_idle_starter_serves_the_next_sandbox_a_busy_one_ends(tmp_path):
    script = tmp_path / "tree" / "x.py"
    script.parent.mkdir()
    script.write_text("import time\ntime.sleep(3600)")
    first = Sandbox(tmp_path, [FIRST_CORE])
    pid = first.starter.process.pid
    first.close()
    second = Sandbox(tmp_path, [FIRST_CORE])
    assert second.starter.process.pid == pid
    second.start([str(script)], [script.parent], Limit(3600)).close()
    second.close()
    assert not Path(f"/proc/{pid}").exists()
    script.write_text("print('hello')")
    third = Sandbox(tmp_path, [FIRST_CORE])
    assert third.run([script], [script.parent], Limit(600)).text == "hello\n"
    third.close()


def test_without_namespaces_a_run_has_no_isolation_but_its_limits(tmp_path):
    box = Sandbox(tmp_path, [FIRST_CORE])
    box.isolation = "none (for this test)"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    source = "import os\nprint(os.getuid())\nopen('OUT/last.pt', 'w').write('weights')"
    result = run(box, tmp_path / "first", source, last_pt=tmp_path / "got")
    assert (result.status, result.text) == (0, f"{os.getuid()}\n")
    assert (tmp_path / "got").read_text() == "weights"
    assert run(box, tmp_path / "second", "while True: pass", Limit(3600, 1.0)).late
    box.close()


@pytest.mark.parametrize("max_tokens", [2**16, 2 * score.STRETCH])
def test_the_judges_score_is_the_trainers(data_dir, tmp_path, monkeypatch, max_tokens):
    """Bits per byte from raw logits, through a socket, are what `evaluate` finds in training."""
    options = SMALL | {"n_layer": 1, "batch_tokens": 512, "max_steps": 20}
    options |= {"data": data_dir, "out": tmp_path / "run"}
    flags = [f"--{key}={value}" for key, value in options.items()]
    summary = train.train(read_options(train.TrainConfig, flags, "train.py"))
    tree = patch.write_tree(patch.read_tree(ROOT), tmp_path / "tree")
    (tmp_path / "judge").mkdir()
    box = Sandbox(tmp_path / "judge", [FIRST_CORE])
    checkpoint = tmp_path / "run" / "last.pt"
    monkeypatch.setattr(score, "SCORED_TOKENS", max_tokens)
    found = score.score(box, tree, checkpoint, Data(data_dir), "val", 0, NO_LIMIT)
    box.close()
    tolerance = 1e-5 if max_tokens == 2**16 else 0.1
    assert found.bpb == pytest.approx(summary["val_bpb"], rel=tolerance)
