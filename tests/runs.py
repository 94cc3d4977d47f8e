"""What tests of runs share: stopping a run at a step, and reading what it left."""

import json
import signal
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from nanoloop import checkpoint


class StopAfter:
    """A StopFlag whose signal comes while the step number `steps` is taken."""

    def __init__(self, steps: int):
        self.steps = steps
        self.n_taken = 0

    def listen(self) -> None:
        """Count the steps of this run."""
        self.hook = register_optimizer_step_post_hook(self.count)

    def count(self, optimizer, args, kwargs) -> None:
        self.n_taken += isinstance(optimizer, torch.optim.AdamW)

    @property
    def signal(self) -> int | None:
        if self.n_taken < self.steps:
            return None
        self.hook.remove()
        return signal.SIGINT


class KillAfter(StopAfter):
    """Ends the run after `steps` steps, and nothing is saved."""

    @property
    def signal(self) -> None:
        if super().signal:
            raise KeyboardInterrupt


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "last.pt")["model"]


def log_rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Compare weights bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
