"""One side of the comparison: a checkout, a folder for its files, a process for its commands."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

INSIDE = Path(__file__).with_name("inside.py")


class Failed(Exception):
    """A command or a condition of one side failed."""


class Skipped(Exception):
    """This machine lacks what the case needs."""


def expect(condition, message: str) -> None:
    if not condition:
        raise Failed(message)


class Side:
    """Runs a checkout's commands in `folder`; paths of jobs are relative to it.

    other: the opposite side, whose finished cases this one may read.
    """

    def __init__(self, name: str, checkout: Path, folder: Path):
        self.name = name
        self.checkout = checkout
        self.folder = folder
        self.other: Side | None = None
        folder.mkdir(parents=True)
        log = open(folder.with_suffix(".log"), "w")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(INSIDE)],
            cwd=folder,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def environment(self) -> dict[str, str]:
        launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        inherited = {key: value for key, value in os.environ.items() if key not in launcher}
        return inherited | {
            "PYTHONPATH": str(self.checkout),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.wait()

    # ----------------------------------------------------------------------------------------------
    # Jobs, see inside.py

    def run(self, program: str, *flags: str, code: int = 0, **job) -> str:
        """Run a program of the checkout; return its output. Raises Failed for another code."""
        argv = [str(self.checkout / program), *flags]
        return self.do({"argv": argv} | job, f"{program} {' '.join(flags)}", code)

    def probe(self, name: str, max_logits: int | None = None, **arguments):
        """Call a function of PROBES inside the checkout; return its result. Raises Failed."""
        result = self.folder / "result.pt"
        job = {"probe": name, "arguments": arguments, "result": str(result)}
        self.do(job | {"max_logits": max_logits}, f"probe {name}", 0)
        return torch.load(result, weights_only=True)

    def do(self, job: dict, description: str, code: int) -> str:
        output = self.folder / "output.txt"
        print(json.dumps(job | {"output": str(output)}), file=self.process.stdin, flush=True)
        reply = self.process.stdout.readline()
        expect(
            reply, f"the process of {self.checkout} ended; see {self.folder.with_suffix('.log')}"
        )
        printed = output.read_text(errors="replace")
        return check(description, int(reply), code, printed)

    def run_ranks(self, *flags: str) -> str:
        """Train on two ranks, in forks that start at once. Raises Failed."""
        return self.run("train.py", *flags, ranks=2)

    def torchrun(self, *flags: str) -> str:
        """Train on two ranks that torchrun starts. Raises Failed."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc_per_node=2", str(self.checkout / "train.py"), *flags]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=300)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return check(f"torchrun train.py {' '.join(flags)}", process.returncode, 0, printed)


def check(description: str, code: int, expected: int, printed: str) -> str:
    expect(code == expected, f"{description:.200} ended with {code}: {summarize(printed)}")
    return printed


def summarize(printed: str) -> str:
    """Return the last lines that name an error, else the last lines, as one line."""
    lines = printed.strip().splitlines()
    errors = [line for line in lines if re.search(r"^error: |^\w*(Error|Exception)\b", line)]
    return " | ".join((errors or lines)[-3:])[-600:]
