"""The report of the quickstart's text."""

import json
import runpy
import shlex

import prepare_data
from nanoloop.options import read_options
from tests.conftest import ROOT


def test_the_quickstarts_preparation_warns_of_nothing(tmp_path):
    recipe = runpy.run_path(str(ROOT / "config" / "quickstart.py"))
    argv = shlex.split(recipe["prepare"])
    config = read_options(prepare_data.PrepareConfig, argv, "prepare_data.py")
    folder = prepare_data.prepare(config, tmp_path)
    figures = json.loads((folder / "report.json").read_text())
    assert figures["warnings"] == []
    assert 0 < figures["overlap_with_train"]["val"] < 0.1
