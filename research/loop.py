"""Let any command-line agent try ideas all night: python -m research loop --agent="COMMAND" --hours=8

Each attempt: a fresh clone of the loop's own repository, the brief and the ledger's lessons on the agent's standard
input, a time limit. The agent edits its clone, may leave a HYPOTHESIS.md, and exits; the referee judges, and what it
keeps becomes a commit in that repository, <folder>/repo, with the verdict as its trailers. Your checkout is left
alone.

All there is to know is in the ledger and the repository, so that a killed loop goes on where it was. The agent runs as
you, with your rights; only what it leaves behind is untrusted. It is told figures and verdicts, never what a candidate
printed.
"""

import contextlib
import ctypes
import json
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
from research.judge import try_change
from research.ledger import Ledger, new_id, now
from research.patch import ROOT, Invalid, from_tree, git, hash_of, read_tree
from research.runs import Options
from research.verdict import Night, Noise

SHOWN = 200  # of the newest trials, that an agent is told of


@dataclass(frozen=True)
class LoopOptions(Options):
    """Let an agent try changes, and judge each."""

    agent: str = ""  # command line of the agent, run in its clone, the brief on its standard input
    hours: float | None = None  # no attempt begins after them
    tries: int | None = None  # attempts in this folder, those before a restart included
    agent_minutes: float = 30.0  # that the agent may take for one idea


def own_repository(folder: Path) -> Path:
    """The loop's copy of the project with one commit per keep; made at the first start, tidied after a kill."""
    repo, making = folder / "repo", folder / "repo.tmp"
    if not repo.is_dir():
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        for command in ("init -q -b kept", f"--work-tree={ROOT} add -A", "commit -q -m Start"):
            git(making, *command.split())
        making.rename(repo)
    git(repo, "reset", "-q", "--hard", "kept")
    git(repo, "clean", "-fdxq")
    return repo


def one_line(text, length: int = 300) -> str:
    """Text from outside as one printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split())[
        :length
    ]


def commit(repo: Path, row: dict) -> None:
    """Make a kept trial the recipe that the next ones are compared with. Doing it twice does it once."""
    if f"Trial: {row['id']}\n" in git(repo, "log", "--format=%B"):
        return
    git(repo, "apply", "--index", "--whitespace=nowarn", "-", stdin=row["diff"].encode())
    trailers = {"Trial": "id", "Verdict": "verdict", "Evidence": "reason", "Parent": "parent"}
    title, body = (one_line(row["hypothesis"], length) for length in (72, 2000))
    text = [title or f"Trial {row['id']}", "", *[body, ""] * (body != title)]
    text += [f"{key}: {one_line(row[name])}" for key, name in trailers.items()]
    git(repo, "commit", "-q", "-F", "-", stdin="\n".join([*text, ""]).encode())


def told(row: dict) -> str:
    """What an agent may know of a row: figures, verdict, the author's words; JSON, so that nothing leaves its line."""
    names = "id number same_as verdict mean interval added removed".split()
    figures = {name: row[name] for name in names if row.get(name) is not None}
    words = {key: one_line(row[key]) for key in ("reason", "hypothesis") if row.get(key)}
    return json.dumps(figures | {"pairs": len(row.get("differences") or [])} | words)


def lessons(rows: list[dict], repo: Path) -> str:
    """The brief, and what was tried: what won, what lost and by how much, what was invalid and why; sorted by verdict,
    and within it the best first."""
    noise = [
        Noise.of(row["differences"]).sd
        for row in rows
        if row["kind"] == "noise" and row.get("differences")
    ][-1:]
    tried = [row for row in rows if row.get("verdict") and row["kind"] == "trial"][-SHOWN:]
    tried.sort(key=lambda row: (row["verdict"], row.get("mean") or 0.0))
    facts = {"noise_deviation": noise, "false_discovery_budget_left": Night.of(rows).left()}
    parts = (
        (repo / "CLAUDE.md").read_text(),
        (repo / "research/task.md").read_text(),
        json.dumps(facts),
    )
    return "\n".join([*parts, *map(told, tried), ""])


def run_agent(command: str, copy: Path, text: str, seconds: float) -> str | None:
    """Let the agent work in `copy`; None if it ended well, else what went wrong. Nothing of it is left running."""
    copy.with_name("agent.stdin").write_text(text)
    with (
        open(copy.with_name("agent.log"), "wb") as log,
        open(copy.with_name("agent.stdin"), "rb") as stdin,
    ):
        # An agent does not outlive a loop that was killed: PR_SET_PDEATHSIG of prctl(2).
        dies_too = partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL)
        agent = subprocess.Popen(
            shlex.split(command),
            cwd=copy,
            stdin=stdin,
            stdout=log,
            stderr=log,
            preexec_fn=dies_too,
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


def attempt(command: str, ledger: Ledger, repo: Path, number: int, seconds: float, judge) -> dict:
    """One idea from agent to verdict; returns its last row. The judge goes on with the row that is begun here."""
    rows, folder = ledger.trials(), ledger.folder / "attempts" / f"{number:04}"
    row = {
        "id": new_id("trial"),
        "kind": "attempt",
        "number": number,
        "time": now(),
        "state": "begun",
    }
    ledger.append(row)

    def end(reason: str, **more) -> dict:
        return ledger.append(
            row | {"kind": "trial", "state": "done", "verdict": "none", "reason": reason} | more
        )

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy, written, head = folder / "repo", ledger.path.read_bytes(), git(repo, "rev-parse", "HEAD")
    git(folder, "clone", "-q", "--no-hardlinks", str(repo.resolve()), "repo")
    try:
        failed = run_agent(command, copy, lessons(rows, repo), seconds)
        as_it_was = git(repo, "rev-parse", "HEAD") == head and not git(
            repo, "status", "--porcelain"
        )
        if not as_it_was or not ledger.path.read_bytes().startswith(written):
            end("the agent changed the ledger or the loop's repository")
            raise UserError(
                f"attempt {number}: the agent changed the ledger or '{repo}', neither can be trusted now"
            )
        note = copy / "HYPOTHESIS.md"
        text = note.read_bytes()[:4000] if note.is_file() and not note.is_symlink() else b""
        note.unlink(missing_ok=True)  # it is no part of the change
        hypothesis = one_line(text.decode("utf-8", "replace"), 1000)
        try:
            idea = from_tree(read_tree(repo), copy, repo).idea
        except Invalid as refused:  # the judge will say so, for the record
            idea = hash_of(str(refused))
        except UserError as error:
            failed = failed or f"unusable: {error}"
        if failed or not idea:
            return end(failed or "nothing was changed", hypothesis=hypothesis)
        known = [
            trial["id"] for trial in rows if trial.get("idea") == idea and trial["state"] == "done"
        ]
        if known:
            return end(f"the idea of {known[0]} again", same_as=known[0], hypothesis=hypothesis)
        trial = judge(repo, tree=str(copy), hypothesis=hypothesis, id=row["id"], number=number)
        commit(repo, trial) if trial["verdict"].startswith("keep") else None
        return trial
    except KeyboardInterrupt:
        recover(ledger, repo)
        raise
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def recover(ledger: Ledger, repo: Path) -> None:
    """Mend what a kill has cut off: a keep that was reached is committed; all else that had begun was in vain."""
    for row in ledger.trials():
        if row.get("number") and row["state"] == "begun":
            ledger.append(
                {
                    "id": row["id"],
                    "state": "interrupted",
                    "verdict": "none",
                    "reason": "interrupted",
                }
            )
        if row.get("number") and row.get("verdict", "").startswith("keep"):
            commit(repo, row)


def run(
    agent: str,
    folder: Path,
    judge,
    hours: float | None,
    tries: int | None,
    minutes: float,
    tell=print,
) -> None:
    """Attempts until the time or the tries are used up.

    judge(repo, tree=…, hypothesis=…, **row) tries that tree against the one in `repo`, records it, returns its row.
    """
    require(
        shutil.which("".join(shlex.split(agent)[:1])),
        f"--agent={agent!r}: there is no such command",
    )
    ledger, repo = Ledger(folder), own_repository(folder)
    recover(ledger, repo)
    before = sum("number" in row for row in ledger.trials())
    tell(
        f"{before} attempts so far; keeps are commits in {repo}; Ctrl-C ends the loop, the same command goes on"
    )
    end = time.monotonic() + 3600 * (hours or 1e6)
    for number in range(before + 1, (tries or 10**9) + 1):
        if time.monotonic() > end:
            break
        row = attempt(agent, ledger, repo, number, 60 * minutes, judge)
        tell(f"attempt {number} | {row['verdict']} | {row['reason']}")


def main(chosen: LoopOptions) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(
        chosen.agent,
        Path(chosen.folder),
        partial(try_change, chosen),
        chosen.hours,
        chosen.tries,
        chosen.agent_minutes,
    )
