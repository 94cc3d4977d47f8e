"""Let any command-line agent try ideas: python -m research loop --agent="COMMAND" --hours=8

Each attempt gets a fresh clone of the loop's repository, the brief and the ledger's lessons on the
agent's standard input, and a time limit. The agent edits its clone, may leave a HYPOTHESIS.md, and
exits. The referee judges; what it keeps becomes a commit in that repository, <folder>/repo, with
the verdict as its trailers. Your checkout stays as it is. Several agents may work at once from one
commit; nothing is judged meanwhile, and each change is rebased on what was kept before its trial.
Between the attempts the loop makes changes of its own (research/operators.py).

The ledger and the repository hold the whole state, so a killed loop resumes where it was. The agent
runs as you, with your rights; only what it leaves behind is untrusted. It sees figures and
verdicts, never what a candidate printed.
"""

import ctypes
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nanoloop.options import UserError, require
from research.brief import (
    INSIGHTS,
    TRAIN_DATA,
    comparable,
    is_kept,
    kind_of,
    one_line,
    read_card,
    shape_of,
    write_brief,
)
from research.operators import (
    clone,
    confirm,
    is_plateau,
    kept_commits,
    propose,
    read_factor,
    sweep,
)
from research.referee.judge import noise_row, plan, try_change
from research.referee.ledger import Ledger, new_id, now
from research.referee.patch import (
    ROOT,
    Invalid,
    Tree,
    apply,
    from_patch,
    from_tree,
    git,
    read_tree,
    write_tree,
)
from research.referee.runs import Options, Setup
from research.referee.verdict import Night, Noise, rounds
from research.referee.views import training_data

STATUS = ("status", "--porcelain=v2", "--branch")  # of git: the commit, and what differs from it
INSIGHT_LINES = 10
SET_DEATH_SIGNAL = 1  # of prctl(2): the signal that a process gets when its parent ends


@dataclass(frozen=True)
class LoopOptions(Options):
    """Let an agent try changes, and judge each."""

    agent: str = ""  # command of the agent; it runs in its clone, the brief on its standard input
    hours: float | None = None  # no attempt begins after them
    tries: int | None = None  # attempts in this folder, those before a restart included
    agent_minutes: float = 30.0  # that the agent may take for one idea
    agents: int = 1  # that work at once
    run: str | None = None  # folder of a run of the recipe, to be diagnosed and analyzed first
    sweep_tries: int = 8  # settings of a search of a kept change's numbers; 0: no search
    scale: str | None = "3x"  # at which a keep is confirmed: 3x budget, n_layer=4, or None


def open_repository(folder: Path, root: Path = ROOT) -> Path:
    """Return the loop's copy of the project, with a commit per keep; make or tidy it first."""
    repo = folder / "repo"
    if not repo.is_dir():
        partial_repo = folder / "repo.tmp"
        shutil.rmtree(partial_repo, ignore_errors=True)
        partial_repo.mkdir()
        git(partial_repo, "init", "-q", "-b", "kept")
        git(partial_repo, f"--work-tree={root}", "add", "-A")
        git(partial_repo, "commit", "-q", "-m", "Start")
        partial_repo.rename(repo)
    git(repo, "reset", "-q", "--hard", "kept")
    git(repo, "clean", "-fdxq")
    return repo


def commit(repo: Path, row: dict) -> None:
    """Commit a kept trial: later trials are compared with it. A second call does nothing."""
    if row["id"] in kept_commits(repo):
        return
    git(repo, "apply", "--index", "--whitespace=nowarn", "-", stdin=row["diff"].encode())
    hypothesis = one_line(row["hypothesis"], 2000)
    title = hypothesis[:72] or f"Trial {row['id']}"
    names = {"Trial": "id", "Verdict": "verdict", "Evidence": "reason", "Parent": "parent"}
    trailers = "\n".join(f"{key}: {one_line(row[name])}" for key, name in names.items())
    git(repo, "commit", "-q", "-m", title, "-m", hypothesis, "-m", trailers)


# --------------------------------------------------------------------------------------------------
# The agent


def run_agents(command: str, copies: list[Path], texts: list[str], seconds: float) -> list:
    """Let an agent work in each copy; return None for each that ended well, else what went wrong.

    All their processes end with this function.
    """
    agents = []
    try:
        for copy, text in zip(copies, texts):
            agents.append(start_agent(command, copy, text))
        end = time.monotonic() + seconds
        return [wait_for(agent, end, seconds) for agent in agents]
    finally:
        for agent in agents:
            with suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


def start_agent(command: str, copy: Path, text: str) -> subprocess.Popen:
    stdin_path = copy.with_name("agent.stdin")
    stdin_path.write_text(text)
    with open(copy.with_name("agent.log"), "wb") as log, open(stdin_path, "rb") as stdin:
        return subprocess.Popen(
            shlex.split(command),
            cwd=copy,
            stdin=stdin,
            stdout=log,
            stderr=log,
            # An agent does not outlive a killed loop.
            preexec_fn=partial(ctypes.CDLL(None).prctl, SET_DEATH_SIGNAL, signal.SIGKILL),
            start_new_session=True,
        )


def wait_for(agent: subprocess.Popen, end: float, seconds: float) -> str | None:
    try:
        code = agent.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return f"the agent was stopped after {seconds:.0f} seconds"
    return f"the agent ended with exit code {code}" if code else None


def read_hypothesis(copy: Path) -> dict:
    """Read the card HYPOTHESIS.md and remove it, since it is no part of the change."""
    path = copy / "HYPOTHESIS.md"
    text = ""
    if path.is_file() and not path.is_symlink():
        text = path.read_text("utf-8", errors="replace")[:4000]
    with suppress(OSError):  # none, or a folder
        path.unlink()
    return read_card(text)


# --------------------------------------------------------------------------------------------------
# The attempts


def attempt(
    options: LoopOptions, ledger: Ledger, repo: Path, numbers: range, judge, floor: dict
) -> list[dict]:
    """Do attempts from one commit, from the agents to the verdicts; return their last rows.

    The judge continues a row that begins here.
    """
    rows = [begin(ledger, repo, number, floor) for number in numbers]
    copies = [copy_of(ledger, row) for row in rows]
    texts = [write_brief(ledger.trials(), repo, options, row["number"], floor) for row in rows]
    base = read_tree(repo)
    written = ledger.path.read_bytes()
    state = git(repo, *STATUS)
    try:
        problems = run_agents(options.agent, copies, texts, 60 * options.agent_minutes)
        is_intact = ledger.path.read_bytes().startswith(written)
        if not is_intact or git(repo, *STATUS) != state:
            reason = "the agent changed the ledger or the loop's repository"
            for row in rows:
                ledger.end(row, reason)
            names = ", ".join(map(str, numbers))
            raise UserError(f"attempt {names}: {reason}, '{repo}': neither can be trusted")
        return [
            finish(ledger, repo, row, problem, base, judge, floor)
            for row, problem in zip(rows, problems)
        ]
    except KeyboardInterrupt:
        recover(ledger, repo)
        raise
    finally:
        for copy in copies:
            shutil.rmtree(copy, ignore_errors=True)


def copy_of(ledger: Ledger, row: dict) -> Path:
    """Name the folder of an attempt's clone."""
    return ledger.folder / "attempts" / f"{row['number']:04}" / "repo"


def begin(ledger: Ledger, repo: Path, number: int, floor: dict) -> dict:
    """Record that an attempt begins, and make its clone; return the row."""
    row = {"id": new_id("trial"), "kind": "attempt", "number": number, "time": now()}
    row |= kind_of(floor) | {"state": "begun", "data_folder": floor.get("data_folder")}
    ledger.append(row)
    clone(repo, copy_of(ledger, row))
    return row


def finish(
    ledger: Ledger,
    repo: Path,
    row: dict,
    problem: str | None,
    base: Tree,
    judge,
    floor: dict,
) -> dict:
    """Judge what an agent left in its clone; commit it if it is kept. Return the last row.

    base: the tree that the agent was given. The repository may have a newer one by now.
    """
    copy = copy_of(ledger, row)
    card = read_hypothesis(copy)
    row = row | card
    if problem:
        return ledger.end(row, problem)
    try:
        change = from_tree(base, copy, repo)
        idea = shape_of(base, change)
    except (Invalid, UserError) as error:
        return ledger.end(row, str(error), verdict="invalid")
    if not idea:
        return ledger.end(row, "nothing was changed")
    for known in judged(comparable(ledger.trials(), floor), idea):
        return ledger.end(row, f"the idea of {known} again", same_as=known)
    newest = read_tree(repo)
    if newest != base:
        try:
            change = from_patch(newest, change.diff.encode())
        except Invalid as error:
            return ledger.end(row, f"a change kept meanwhile is in its way: {error}")
        write_tree(apply(newest, change), copy)
    trial = judge(repo, tree=str(copy), id=row["id"], number=row["number"], shape=idea, **card)
    if is_kept(trial):
        commit(repo, trial)
    return trial


def operate(options: LoopOptions, ledger: Ledger, repo: Path, judge, floor: dict, echo) -> None:
    """Confirm the newest keep at a larger scale; judge what the operators propose."""
    copy = ledger.folder / "operator"
    while True:
        confirm_newest(options, ledger, repo, floor, echo)
        rows = comparable(ledger.trials(), floor)
        proposal = propose(rows, repo)
        if proposal is None and options.sweep_tries and is_plateau(rows):
            proposal = sweep(options, ledger, repo, rows, floor)
        if proposal is None:
            return
        clone(repo, copy)
        write_tree(apply(read_tree(repo), proposal.change), copy)
        trial = judge(repo, tree=str(copy), id=new_id("trial"), **proposal.facts)
        shutil.rmtree(copy)
        if is_kept(trial):
            commit(repo, trial)
        echo(f"{trial['operator']} | {trial['verdict']} | {trial['reason']}")


def confirm_newest(options: LoopOptions, ledger: Ledger, repo: Path, floor: dict, echo) -> None:
    """Write into the newest commit whether its gain transfers to a larger scale, once."""
    newest = git(repo, "log", "-1", "--format=%(trailers:key=Trial,valueonly)").strip()
    kept = [row for row in ledger.trials() if row["id"] == newest and row["verdict"] == "keep"]
    if not kept or not options.scale:
        return
    row = kept[0]
    if "scale" not in row:
        row = row | {"scale": confirm(options, repo, row, Noise.of(floor))}
        ledger.append({"id": newest, "scale": row["scale"]})
        echo(f"{newest} | {row['scale']}")
    message = git(repo, "log", "-1", "--format=%B").rstrip()
    if "\nScale: " not in message:
        git(repo, "commit", "-q", "--amend", "-m", f"{message}\nScale: {row['scale']}")


def judged(rows: list[dict], idea: str) -> list[str]:
    """List the ended trials that judged an idea. Where the machine was disturbed, none did."""
    same = [row for row in rows if row.get("shape") == idea]
    return [row["id"] for row in same if row["verdict"] not in ("none", "disturbed")]


def recover(ledger: Ledger, repo: Path) -> None:
    """Commit the keeps that a kill left uncommitted; end the attempts that it interrupted."""
    result = {"state": "interrupted", "verdict": "none", "reason": "interrupted"}
    for row in ledger.trials():
        is_own = row.get("number") or row.get("operator")
        if is_own and row["state"] == "begun":
            ledger.append({"id": row["id"]} | result)
        if is_own and is_kept(row):
            commit(repo, row)


def run(options: LoopOptions, judge, floor: dict, echo=print) -> None:
    """Do attempts until the hours or the tries are used up. Raises UserError.

    judge(repo, tree=…, hypothesis=…, **row) tries that tree against the one in `repo`, records it
    and returns its row. floor: the row of the noise floor.
    """
    ledger = Ledger(Path(options.folder).resolve())
    repo = open_repository(ledger.folder)
    recover(ledger, repo)
    number = sum("number" in row for row in ledger.trials())
    hint = "Ctrl-C ends the loop, the same command resumes it"
    echo(f"{number} attempts so far; keeps are commits in {repo}; {hint}")
    tries = options.tries or math.inf
    end = time.monotonic() + 3600 * (options.hours or math.inf)
    while number < tries and time.monotonic() <= end:
        last = min(number + options.agents, tries)
        numbers = range(number + 1, last + 1)
        number = last
        for row in attempt(options, ledger, repo, numbers, judge, floor):
            echo(f"attempt {row['number']} | {row['verdict']} | {row['reason']}")
        operate(options, ledger, repo, judge, floor, echo)


def require_agent(command: str) -> None:
    program = shlex.split(command)[:1]
    require(program, "no agent: type its command, such as --agent='claude -p'")
    require(shutil.which(program[0]), f"--agent={command!r}: there is no such command")


def write_insights(run_folder: str, folder: Path) -> None:
    """Let diagnose and analyze write the first lines of what they find, for the brief."""
    for name in INSIGHTS:
        command = [sys.executable, "-m", "research", name, run_folder]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        require(result.returncode == 0, f"{name} {run_folder}: {result.stderr.strip()[-300:]}")
        lines = result.stdout.splitlines()[:INSIGHT_LINES]
        (folder / f"{name}.md").write_text("\n".join(lines))


def main(options: LoopOptions) -> None:
    require_agent(options.agent)
    require(options.agents >= 1, f"agents must be at least 1, got {options.agents}")
    if options.scale:
        read_factor(options.scale)
    setup = Setup(options, ROOT)
    floor = noise_row(setup)  # before an agent works in vain
    seconds = floor.get("run_seconds")
    alpha = Night.of(setup.ledger.trials()).alpha()
    runs = 2 * sum(count for _, count in rounds(alpha, options.max_pairs))
    agent = f"up to {options.agent_minutes:g} minutes of the agent"
    print(f"each attempt: {agent}, then 2 to {plan(options, runs, seconds)}")
    if options.hours and seconds:
        trials = [count * seconds / 60 for count in (runs / options.workers, 2)]
        fit = [math.ceil(60 * options.hours / (options.agent_minutes + trial)) for trial in trials]
        attempts = f"about {fit[0]} to {fit[1]} attempts"
        print(f"{options.hours:g} hours: {attempts}, more if the agent is quick")
    train_data = setup.ledger.folder / TRAIN_DATA
    shutil.rmtree(train_data, ignore_errors=True)
    training_data(setup.data, train_data)
    if options.run:
        write_insights(options.run, setup.ledger.folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(options, partial(try_change, options), floor)
