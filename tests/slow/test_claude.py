"""A process that asks Claude is killed; see test_claude.py."""

import json
import os
import signal
import subprocess
import sys

from tests.conftest import ROOT
from tests.test_claude import answer_well, spent
from tests.test_claude import run as run  # fixtures
from tests.test_claude import service as service

PROGRAM = """
import sys
from pathlib import Path
from corpus import claude
options = claude.ClaudeConfig(claude_budget=1e9, claude_concurrency=3, claude_retries=3)
list(claude.ask_all(Path(sys.argv[1]), options, Path(sys.argv[2])))
"""


def test_killed_and_started_again_nothing_answered_is_asked_twice(service, run):
    """The process is killed when its tenth question has come."""
    prompts = [f"topic {i}" for i in range(30)]
    run.write_prompts(prompts)
    program = [sys.executable, "-c", PROGRAM, run.prompts, run.answers]
    process = subprocess.Popen(program, cwd=ROOT)

    def answer(request):
        if len(service.asked) == 10:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        return answer_well(request)

    service.answer = answer
    process.wait()
    complete = [line for line in run.answers.read_text().splitlines(True) if line.endswith("\n")]
    rows = [json.loads(line) for line in complete]
    answered = {row["request"]["messages"][0]["content"] for row in rows if "text" in row}
    lost = len(service.asked) - len(answered)  # asked, perhaps charged, never received
    assert 0 < len(answered) < 30
    assert lost <= 3
    done = run(prompts)
    assert done.texts == [f"About {prompt}." for prompt in prompts]
    assert all(service.prompts().count(prompt) == 1 for prompt in answered)
    assert len(service.asked) == 30 + lost
    assert spent(done.rows)[1] >= 10 * 30 + 1024 * lost
