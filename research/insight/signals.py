"""What a run does, measured from outside: its steps are repeated in memory and watched by hooks.

Nothing here writes to the run's folder.
"""

import copy
import math

import torch

import train
from nanoloop import checkpoint
from nanoloop.data import TrainBatches
from nanoloop.device import pick_device

STEPS = 3  # that are watched


class Replay:
    """The parts of a run in one process, built as train.train builds them.

    config: a TrainConfig. data: as open_data returns it. state: the content of a checkpoint, which
    is not changed; None: fresh weights, step 0.
    """

    def __init__(self, config, data, state: dict | None = None):
        self.config = config
        self.device, dtype = pick_device(config.device, config.dtype)
        rows, self.passes = config.split_batch()
        order = (config.block_size, config.seed, rows, self.passes, 1, config.align_documents)
        self.batches = TrainBatches(data, *order)
        torch.manual_seed(config.seed)
        self.model = train.GPT(config, dtype).to(self.device)
        self.optimizers = train.make_optimizers(self.model, config)
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.parts = (self.model, self.optimizers, scaler)
        # A copy, because the optimizers continue with the tensors they are given.
        checkpoint.restore(copy.deepcopy(state), True, *self.parts)
        self.step = state["tokens"] // config.batch_tokens if state else 0

    def take_step(self, progress: float, scale: float = 1.0) -> None:
        """Take a step with the rates of `progress`, a fraction of the run, times `scale`."""
        train.set_schedule(self.optimizers, progress, self.config)
        for group in self.optimizers.param_groups:
            group["lr"] *= scale
        train.train_step(*self.parts, self.batches, self.step, self.config, self.device)
        self.step += 1

    def fork(self) -> "Replay":
        """Return a copy that continues alone, on the same text."""
        branch = copy.copy(self)
        branch.parts = copy.deepcopy(self.parts)
        branch.model, branch.optimizers, _ = branch.parts
        return branch

    def watch(self, progress: float) -> None:
        """Take STEPS steps; note what the model and the optimizers get, from now on.

        seen: of each forward pass tokens, targets, whether the model trains, and the state of the
        random numbers. norms: of the gradients of each step, after clipping. before, change: of
        the weights, in all steps.
        """
        self.seen = []
        self.norms = []
        self.before = copy.deepcopy(self.model.state_dict())
        self.model.register_forward_pre_hook(self.note_pass)
        self.optimizers[0].register_step_pre_hook(self.note_step)
        for _ in range(STEPS):
            self.take_step(progress)
        after = self.model.state_dict()
        self.change = {name: after[name] - old for name, old in self.before.items()}

    def note_pass(self, model, inputs) -> None:
        self.seen.append((*inputs, model.training, torch.get_rng_state()))

    def note_step(self, *_) -> None:
        self.norms.append(gradient_norm(self.model))


def gradient_norm(model) -> float:
    """Return the norm of all gradients, which clipping at infinity leaves as they are."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf).item()
