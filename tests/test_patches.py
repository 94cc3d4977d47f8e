"""patches/: the table says what the ledger says, and each patch is what its trial judged."""

import json
import re
import subprocess

import pytest

from research.referee.ledger import Ledger
from research.referee.patch import git, may_change
from tests.conftest import ROOT

FOLDER = ROOT / "patches"
PATCHES = sorted(FOLDER.glob("*.patch"))


@pytest.fixture(scope="module")
def trials() -> dict[str, dict]:
    rows = Ledger(FOLDER).trials()
    return {row["id"]: row for row in rows if row["kind"] == "trial"}


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """Return the cells of each row of the README's table, by the trial's id."""
    lines = re.findall(
        r"^\| `(t\d+-\d+-\w+)` \| (.*) \|$", (FOLDER / "README.md").read_text(), re.M
    )
    return {number: re.split(r" ?\| ?", cells) for number, cells in lines}


def test_the_table_has_each_trial_of_the_ledger(table, trials):
    assert len(trials) >= 60
    assert list(table) == list(trials)


def test_a_row_of_the_table_says_what_the_ledger_says(table, trials):
    for number, (_, _, _, measured, verdict, pairs, tokens, *_) in table.items():
        row = trials[number]
        assert verdict == row["verdict"]
        assert tokens == str(row.get("tokens", ""))
        counted = [pair["split"] for pair in row.get("pairs", []) if "failed" not in pair]
        assert pairs == (f"{counted.count('val')} + {counted.count('test')}" if counted else "")
        figures = ""
        if row.get("interval"):  # a crash and an interrupted trial have none
            low, high = row["interval"]
            figures = f"{row['mean']:+.4f} ({low:+.4f} to {high:+.4f})"
        assert measured == figures


def test_a_patch_is_what_its_trial_judged(table, trials):
    linked = {}
    for number, cells in table.items():
        name = re.search(r"\((\S+\.patch)\)", cells[0])
        if name:
            linked[name[1]] = trials[number]["diff"]
    assert linked == {path.name: path.read_text() for path in PATCHES}


def test_a_patch_changes_the_recipe_alone():
    for path in PATCHES:
        changed = re.findall(r"^\+\+\+ b/(\S+)", path.read_text(), re.M)
        assert changed and all(map(may_change, changed)), path.name


def test_the_ledger_names_no_folder_of_the_machine_that_wrote_it():
    for row in Ledger(FOLDER).trials():
        found = re.search(r"/(?:home|root|tmp|work|Users)/", json.dumps(row))
        assert not found, f"row {row['id']} holds {found[0]}"


def test_the_kept_patches_apply_in_their_order_to_the_commit_that_the_readme_names(
    table, trials, tmp_path
):
    start = re.search(r"git checkout (\w+)", (FOLDER / "README.md").read_text())[1]
    archive = ["git", "archive", start, "model.py", "train.py", "nanoloop", "config"]
    found = subprocess.run(archive, cwd=ROOT, capture_output=True)
    if found.returncode:
        pytest.skip(f"this copy of the project has no commit {start}")
    subprocess.run(["tar", "-x"], cwd=tmp_path, input=found.stdout, check=True)
    kept = [trials[number]["diff"] for number in table if trials[number]["verdict"][:4] == "keep"]
    assert len(kept) >= 5
    for diff in kept:
        git(tmp_path, "--git-dir=/dev/null", "apply", "-", stdin=diff.encode())
