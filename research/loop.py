"""Let any command-line agent try ideas: python -m research loop --agent="COMMAND" --hours=8

Each attempt gets a fresh clone of the loop's repository, the brief and the ledger's lessons on the
agent's standard input, and a time limit. The agent edits its clone, may leave a HYPOTHESIS.md, and
exits. The referee judges; what it keeps becomes a commit in that repository, <folder>/repo, with
the verdict as its trailers. Your checkout stays as it is.

The ledger and the repository hold the whole state, so a killed loop resumes where it was. The agent
runs as you, with your rights; only what it leaves behind is untrusted. It sees figures and
verdicts, never what a candidate printed.
"""

import contextlib
import ctypes
import math
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nanoloop.options import UserError, require
from research.brief import comparable, is_kept, kind_of, one_line, read_card, shape_of, write_brief
from research.referee.judge import noise_row, plan, try_change
from research.referee.ledger import Ledger, new_id, now
from research.referee.patch import ROOT, Invalid, from_tree, git, read_tree
from research.referee.runs import Options, Setup
from research.referee.verdict import Night, rounds

STATUS = ("status", "--porcelain=v2", "--branch")  # of git: the commit, and what differs from it
SET_DEATH_SIGNAL = 1  # of prctl(2): the signal that a process gets when its parent ends


@dataclass(frozen=True)
class LoopOptions(Options):
    """Let an agent try changes, and judge each."""

    agent: str = ""  # command of the agent; it runs in its clone, the brief on its standard input
    hours: float | None = None  # no attempt begins after them
    tries: int | None = None  # attempts in this folder, those before a restart included
    agent_minutes: float = 30.0  # that the agent may take for one idea


def open_repository(folder: Path) -> Path:
    """Return the loop's copy of the project, with a commit per keep; make or tidy it first."""
    repo = folder / "repo"
    if not repo.is_dir():
        partial_repo = folder / "repo.tmp"
        shutil.rmtree(partial_repo, ignore_errors=True)
        partial_repo.mkdir()
        git(partial_repo, "init", "-q", "-b", "kept")
        git(partial_repo, f"--work-tree={ROOT}", "add", "-A")
        git(partial_repo, "commit", "-q", "-m", "Start")
        partial_repo.rename(repo)
    git(repo, "reset", "-q", "--hard", "kept")
    git(repo, "clean", "-fdxq")
    return repo


def commit(repo: Path, row: dict) -> None:
    """Commit a kept trial: later trials are compared with it. A second call does nothing."""
    if f"Trial: {row['id']}\n" in git(repo, "log", "--format=%B"):
        return
    git(repo, "apply", "--index", "--whitespace=nowarn", "-", stdin=row["diff"].encode())
    hypothesis = one_line(row["hypothesis"], 2000)
    title = hypothesis[:72] or f"Trial {row['id']}"
    names = {"Trial": "id", "Verdict": "verdict", "Evidence": "reason", "Parent": "parent"}
    trailers = "\n".join(f"{key}: {one_line(row[name])}" for key, name in names.items())
    git(repo, "commit", "-q", "-m", title, "-m", hypothesis, "-m", trailers)


# --------------------------------------------------------------------------------------------------
# The agent


def run_agent(command: str, copy: Path, text: str, seconds: float) -> str | None:
    """Let the agent work in `copy`; return None if it ended well, else what went wrong.

    All its processes end with it.
    """
    stdin_path = copy.with_name("agent.stdin")
    stdin_path.write_text(text)
    with open(copy.with_name("agent.log"), "wb") as log, open(stdin_path, "rb") as stdin:
        agent = subprocess.Popen(
            shlex.split(command),
            cwd=copy,
            stdin=stdin,
            stdout=log,
            stderr=log,
            # An agent does not outlive a killed loop.
            preexec_fn=partial(ctypes.CDLL(None).prctl, SET_DEATH_SIGNAL, signal.SIGKILL),
            start_new_session=True,
        )
        try:
            code = agent.wait(seconds)
            return f"the agent ended with exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            return f"the agent was stopped after {seconds:.0f} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


def read_hypothesis(copy: Path) -> dict:
    """Read the card HYPOTHESIS.md and remove it, since it is no part of the change."""
    path = copy / "HYPOTHESIS.md"
    text = ""
    if path.is_file() and not path.is_symlink():
        text = path.read_text("utf-8", errors="replace")[:4000]
    with contextlib.suppress(OSError):  # none, or a folder
        path.unlink()
    return read_card(text)


# --------------------------------------------------------------------------------------------------
# The attempts


def attempt(
    options: LoopOptions, ledger: Ledger, repo: Path, number: int, judge, floor: dict
) -> dict:
    """Do one attempt, from the agent to the verdict; return its last row.

    The judge continues the row that begins here.
    """
    rows = ledger.trials()
    row = {"id": new_id("trial"), "kind": "attempt", "number": number, "time": now()}
    row |= kind_of(floor) | {"state": "begun", "data_folder": floor.get("data_folder")}
    ledger.append(row)
    folder = ledger.folder / "attempts" / f"{number:04}"
    shutil.rmtree(folder, ignore_errors=True)
    copy = folder.resolve() / "repo"
    git(repo, "clone", "-q", "--no-hardlinks", ".", str(copy))
    written = ledger.path.read_bytes()
    state = git(repo, *STATUS)

    def end(reason: str, verdict: str = "none", **more) -> dict:
        result = {"kind": "trial", "state": "done", "verdict": verdict, "reason": reason}
        return ledger.append(row | result | more)

    try:
        text = write_brief(rows, repo, options, number, floor)
        problem = run_agent(options.agent, copy, text, 60 * options.agent_minutes)
        is_intact = ledger.path.read_bytes().startswith(written)
        if not is_intact or git(repo, *STATUS) != state:
            reason = "the agent changed the ledger or the loop's repository"
            end(reason)
            raise UserError(f"attempt {number}: {reason}, '{repo}': neither can be trusted")
        card = read_hypothesis(copy)
        if problem:
            return end(problem, **card)
        try:
            base = read_tree(repo)
            idea = shape_of(base, from_tree(base, copy, repo))
        except (Invalid, UserError) as error:
            return end(str(error), verdict="invalid", **card)
        if not idea:
            return end("nothing was changed", **card)
        for known in judged(comparable(rows, floor), idea):
            return end(f"the idea of {known} again", same_as=known, **card)
        trial = judge(repo, tree=str(copy), id=row["id"], number=number, shape=idea, **card)
        if is_kept(trial):
            commit(repo, trial)
        return trial
    except KeyboardInterrupt:
        recover(ledger, repo)
        raise
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def judged(rows: list[dict], idea: str) -> list[str]:
    """List the ended trials that judged an idea. Where the machine was disturbed, none did."""
    same = [row for row in rows if idea in (row.get("idea"), row.get("shape"))]
    return [row["id"] for row in same if row["verdict"] not in ("none", "disturbed")]


def recover(ledger: Ledger, repo: Path) -> None:
    """Commit the keeps that a kill left uncommitted; end the attempts that it interrupted."""
    result = {"state": "interrupted", "verdict": "none", "reason": "interrupted"}
    for row in ledger.trials():
        if row.get("number") and row["state"] == "begun":
            ledger.append({"id": row["id"]} | result)
        if row.get("number") and is_kept(row):
            commit(repo, row)


def run(options: LoopOptions, judge, floor: dict, echo=print) -> None:
    """Do attempts until the hours or the tries are used up. Raises UserError.

    judge(repo, tree=…, hypothesis=…, **row) tries that tree against the one in `repo`, records it
    and returns its row. floor: the row of the noise floor.
    """
    ledger = Ledger(Path(options.folder))
    repo = open_repository(ledger.folder)
    recover(ledger, repo)
    number = sum("number" in row for row in ledger.trials())
    hint = "Ctrl-C ends the loop, the same command resumes it"
    echo(f"{number} attempts so far; keeps are commits in {repo}; {hint}")
    end = time.monotonic() + 3600 * (options.hours or math.inf)
    while number < (options.tries or math.inf) and time.monotonic() <= end:
        number += 1
        row = attempt(options, ledger, repo, number, judge, floor)
        echo(f"attempt {number} | {row['verdict']} | {row['reason']}")


def main(options: LoopOptions) -> None:
    program = shlex.split(options.agent)[:1]
    require(program, "no agent: type its command, such as --agent='claude -p'")
    require(shutil.which(program[0]), f"--agent={options.agent!r}: there is no such command")
    setup = Setup(options, ROOT)
    floor = noise_row(setup)  # before an agent works in vain
    seconds = floor.get("run_seconds")
    alpha = Night.of(setup.ledger.trials()).alpha()
    runs = 2 * sum(count for _, count in rounds(alpha, options.max_pairs))
    agent = f"up to {options.agent_minutes:g} minutes of the agent"
    print(f"each attempt: {agent}, then 2 to {plan(options, runs, seconds)}", flush=True)
    if options.hours and seconds:
        trials = [count * seconds / 60 for count in (runs / options.workers, 2)]
        fit = [math.ceil(60 * options.hours / (options.agent_minutes + trial)) for trial in trials]
        attempts = f"about {fit[0]} to {fit[1]} attempts"
        print(f"{options.hours:g} hours: {attempts}, more if the agent is quick", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(options, partial(try_change, options), floor)
