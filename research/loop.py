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
from research.brief import one_line, read_card, shape_of, write_brief
from research.referee.judge import noise_row, plan, try_change
from research.referee.ledger import Ledger, new_id, now
from research.referee.patch import ROOT, Invalid, from_tree, git, hash_of, read_tree
from research.referee.runs import Options, Setup
from research.referee.verdict import Night, rounds

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
    title = hypothesis[:72]
    lines = [title or f"Trial {row['id']}", ""]
    if hypothesis != title:
        lines += [hypothesis, ""]
    trailers = {"Trial": "id", "Verdict": "verdict", "Evidence": "reason", "Parent": "parent"}
    lines += [f"{key}: {one_line(row[name])}" for key, name in trailers.items()]
    git(repo, "commit", "-q", "-F", "-", stdin="\n".join([*lines, ""]).encode())


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
    content = b""
    if path.is_file() and not path.is_symlink():
        content = path.read_bytes()[:4000]
    path.unlink(missing_ok=True)
    return read_card(content.decode("utf-8", "replace"))


# --------------------------------------------------------------------------------------------------
# The attempts


def attempt(options: LoopOptions, ledger: Ledger, repo: Path, number: int, judge) -> dict:
    """Do one attempt, from the agent to the verdict; return its last row.

    The judge continues the row that begins here.
    """
    rows = ledger.trials()
    row = {"id": new_id("trial"), "kind": "attempt", "number": number, "time": now()}
    row["state"] = "begun"
    ledger.append(row)
    folder = ledger.folder / "attempts" / f"{number:04}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy = folder / "repo"
    git(folder, "clone", "-q", "--no-hardlinks", str(repo.resolve()), "repo")
    written = ledger.path.read_bytes()
    head = git(repo, "rev-parse", "HEAD")

    def end(reason: str, **more) -> dict:
        result = {"kind": "trial", "state": "done", "verdict": "none", "reason": reason}
        return ledger.append(row | result | more)

    try:
        text = write_brief(rows, repo, options, number)
        problem = run_agent(options.agent, copy, text, 60 * options.agent_minutes)
        is_intact = git(repo, "rev-parse", "HEAD") == head and not git(
            repo, "status", "--porcelain"
        )
        if not is_intact or not ledger.path.read_bytes().startswith(written):
            reason = "the agent changed the ledger or the loop's repository"
            end(reason)
            raise UserError(f"attempt {number}: {reason}, '{repo}': neither can be trusted")
        card = read_hypothesis(copy)
        idea = ""
        try:
            base = read_tree(repo)
            idea = shape_of(base, from_tree(base, copy, repo))
        except Invalid as error:  # the judge says so too, for the record
            idea = hash_of(str(error))
        except UserError as error:
            problem = problem or f"unusable: {error}"
        if problem or not idea:
            return end(problem or "nothing was changed", **card)
        for known in judged(rows, idea):
            reason = f"the idea of {known} again"
            return end(reason, same_as=known, **card)
        more = {"id": row["id"], "number": number, "shape": idea}
        trial = judge(repo, tree=str(copy), **card, **more)
        if trial["verdict"].startswith("keep"):
            commit(repo, trial)
        return trial
    except KeyboardInterrupt:
        recover(ledger, repo)
        raise
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def judged(rows: list[dict], idea: str) -> list[str]:
    """List the trials that have judged an idea. Where the machine was disturbed, none has."""
    trials = [
        row
        for row in rows
        if idea in (row.get("idea"), row.get("shape")) and row["state"] == "done"
    ]
    return [row["id"] for row in trials if row["verdict"] != "disturbed"]


def recover(ledger: Ledger, repo: Path) -> None:
    """Commit the keeps that a kill left uncommitted; end the attempts that it interrupted."""
    result = {"state": "interrupted", "verdict": "none", "reason": "interrupted"}
    for row in ledger.trials():
        if row.get("number") and row["state"] == "begun":
            ledger.append({"id": row["id"]} | result)
        if row.get("number") and row.get("verdict", "").startswith("keep"):
            commit(repo, row)


def run(options: LoopOptions, judge, echo=print) -> None:
    """Do attempts until the hours or the tries are used up. Raises UserError.

    judge(repo, tree=…, hypothesis=…, **row) tries that tree against the one in `repo`, records it
    and returns its row.
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
        row = attempt(options, ledger, repo, number, judge)
        echo(f"attempt {number} | {row['verdict']} | {row['reason']}")


def main(options: LoopOptions) -> None:
    program = shlex.split(options.agent)[:1]
    require(program, "no agent: type its command, such as --agent='claude -p'")
    require(shutil.which(program[0]), f"--agent={options.agent!r}: there is no such command")
    setup = Setup(options, ROOT)
    seconds = noise_row(setup).get("run_seconds")  # before an agent works in vain
    alpha = Night.of(setup.ledger.trials()).alpha()
    runs = 2 * sum(count for _, count in rounds(alpha, options.max_pairs))
    agent = f"up to {options.agent_minutes:g} minutes of the agent"
    print(f"each attempt: {agent}, then 2 to {plan(options, runs, seconds)}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(options, partial(try_change, options))
