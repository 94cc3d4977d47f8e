"""Train a GPT: configuration, optimizers, schedule, evaluation, checkpoints, the loop.

    python train.py config/quickstart.py                  # a recipe
    python train.py config/quickstart.py --n_layer=4      # a recipe with one thing changed
    python train.py --help                                # every option, with its default
    torchrun --nproc_per_node=8 train.py config/gpt2.py   # a recipe on eight GPUs

Everything a run makes lies in its folder, out/<name of the config file>/. Read from the top; `train` at the end is the
table of contents.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model import GPT, GPTConfig
from nanoloop import ranks
from nanoloop.checkpoint import (
    CHECKPOINT_FORMAT,
    adopt,
    load_latest,
    load_state,
    load_weights,
    save_checkpoint,
    state_of,
)
from nanoloop.data import Data, TrainBatches, open_data
from nanoloop.device import (
    compiled,
    describe,
    keep_memory,
    peak_memory_mb,
    pick_device,
    require_memory,
    to_device,
    try_compile,
)
from nanoloop.files import locked

# Before torch, whose import takes seconds: Ctrl-C ends it without a traceback.
from nanoloop.options import (
    RESUMABLE,
    catch_signals,
    explained,
    made,
    read_options,
    require,
    run_command,
)
from nanoloop.runlog import Log, Silence, SpikeWatch, check_folder
from corpus.synthetic import exam, task_accuracy

# ---------------------------------------------------------------------------------------------------------------------
# Configuration. A field's comment is its --help text, and the field is the only home of its default.


@dataclass(frozen=True)
class TrainConfig(GPTConfig):
    """One training run. Raises ValueError for values that do not fit each other."""

    data: str = "data/python"  # prepared folder to train on, or a mixture in shares: data/a:0.65,data/b:0.35
    prepare: str | None = (
        None  # options of prepare_data.py, --name among them, that make missing data; None: do not
    )
    out: str | None = None  # folder of the run; None: out/<name of the config file>
    resume: bool = False  # go on from the last checkpoint in the folder, if there is one
    overwrite: bool = False  # delete the run that is in the folder and begin anew
    init_from: str | None = (
        None  # weights to start from: a run, a checkpoint, gpt2, gpt2-medium, …; None: random
    )
    eval_only: bool = (
        False  # evaluate the weights of init_from, or of the run with resume=True, and stop
    )
    align_documents: bool = (
        False  # every sequence begins where a document begins (best-fit packing)
    )
    seed: int = 1337  # of the initial weights, the data order and dropout
    batch_tokens: int = 131_072  # tokens per optimizer step, over all micro-steps
    micro_batch_size: int | None = (
        None  # sequences per forward pass, the knob for memory; None: a whole batch
    )
    max_steps: int | None = None  # the run ends after this many optimizer steps …
    max_tokens: int | None = None  # … or tokens …
    max_seconds: float | None = (
        None  # … or seconds of training; compilation and evaluation do not count
    )
    optimizer: Literal["muon", "adamw"] = (
        "muon"  # Muon for hidden matrices and AdamW for the rest | AdamW alone
    )
    muon_lr: float = 0.02  # peak learning rate of the hidden matrices under Muon
    embed_lr: float = (
        0.3  # … of the token, position, value and bigram tables under AdamW (with optimizer=muon)
    )
    head_lr: float = 0.006  # … of the output head
    scalar_lr: float = 0.02  # … of gains, biases, gates and residual scalars
    learning_rate: float = 6e-4  # … of everything (with optimizer=adamw)
    weight_decay: float = (
        0.1  # of hidden matrices under Muon; of all matrices and tables with optimizer=adamw
    )
    momentum: float = 0.95  # Muon's, reached from 0.85 over the first momentum_warmup of the run
    momentum_warmup: float = 0.15  # share of the run
    beta1: float = 0.8  # AdamW's running mean of gradients
    beta2: float = 0.95  # AdamW's running mean of squared gradients
    eps: float = 1e-10  # AdamW's; small, because a head that begins near 0 gets small gradients
    grad_clip: float | None = None  # largest norm of the gradient; None: off
    on_spike: Literal["skip", "stop", "rewind"] | None = (
        None  # at a spike: take no step | end | back to the checkpoint
    )
    spike_deviations: float = (
        6.0  # above the recent mean loss make a spike; looking waits for the device in every step
    )
    warmup: float = 0.0  # share of the run in which learning rates rise from 0
    decay: float = 0.6  # share of the run, its last, in which they fall
    decay_shape: Literal["linear", "cosine"] = "linear"  # how they fall
    final_lr: float = 0.1  # … to this share of their peak
    log_interval: int = 10  # steps between log lines
    eval_interval: int | None = None  # steps between evaluations; None: only at the end
    eval_tasks: str | None = (
        None  # synthetic tasks to solve at each evaluation, as addition,sorting: share solved
    )
    save_interval: int | None = 500  # steps between checkpoints; None: only at the end
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # of activations; weights stay float32
    )
    compile: bool | None = None  # torch.compile; None: on CUDA
    shard: bool = False  # with torchrun: each rank keeps a share of the model, for models too large for one device
    sample_prompt: str | None = (
        None  # text to continue by 200 tokens when training is done; None: write nothing
    )
    wandb: bool = False  # log to Weights & Biases too (its own WANDB_… environment variables apply)

    def __post_init__(self):
        super().__post_init__()
        for name in (
            "batch_tokens micro_batch_size max_steps max_tokens max_seconds log_interval eval_interval "
            "save_interval eps grad_clip spike_deviations"
        ).split():
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf, f"{name}={value} must be above 0, and finite"
            )
        for name in "muon_lr embed_lr head_lr scalar_lr learning_rate weight_decay".split():
            require(
                0 <= getattr(self, name) < math.inf,
                f"{name}={getattr(self, name)} must be at least 0, and finite",
            )
        ends = (self.max_steps, self.max_tokens, self.max_seconds) != (
            None,
            None,
            None,
        ) or self.eval_only
        require(ends, "the run has no end: give max_steps, max_tokens or max_seconds")
        require(
            not (self.resume and self.overwrite),
            "resume=True keeps a run, overwrite=True deletes it: choose one",
        )
        for name in "momentum momentum_warmup beta1 beta2 warmup decay final_lr".split():
            require(
                0 <= getattr(self, name) <= 1,
                f"{name}={getattr(self, name)} must be between 0 and 1",
            )
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be at least 0 and below 2**63")

    def split_batch(self) -> tuple[int, int]:
        """(sequences per forward pass, forward passes per optimizer step) of each rank. Raises UserError."""
        tokens, count, rows = self.batch_tokens, ranks.world_size(), self.micro_batch_size
        micro_tokens = (rows or 1) * self.block_size * count
        require(
            tokens % micro_tokens == 0,
            f"batch_tokens={tokens} is not divisible by the {micro_tokens} tokens of a "
            f"micro-step (micro_batch_size={rows} × block_size={self.block_size} × {count} ranks)",
        )
        rows = rows or tokens // micro_tokens
        return rows, tokens // (rows * self.block_size * count)

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used, by the limit that is nearest; the run ends at 1."""
        limits = (
            (self.max_steps, step),
            (self.max_tokens, step * self.batch_tokens),
            (self.max_seconds, seconds),
        )
        return min(
            1.0, max((used / limit for limit, used in limits if limit is not None), default=0.0)
        )


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers

# Five odd polynomials that drive singular values in (0, 1] towards 1, each the best for what the one before leaves
# (Polar Express, Amsel et al. 2025, arXiv:2505.16932; coefficients computed with a safety margin of 2 %).
POLAR_EXPRESS = (
    (8.1566, -22.4833, 15.8788),
    (4.0429, -2.8089, 0.5000),
    (3.8917, -2.7725, 0.5061),
    (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
)


@compiled
def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all about 1. (N, rows, columns) in and out."""
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices  # the products below are cheaper on the short side
    x = x.bfloat16() if x.is_cuda else x
    x = x / (
        x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6
    )  # no singular value exceeds the Frobenius norm
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a
        )  # a·x + (b·G + c·G²)·x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum: all directions of a matrix move equally fast (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon). Matrices of one shape are computed as one stack, dealt out to the ranks.

    Weight decay is cautious (arXiv:2510.12402): it acts where it agrees with the sign of the update.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                stacks.setdefault(p.shape, []).append(p)
            for (rows, columns), params in stacks.items():
                for p in params:
                    self.state[p] = self.state[p] or {"momentum": torch.zeros_like(p)}
                triples = ((p, p.grad, self.state[p]["momentum"]) for p in params)
                weights, grads, means = zip(*(map(ranks.local, triple) for triple in triples))
                torch._foreach_lerp_(means, grads, 1 - group["momentum"])
                ahead = torch.stack(grads).lerp_(
                    torch.stack(means), group["momentum"]
                )  # Nesterov: one step ahead
                updates = ranks.share(
                    orthogonalize, ahead, rows, sharded=weights[0] is not params[0]
                )
                updates *= max(1, rows / columns) ** 0.5
                before = torch.stack(weights)
                decay = group["weight_decay"] * (updates * before > 0)
                torch._foreach_copy_(
                    weights, list(before - group["lr"] * (updates + decay * before))
                )


def make_optimizers(
    model: GPT, config: TrainConfig, device: torch.device
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the hidden matrices unless optimizer=adamw. Every parameter is in exactly one group."""
    groups: dict[str, dict] = {}
    for name, p in model.named_parameters():
        if (
            config.optimizer == "adamw"
        ):  # nanoGPT's rule: decay what is a matrix or a table, not what is a vector
            decay = config.weight_decay if p.ndim >= 2 else 0.0
            kind, rate = "vectors" if p.ndim < 2 else "matrices", config.learning_rate
        elif name.startswith("h.") and p.ndim == 2 and "value_gate" not in name:
            kind, rate, decay = "hidden", config.muon_lr, config.weight_decay
        elif name.startswith(("wte", "wpe", "value_embeds", "bigrams")):
            kind, rate, decay = "tables", config.embed_lr, 0.0
        else:
            head = name == "lm_head.weight"
            kind, rate, decay = (
                "head" if head else "scalars",
                config.head_lr if head else config.scalar_lr,
                0.0,
            )
        group = groups.setdefault(
            kind, {"params": [], "lr": rate, "peak_lr": rate, "weight_decay": decay}
        )
        group["params"].append(p)
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    muon = [Muon([groups.pop("hidden")])] if "hidden" in groups else []
    betas, fused = (config.beta1, config.beta2), device.type in ("cpu", "cuda")
    return [torch.optim.AdamW(groups.values(), betas=betas, eps=config.eps, fused=fused), *muon]


def lr_scale(progress: float, config: TrainConfig) -> float:
    """Share of the peak learning rates at `progress` in [0, 1] of the budget: rise, stay, fall."""
    if progress < config.warmup:
        return progress / config.warmup
    fallen = max(0.0, progress - (1 - config.decay)) / config.decay if config.decay else 0.0
    fallen = 0.5 - 0.5 * math.cos(math.pi * fallen) if config.decay_shape == "cosine" else fallen
    return 1 - fallen * (1 - config.final_lr)


def set_schedule(
    optimizers: list[torch.optim.Optimizer], progress: float, config: TrainConfig
) -> None:
    """Write the learning rates, and Muon's momentum and weight decay, that belong to `progress` into the groups."""
    scale = lr_scale(progress, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
            if isinstance(optimizer, Muon):
                warm = (
                    min(1.0, progress / config.momentum_warmup) if config.momentum_warmup else 1.0
                )
                group["momentum"] = 0.85 + (config.momentum - 0.85) * warm
                group["weight_decay"] = config.weight_decay * scale


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(
    model, data, split: str, block_size: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    """The figures of `evaluate_folder`; of a mixture, each folder's own and their means, weighted by share."""
    parts = [
        (name, share, own)
        for name, (share, source) in data.sources.items()
        if (own := evaluate_folder(model, source, split, block_size, batch_size, device))
    ]
    keys, total = parts[0][2] if parts else [], sum(share for _, share, _ in parts)
    figures = {key: sum(share * own[key] for _, share, own in parts) / total for key in keys}
    each = {f"{key}_{name}": own[key] for name, _, own in parts for key in keys}
    return figures | (each if len(data.sources) > 1 else {})


@torch.no_grad()
def evaluate_folder(
    model, data: Data, split: str, block_size: int, batch_size: int, device
) -> dict[str, float]:
    """Loss (nats per token) and bits per byte of the original text over the whole split; {} where there is none.

    Predicting where a document ends counts in the loss but not in the bits per byte: that token has no bytes.
    """
    token_bytes, sums = (
        torch.from_numpy(data.tokenizer.token_bytes),
        torch.zeros(4, dtype=torch.float64),
    )
    place = ranks.rank(), ranks.world_size()
    model.eval()
    for tokens, targets in data.eval_batches(split, block_size, batch_size, *place):
        tokens, targets = torch.from_numpy(tokens), torch.from_numpy(targets)
        loss = (
            model(tokens.to(device), targets.to(device), reduction="none").cpu().double()
        )  # (B, T), 0 if target -1
        n_bytes = token_bytes[targets.clamp(min=0)] * (targets >= 0)
        sums += torch.stack(
            [loss.sum(), (targets >= 0).sum(), (loss * (n_bytes > 0)).sum(), n_bytes.sum()]
        )
    model.train()
    nats, count, text_nats, text_bytes = ranks.all_sum(sums).tolist()
    bpb = text_nats / max(1, text_bytes) / math.log(2)
    return {f"{split}_loss": nats / count, f"{split}_bpb": bpb} if count else {}


# ---------------------------------------------------------------------------------------------------------------------
# The run


class Run:
    """All that changes in a run: what a checkpoint holds, and what a resumed run takes back from it."""

    KEPT = {
        "step": int,
        "seconds": float,
        "best": float,
    }  # optimizer steps, training time, lowest validation loss

    def __init__(self, config: TrainConfig, data, device: torch.device, dtype: torch.dtype):
        self.config, self.data, self.device = config, data, device
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.spikes = SpikeWatch(config.on_spike, config.spike_deviations)
        self.exam = (
            exam(data.tokenizer, config.eval_tasks, config.block_size) if config.eval_tasks else {}
        )
        torch.manual_seed(config.seed)
        self.model = GPT(config, dtype)
        ranks.shard(self.model, device, dtype) if config.shard else self.model.to(device)
        self.optimizers = make_optimizers(self.model, config, device)
        # float16 cannot hold small gradients: the loss is scaled up, and the gradients down again before a step.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def restore(self, checkpoint: dict) -> None:
        load_state(checkpoint, self.model, self.optimizers, self.config.shard)
        self.step, self.seconds, self.best = (
            kind(checkpoint[name]) for name, kind in self.KEPT.items()
        )
        self.spikes.restore(checkpoint["spikes"])
        self.scaler.load_state_dict(checkpoint["scaler"])

    def save(self, path: Path, keep_old: Path | None = None) -> bool:
        """Whether the disk took it; if not, that was said, and what was at `path` is still there."""
        state = state_of(self.model, self.optimizers)
        require(
            state, f"the weights are no longer finite after step {self.step}: they were not saved"
        )
        return save_checkpoint(
            path,
            state
            | {
                "format": CHECKPOINT_FORMAT,
                "config": asdict(self.config),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "tokens": self.step * self.config.batch_tokens,
                "seconds": self.seconds,
                "best": self.best,
                "data": self.data.fingerprint,
                "tokenizer": self.data.tokenizer.to_json(),
                "torch": str(torch.__version__),
                "spikes": self.spikes.state(),
            },
            keep_old,
            self.config.shard,
        )

    def take_step(self, network, batches: TrainBatches) -> Tensor:
        """One optimizer step; returns its loss, the mean over micro-steps, still on the device."""
        set_schedule(self.optimizers, self.config.progress(self.step, self.seconds), self.config)
        total, place = torch.zeros((), device=self.device), ranks.rank()
        torch.manual_seed(
            hash((self.config.seed, self.step, place))
        )  # dropout too is a function of the step
        for micro_step in range(batches.grad_accum):
            ranks.sync_gradients(network, micro_step == batches.grad_accum - 1)
            batch = batches(self.step + self.spikes.ahead, micro_step, place)
            tokens, targets = (to_device(array, self.device) for array in batch)
            loss = network(tokens, targets) / batches.grad_accum
            self.scaler.scale(loss).backward()
            total += loss.detach()
        # Looking at the loss waits for the device, so only who asks for it does in every step.
        spike = self.config.on_spike and self.spikes.look(
            self.step, ranks.mean(total.clone()).item()
        )
        if self.config.grad_clip is not None and not spike:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        if not spike:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def validate(self, network) -> dict[str, float]:
        """The losses on the whole validation split, and the shares of the synthetic tasks that are solved."""
        losses = evaluate(
            network,
            self.data,
            "val",
            self.config.block_size,
            self.config.split_batch()[0],
            self.device,
        )
        return losses | task_accuracy(self.model, self.data.tokenizer, self.exam)


def train(config: TrainConfig, watch=list) -> dict:
    """Do the run that `config` describes; returns its summary. Raises UserError.

    watch: called as the loop begins; returns a list. As soon as that holds anything, the run ends after the step under
    way, saved to be resumed, and what it holds is the summary's "stopped_by".
    """
    # What the run needs, checked before anything is written.
    started, out = time.perf_counter(), Path(config.out or "out/default")
    device, dtype = pick_device(config.device, config.dtype)
    data = ranks.in_turn(lambda: open_data(made(config.data, config.prepare)))
    check_folder(out, config.resume or config.eval_only, config.overwrite)
    checkpoint = ranks.in_turn(lambda: load_latest(out)) if config.resume else None
    begin = checkpoint or (load_weights(config.init_from) if config.init_from else None)
    with explained(
        "the run cannot begin", "check its options, and the checkpoint if it begins from one"
    ):
        config = adopt(config, begin, data, resuming=checkpoint is not None)
        split = *config.split_batch(), ranks.world_size()
        batches = TrainBatches(data, config.block_size, config.seed, *split, config.align_documents)
        prompt = [
            data.tokenizer.end_of_text,
            *data.tokenizer.encode(config.sample_prompt or "").tolist(),
        ]
        require_memory(config, batches.batch_size, device.type == "cpu" and not config.eval_only)
        run = Run(config, data, device, dtype)
        if begin:
            run.restore(begin) if checkpoint else load_state(begin, run.model)
    network = try_compile(run.model, batches.batch_size, device, config.compile)
    trained = ranks.replicate(network) if batches.world_size > 1 and not config.shard else network
    made_log = Silence if ranks.rank() or config.eval_only else Log
    log = made_log(
        out, run.step, run.seconds, asdict(config), *describe(run.model, device, batches)
    )

    finished, stopping, saved = (
        config.eval_only or config.progress(run.step, run.seconds) >= 1,
        False,
        True,
    )
    losses, val, stop = [], {}, watch()
    origin = time.perf_counter() - run.seconds  # training time is the time since `origin`
    while not finished:
        losses.append(run.take_step(trained, batches))
        if run.spikes.rewinds and (out / "last.pt").exists():
            run.restore(run.spikes.rewound(run.step, ranks.in_turn(lambda: load_latest(out))))
            log.rewind(run.step, run.seconds)
            losses, origin = [], time.perf_counter() - run.seconds
            continue
        run.seconds, stopping = ranks.agree(time.perf_counter() - origin, bool(stop))
        finished = config.progress(run.step, run.seconds) >= 1 or stopping
        intervals = config.log_interval, config.eval_interval, config.save_interval
        logs, evals, saves = (
            finished or (interval and run.step % interval == 0) for interval in intervals
        )
        if not (logs or evals or saves):
            continue  # the device is not waited for
        values, losses = (
            ranks.mean(torch.stack(losses)).tolist(),
            [],
        )  # here the program waits for the device
        rates = (group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups)
        loss = run.spikes.mean(values, run.step, rates)
        run.seconds, _ = ranks.agree(time.perf_counter() - origin, False)
        val = run.validate(network) if evals and not stopping else {}
        progress = config.progress(run.step, run.seconds)
        batches.warn_of_repeats(run.step / progress)
        log.write(
            run.step, run.seconds, progress, **loss, lr_scale=lr_scale(progress, config), **val
        )
        if val.get("val_loss", math.inf) < run.best:
            run.best = val["val_loss"]
            run.save(out / "best.pt")
        if saves:
            saved = run.save(out / "last.pt", keep_old=out / "previous.pt")
        origin = time.perf_counter() - run.seconds  # what was done since did not count

    require(
        saved, f"the last state, of step {run.step}, could not be written: the reason stands above"
    )
    if stopping:
        log.pause(run.step)
        return {"steps": run.step, "stopped_by": stop}
    val = val or run.validate(network)  # resumed with nothing left to do
    summary = log.finish(
        run.step, run.seconds, time.perf_counter() - started, peak_memory_mb(device), **val
    )
    if config.sample_prompt is not None:
        new = run.model.generate(
            [prompt], 200, 0.7, top_k=50, seed=config.seed, stop_token=prompt[0]
        )[0]
        print("---", config.sample_prompt + data.tokenizer.decode(new), sep="\n")
    return summary


def main(argv: list[str]) -> int:
    config = read_options(TrainConfig, argv, "train.py config/NAME.py")
    name = Path(argv[0]).stem if argv and not argv[0].startswith("-") else "default"
    config = replace(config, out=config.out or f"out/{name}")
    keep_memory()
    if ranks.restarts():  # by torchrun: whatever was asked for at first, now it is to go on
        config = replace(config, resume=True, overwrite=False)
    with ranks.together(), locked(Path(config.out), ranks.rank() == 0 and not config.eval_only):
        summary = train(config, catch_signals)
    return RESUMABLE if "stopped_by" in summary else 0


if __name__ == "__main__":
    run_command(main, many=True)
