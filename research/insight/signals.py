"""What a run does, measured from outside: its steps are repeated in memory and watched by hooks.

Nothing here writes to the run's folder.
"""

import copy
import math
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.special import entr

import model as recipe
import train
from nanoloop import checkpoint
from nanoloop.data import TrainBatches
from nanoloop.device import pick_device
from research.insight.reading import half_interval

STEPS = 3  # that are watched
PASSES = 12  # that the gradient's noise is measured in


class Pass(NamedTuple):
    """What a forward pass gets: (B, T) twice; `random` is the state of the random numbers."""

    tokens: Tensor
    targets: Tensor
    is_training: bool
    random: Tensor


class Replay:
    """The parts of a run in one process, built as train.train builds them.

    config: a TrainConfig. data: as open_data returns it. state: the content of a checkpoint, which
    is not changed; None: fresh weights, step 0.
    """

    def __init__(self, config, data, state: dict | None = None):
        self.device, dtype = pick_device(config.device, config.dtype)
        # With the dtype by its name, so that a fork does not pick it, and say so, again.
        self.config = replace(config, dtype=str(dtype).removeprefix("torch."))
        rows, self.passes = config.split_batch()
        self.batches = TrainBatches(
            data,
            config.block_size,
            config.seed,
            rows,
            self.passes,
            align_documents=config.align_documents,
        )
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

    def fork(self, **options) -> "Replay":
        """Return a copy that continues alone on the same text, with other options.

        A forward pass gets as many sequences as before, or fewer.
        """
        config = replace(self.config, **options)
        rows = config.batch_tokens // config.block_size
        config = replace(config, micro_batch_size=math.gcd(rows, self.batches.batch_size))
        state = checkpoint.pack(*self.parts, self.batches.data, self.config, self.step, 0.0, 0.0)
        return Replay(config, self.batches.data, state)

    def watch(self, progress: float) -> None:
        """Take STEPS steps; note what the model and the optimizers get, from now on.

        seen: each Pass. norms: of the gradients of each step, after clipping. before, change: of
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
        self.seen.append(Pass(*inputs, model.training, torch.get_rng_state()))

    def note_step(self, *_) -> None:
        self.norms.append(gradient_norm(self.model))


def gradient_norm(model) -> float:
    """Return the norm of all gradients, which clipping at infinity leaves as they are."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf).item()


def noise_scale(replay: Replay) -> tuple[float, float]:
    """Return the gradient noise scale in tokens, and half its 95 % interval.

    It is the batch at which noise and signal are equal, from the gradients of PASSES passes and of
    their halves (McCandlish et al. 2018, arXiv:1812.06162, appendix A). Both are nan if a pass has
    one sequence; the interval is nan if the signal is lost in the noise of so few passes.
    """
    size = replay.batches.batch_size // 2
    if not size:
        return math.nan, math.nan
    squares = []
    for number in range(PASSES):
        batch = torch.from_numpy(np.stack(replay.batches(replay.step + number)))
        batch = batch[:, : 2 * size].to(replay.device)
        for tokens, targets in (batch, *batch.chunk(2, 1)):
            replay.model(tokens, targets).backward()
            squares.append(gradient_norm(replay.model) ** 2)
            replay.model.zero_grad()
    large, *small = np.reshape(squares, (PASSES, 3)).T
    small = sum(small) / 2
    # On average: the noise of one token, the square of the true gradient.
    noise = (small - large) * batch[0].numel()
    signal = 2 * large - small
    return noise.sum() / signal.sum(), half_interval(noise, signal)


@torch.no_grad()
def activations(model, tokens: Tensor) -> dict[str, float]:
    """Measure by layer what a forward pass does, on about 2,048 of the tokens.

    model: a GPT without dropout. tokens: (N, T) int64. Each name is a kind and a part of the model:
    dead, saturated: the share of the MLP's units that are 0 for all tokens, or above 0 for all.
    rms, kurtosis: of the residual x behind a block; kurtosis is mean x⁴ / (mean x²)², 3 if normal.
    entropy, attention_logit: see attention_figures. rank: the effective rank of what the head gets,
    exp of the entropy of its singular values (RankMe, arXiv:2210.02885). log_z: the mean log of the
    softmax's denominator. capped: the share of logits above 95 % of logit_softcap.
    """
    passed = {}

    def note(module, inputs, output):
        passed[module] = (*inputs, output)

    hook = register_module_forward_hook(note)
    with hook, patch.object(recipe, "attend", wraps=recipe.attend) as attend:
        logits = model(tokens[: 2048 // tokens.size(1) + 1])  # (B, T, V)
    sizes = torch.linalg.svdvals(passed[model.ln_f][-1].float().flatten(0, 1))
    cap = model.config.logit_softcap or math.inf
    figures = {
        "rank head": entr(sizes / sizes.sum()).sum().exp(),
        "log_z head": logits.logsumexp(-1).mean(),
        "capped head": (logits.abs() > 0.95 * cap).float().mean(),
    }
    for layer, (block, call) in enumerate(zip(model.h, attend.call_args_list)):
        hidden = passed[block.mlp.c_proj][0].flatten(0, 1)  # (B·T, units)
        peak = hidden.abs().amax(0)
        squares = passed[block][-1].float().square()
        entropy, logit = attention_figures(*call.args)
        figures |= {
            # GELU of a very negative number is not quite 0.
            f"dead h.{layer}": (peak <= 1e-6 * peak.max()).float().mean(),
            f"saturated h.{layer}": (hidden > 0).all(0).float().mean(),
            f"rms h.{layer}": squares.mean().sqrt(),
            f"kurtosis h.{layer}": squares.square().mean() / squares.mean().square(),
            f"entropy h.{layer}": entropy,
            f"attention_logit h.{layer}": logit,
        }
    return {name: value.item() for name, value in figures.items()}


def attention_figures(q, k, v, window, scale, dropout=0.0, documents=None) -> tuple[Tensor, Tensor]:
    """Return the entropy of attention, and its largest absolute logit.

    Arguments as of nanoloop.attention.attend. The mean entropy is divided by the mean log of the
    number of visible tokens: 1 if all get the same weight, 0 if one gets all.
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
    scores = scale * q.float() @ k.float().mT  # (B, H, T, T)
    visible = torch.ones_like(scores).tril().triu(1 - window)
    if documents is not None:
        visible *= documents[:, None, :, None] == documents[:, None, None]
    weights = scores.masked_fill(visible == 0, -math.inf).softmax(-1)
    entropy = entr(weights).sum(-1).mean() / visible.sum(-1).log().mean()
    return entropy, (scores * visible).abs().max()
