"""Train a GPT: configuration, optimizers, schedule, evaluation, the loop.

    python train.py config/quickstart.py                  # a recipe
    python train.py config/quickstart.py --n_layer=4      # a recipe with one option changed
    python train.py --help                                # all options, with their defaults
    torchrun --nproc_per_node=8 train.py config/gpt2.py   # a recipe on eight GPUs

A run writes to its folder, out/<name of the config file>/. Read from the top; the loop is at the
end of `train`.
"""

import nanoloop.environment  # noqa: F401, says how to install what is missing

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model import GPT, GPTConfig, check, check_fields
from nanoloop import checkpoint, ranks
from nanoloop.attention import kernel_priority
from nanoloop.data import TrainBatches, mean_by_share, open_data
from nanoloop.device import (
    compile_model,
    describe,
    peak_memory_mb,
    pick_device,
    require_memory,
    to_device,
    tune_process,
)
from nanoloop.muon import Muon, Optimizers
from nanoloop.options import EXIT_RESUMABLE, StopFlag, read_given, require, run_program
from nanoloop.programs import prepare_missing, sample_run
from nanoloop.runlog import RunLog, check_folder, default_out, locked_run, resumed_summary

# --------------------------------------------------------------------------------------------------
# Configuration. A field's comment is its --help text; the field is the only home of its default.


@dataclass(frozen=True)
class TrainConfig(GPTConfig):
    """Train a GPT."""

    # data and output
    data: str = "data/python"  # a prepared folder, or a mixture by share: data/a:0.65,data/b:0.35
    prepare: str | None = None  # options of prepare_data.py that make missing data; None: do not
    out: str | None = None  # folder of the run; None: out/<name of the config file>
    resume: bool = False  # resume from the last checkpoint in the folder, if there is one
    overwrite: bool = False  # delete the run in the folder and begin anew
    init_from: str | None = None  # initial weights: a run, a checkpoint, gpt2, …; None: random
    eval_only: bool = False  # evaluate the weights of init_from, or of the run with resume=True
    align_documents: bool = False  # begin every sequence with a document (best-fit packing)
    verify: bool = False  # check all files of the data, also those that an earlier run checked
    seed: int = 1337  # of the initial weights, the data order and dropout

    # batch and length
    batch_tokens: int = 131_072  # tokens per optimizer step, over all micro-steps and ranks
    micro_batch_size: int | None = None  # sequences per forward pass; None: the rank's whole batch
    max_steps: int | None = None  # the run ends after this many optimizer steps …
    max_tokens: int | None = None  # … or tokens …
    max_seconds: float | None = None  # … or seconds of training, whichever comes first

    # size and parts of the model: GPTConfig

    # optimizer
    optimizer: Literal["muon", "adamw"] = "muon"  # Muon for hidden matrices, or AdamW for all
    muon_lr: float = 0.02  # peak learning rate of the hidden matrices under Muon
    embed_lr: float = 0.3  # … of the token, position, value and pair tables (optimizer=muon)
    head_lr: float = 0.006  # … of the output head (optimizer=muon)
    scalar_lr: float = 0.02  # … of gains, biases, gates and residual scalars (optimizer=muon)
    learning_rate: float = 6e-4  # … of all parameters (optimizer=adamw)
    weight_decay: float = 0.1  # of hidden matrices; of all matrices and tables (optimizer=adamw)
    momentum: float = 0.95  # of Muon, after a rise from 0.85
    momentum_warmup: float = 0.15  # fraction of the run in which the momentum rises
    beta1: float = 0.8  # AdamW's running mean of gradients
    beta2: float = 0.95  # AdamW's running mean of squared gradients
    eps: float = 1e-10  # AdamW's; small, because a head near 0 passes small gradients to tables
    grad_clip: float | None = None  # largest norm of the gradient; None: off

    # schedule, in fractions of the run
    warmup: float = 0.0  # learning rates rise, from 1 % of their peak
    decay: float = 0.6  # learning rates fall, at the end
    decay_shape: Literal["linear", "cosine"] = "linear"  # how they fall
    final_lr: float = 0.1  # where they end, as a fraction of their peak

    # logging, evaluation, checkpoints
    log_interval: int | None = None  # steps between log lines; None: step 1, then every 5 seconds
    eval_interval: int | None = None  # steps between evaluations; None: only at the end
    save_interval: int | None = 500  # steps between checkpoints; None: only at the end
    sample_prompt: str | None = None  # text to continue by 200 tokens at the end; None: no sample
    wandb: bool = False  # log to Weights & Biases too; its WANDB_… variables apply

    # machine
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of activations
    compile: bool | None = None  # torch.compile; None: on CUDA
    shard: bool = False  # with torchrun: each rank keeps a part of the model (FSDP2)

    def __post_init__(self):
        super().__post_init__()
        positive = (
            "batch_tokens micro_batch_size max_steps max_tokens max_seconds "
            "log_interval eval_interval save_interval eps grad_clip"
        )
        check_fields(self, positive, lambda x: 0 < x < math.inf, "above 0 and finite")
        rates = "muon_lr embed_lr head_lr scalar_lr learning_rate weight_decay"
        check_fields(self, rates, lambda x: 0 <= x < math.inf, "at least 0 and finite")
        fractions = "momentum_warmup warmup decay final_lr"
        check_fields(self, fractions, lambda x: 0 <= x <= 1, "between 0 and 1")
        check_fields(self, "momentum beta1 beta2", lambda x: 0 <= x < 1, "at least 0 and below 1")
        total = self.warmup + self.decay
        check(total < 1 + 1e-9, f"warmup + decay must be at most 1, got {total:g}")
        check_fields(self, "seed", lambda x: 0 <= x < 2**63, "at least 0 and below 2**63")
        has_end = self.max_steps or self.max_tokens or self.max_seconds or self.eval_only
        check(has_end, "the run has no end: set max_steps, max_tokens or max_seconds")
        check(
            not (self.resume and self.overwrite),
            "resume=True keeps a run, overwrite=True deletes it: choose one",
        )

    def split_batch(self) -> tuple[int, int]:
        """Return each rank's sequences of a micro-step, and micro-steps of a step.

        Raises UserError if batch_tokens cannot be split so.
        """
        smallest = self.micro_batch_size or 1
        tokens = smallest * self.block_size * ranks.world_size()
        count, rest = divmod(self.batch_tokens, tokens)
        message = f"batch_tokens={self.batch_tokens} is not a multiple of {tokens} tokens: "
        message += f"{smallest} sequences × {self.block_size} × {ranks.world_size()} ranks"
        require(rest == 0 and count > 0, message)
        return (smallest, count) if self.micro_batch_size else (count, 1)

    def progress(self, step: int, seconds: float) -> float:
        """Return the fraction of the run that is done, by the limit that ends it first."""
        limits = (
            (step, self.max_steps),
            (step * self.batch_tokens, self.max_tokens),
            (seconds, self.max_seconds),
        )
        fractions = [done / limit for done, limit in limits if limit]
        return min(1.0, max(fractions, default=0.0))


# --------------------------------------------------------------------------------------------------
# Optimizers and schedule


def make_optimizers(model: GPT, config: TrainConfig) -> Optimizers:
    """Build AdamW, and Muon for the hidden matrices unless optimizer=adamw.

    Every parameter is in exactly one group.
    """
    groups: dict[str, dict] = {}

    def add(p: Tensor, group: str, lr: float, weight_decay: float = 0.0) -> None:
        new = {"params": [], "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}
        groups.setdefault(group, new)["params"].append(p)

    for name, p in model.named_parameters():
        # AdamW alone has nanoGPT's two groups: matrices and tables decay, vectors do not.
        if config.optimizer == "adamw":
            decay = config.weight_decay if p.ndim >= 2 else 0.0
            add(p, f"decay {decay}", config.learning_rate, decay)
        elif name.startswith("h.") and p.ndim == 2 and "value_gate" not in name:
            add(p, "hidden", config.muon_lr, config.weight_decay)
        elif name.startswith(("wte", "wpe", "value_embeds", "bigrams")):
            add(p, "tables", config.embed_lr)
        elif name == "lm_head.weight":
            add(p, "head", config.head_lr)
        else:
            add(p, "scalars", config.scalar_lr)

    hidden = groups.pop("hidden", None)
    adamw = torch.optim.AdamW(
        groups.values(),
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    return Optimizers([adamw, Muon([hidden])] if hidden else [adamw])


def lr_scale(progress: float, config: TrainConfig) -> float:
    """Return the fraction of the peak learning rates at `progress`: rise, stay, fall."""
    if progress < config.warmup:
        return max(progress / config.warmup, 0.01)  # a rate of 0 would waste the first step
    decay_start = 1 - config.decay
    if progress <= decay_start:
        return 1.0
    fallen = (progress - decay_start) / config.decay
    if config.decay_shape == "cosine":
        fallen = 0.5 - 0.5 * math.cos(math.pi * fallen)
    return 1 - fallen * (1 - config.final_lr)


def set_schedule(optimizers: Optimizers, progress: float, config: TrainConfig) -> None:
    """Set learning rates, and Muon's momentum and weight decay, for `progress`."""
    scale = lr_scale(progress, config)
    warmed = 1.0
    if progress < config.momentum_warmup:
        warmed = progress / config.momentum_warmup
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
            if isinstance(optimizer, Muon):
                group["momentum"] = 0.85 + (config.momentum - 0.85) * warmed
                # Muon multiplies it by the learning rate, so it falls with the square of the scale.
                group["weight_decay"] = config.weight_decay * scale


# --------------------------------------------------------------------------------------------------
# Evaluation


@torch.no_grad()
def evaluate(
    model, data, split: str, block_size: int, batch_size: int, device, is_stopping=None
) -> dict:
    """Evaluate the whole split, always on the same windows; {} if it is empty.

    is_stopping(): asked before every batch; True abandons the evaluation, {} too.
    Returns {"val_loss": …, "val_bpb": …}, the loss in nats per token, end-of-text included, and
    bits per byte of the original text, so that runs with different tokenizers compare. End-of-text
    has no bytes and does not count there. Of a mixture: the means by share, and each folder's own
    figures.
    """
    results = {}
    model.eval()
    for name, (_, source) in data.sources.items():
        token_bytes = torch.from_numpy(source.tokenizer.token_bytes)
        # nats, tokens, nats of the tokens that are text, bytes of text
        sums = torch.zeros(4, dtype=torch.float64)
        batches = source.eval_batches(
            split, block_size, batch_size, ranks.rank(), ranks.world_size()
        )
        for batch in batches:
            if is_stopping and is_stopping():
                model.train()
                return {}
            tokens, targets = map(torch.from_numpy, batch)
            loss = model(tokens.to(device), targets.to(device), reduction="none")
            loss = loss.cpu().double()  # (B, T), 0 where a target is -1; waits for the device
            is_scored = targets >= 0
            n_bytes = token_bytes[targets.clamp(min=0)] * is_scored
            text_loss = loss * (n_bytes > 0)
            sums += torch.stack([loss.sum(), is_scored.sum(), text_loss.sum(), n_bytes.sum()])
        nats, n_tokens, text_nats, text_bytes = ranks.all_sum(sums).tolist()
        if n_tokens:
            bits_per_byte = text_nats / max(1, text_bytes) / math.log(2)
            results[name] = {f"{split}_loss": nats / n_tokens, f"{split}_bpb": bits_per_byte}
    model.train()
    return mean_by_share(data, results)


# --------------------------------------------------------------------------------------------------
# Training


def train_step(network, optimizers, scaler, batches, step: int, config, device) -> Tensor:
    """Take one step; return the mean loss of its micro-steps, still on the device."""
    # Dropout depends on seed, step and rank alone, so a resumed run repeats it. The hash of whole
    # numbers is the same in every process.
    torch.manual_seed(hash((config.seed, step, ranks.rank())))
    total = torch.zeros((), device=device)
    for micro_step in range(batches.grad_accum):
        ranks.sync_gradients(network, micro_step == batches.grad_accum - 1)
        tokens, targets = batches(step, micro_step, ranks.rank())
        loss = network(to_device(tokens, device), to_device(targets, device)) / batches.grad_accum
        scaler.scale(loss).backward()
        total += loss.detach()
    if config.grad_clip is not None:
        scaler.unscale_(optimizers)
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
    scaler.step(optimizers)
    scaler.update()
    network.zero_grad(set_to_none=True)
    return total


@kernel_priority()
def train(config: TrainConfig, stop: StopFlag | None = None, given=frozenset()) -> dict:
    """Do the run that `config` describes; return its summary. Raises UserError.

    stop: listens for Ctrl-C and SIGTERM. After a signal the run takes the step under way, saves,
    and the summary has "stopped_by", the number of the signal. given: the names of options that the
    user set, perhaps to their defaults.
    """
    # Check all that the run needs before its folder is written.
    started = time.perf_counter()
    out = Path(config.out or "out/default")
    device, dtype = pick_device(config.device, config.dtype)
    # Rank 0 prepares missing data and checks it first; the others find it checked.
    data = ranks.in_turn(
        lambda: open_data(prepare_missing(config.data, config.prepare), config.verify)
    )
    check_folder(out, config.resume or config.eval_only, config.overwrite)
    start, is_resumed = checkpoint.find_start(out, config)
    config = checkpoint.complete(config, start, data, is_resumed, given)
    batch_size, grad_accum = config.split_batch()
    batches = TrainBatches(
        data,
        config.block_size,
        config.seed,
        batch_size,
        grad_accum,
        ranks.world_size(),
        config.align_documents,
    )
    require_memory(config, batch_size, device.type == "cpu" and not config.eval_only)

    # The model, its optimizers, and the state of the run.
    torch.manual_seed(config.seed)
    model = ranks.build(lambda: GPT(config, dtype), device, config.shard)
    optimizers = make_optimizers(model, config)
    # float16 cannot hold small gradients: the loss is scaled up, and the gradients down again.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    step, seconds, best_loss = checkpoint.restore(start, is_resumed, model, optimizers, scaler)
    del start  # its tensors
    if is_resumed and not config.eval_only:
        summary = resumed_summary(out, step, config.progress(step, seconds))
        if summary is not None:  # of a run that is finished
            return summary
    # The loop calls `network`, which has the weights of `model` and may be wrapped and compiled.
    replicated = ranks.replicate(model, config.shard)
    network = compile_model(replicated, batch_size, device, config.compile)
    log = RunLog(out, asdict(config), step, seconds, *describe(model, device, batches))

    def save(name: str) -> bool:
        """Write a checkpoint of the current step; return False if the disk fails."""
        state = checkpoint.pack(model, optimizers, scaler, data, config, step, seconds, best_loss)
        return checkpoint.save(out / name, state)

    losses: list[Tensor] = []  # of the steps since the last log line, still on the device
    is_saved = True
    saved_step = step
    logged_seconds = -math.inf
    clock = ranks.Clock(seconds, stop)
    while True:
        seconds, stopping = clock.read()
        progress = config.progress(step, seconds)
        is_last = stopping or config.eval_only or progress >= 1
        # Each is due at the end and at multiples of its interval.
        should_log, should_eval, should_save = (
            is_last or bool(step and interval and step % interval == 0)
            for interval in (config.log_interval, config.eval_interval, config.save_interval)
        )
        if config.log_interval is None:
            should_log = is_last or seconds - logged_seconds >= 5
        if should_log or should_eval or should_save:
            # Here the program waits for the device.
            recent = ranks.mean(torch.stack(losses)).tolist() if losses else []
            losses = []
            for number, loss in enumerate(recent, step - len(recent) + 1):
                require(
                    math.isfinite(loss),
                    f"the loss of step {number} is {loss}; the last checkpoint is from an earlier "
                    "step. Set lower learning rates, or another --dtype than float16",
                )
            # Read the clock again: the queued steps are complete only now.
            seconds, _ = clock.read()
            progress = config.progress(step, seconds)
            if recent:
                logged_seconds = seconds
                batches.warn_of_repeats(step / progress)
                figures = {"loss": math.fsum(recent) / len(recent), "lr": optimizers.lr()}
                log.write(step, seconds, progress, figures)
            # Saved before evaluating, which may run out of memory.
            if should_save and step > saved_step:
                is_saved = save("last.pt")
                saved_step = step
            val = {}
            if should_eval and not stopping:
                sizes = (config.block_size, batch_size)
                val = evaluate(network, data, "val", *sizes, device, clock.has_signal)
                log.add(step, val)
            if val.get("val_loss", math.inf) < best_loss and not config.eval_only:
                best_loss = val["val_loss"]
                save("best.pt")
            clock.set(seconds)  # evaluating and saving do not count
            if clock.has_signal() and not stopping:
                continue  # a signal ended the evaluation: save, then stop
        if is_last:
            break
        set_schedule(optimizers, progress, config)
        losses.append(train_step(network, optimizers, scaler, batches, step, config, device))
        step += 1

    require(is_saved, f"the last state, of step {step}, was not written: see the warning above")
    if stopping:
        log.pause(step)
        return {"steps": step, "stopped_by": stop.signal}
    summary = log.finish(step, seconds, time.perf_counter() - started, peak_memory_mb(device), val)
    if log.enabled and config.sample_prompt is not None:
        sample_run(out, config)
    return summary


def main(argv: list[str]) -> int:
    config, given = read_given(TrainConfig, argv, "train.py config/NAME.py")
    config = replace(config, out=config.out or default_out(argv))
    # torchrun starts a failed run again: resume it, whatever was asked first.
    if ranks.restarts() and not config.eval_only:
        config = replace(config, resume=True, overwrite=False)
    tune_process()
    with ranks.connected(), locked_run(Path(config.out), config.eval_only):
        summary = train(config, StopFlag(), given)
    return EXIT_RESUMABLE if "stopped_by" in summary else 0


if __name__ == "__main__":
    run_program(main, many=True)
