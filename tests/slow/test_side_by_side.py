"""side_by_side.py finds no difference between equal checkouts, and a change of one number."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_SOURCE = (".*", "data", "out", "__pycache__")


@pytest.fixture
def copied_checkout(tmp_path) -> Path:
    ignore = shutil.ignore_patterns(*NO_SOURCE)
    return shutil.copytree(ROOT, tmp_path / "checkout", ignore=ignore)


def compare(checkout: Path, only: str) -> subprocess.CompletedProcess:
    script = Path("tests/slow/side_by_side.py")
    command = [sys.executable, script, f"--against={checkout}", f"--only={only}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def replace_in(path: Path, old: str, new: str) -> None:
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))


def test_equal_checkouts_are_equal(copied_checkout):
    result = compare(copied_checkout, only="model/modern,data/parquet,train/modern")
    assert result.stdout.endswith("4 passed, 0 failed\n")
    assert result.returncode == 0


def test_one_changed_number_of_the_model_is_found(copied_checkout):
    replace_in(copied_checkout / "model.py", "1.44", "1.4401")
    result = compare(copied_checkout, only="model/modern,model/no_qk_norm")
    modern, no_qk_norm, count = result.stdout.splitlines()
    assert modern.startswith("DIFFERS  model/modern: ")
    assert no_qk_norm == "equal    model/no_qk_norm"
    assert count == "1 passed, 1 failed"
    assert result.returncode == 1


def test_a_checkout_that_does_not_run_fails(copied_checkout):
    replace_in(copied_checkout / "model.py", "if self.qk_norm", "if self.missing")
    result = compare(copied_checkout, only="model/modern")
    assert "DIFFERS  model/modern: right: probe gradients ended with 1" in result.stdout
    assert "AttributeError" in result.stdout
    assert result.returncode == 1
