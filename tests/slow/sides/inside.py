"""Run commands and probes of one checkout, each in a fork of this process.

Started as `python -P inside.py` with the checkout on PYTHONPATH. It imports the large libraries
once and none of the checkout's modules, so a fork is a fresh process that starts at once. Standard
input brings a job a line, as JSON; each is answered by its exit code:

    argv        run this program as `python` does, or …
    probe       … call this function of PROBES with `arguments` and save the result to `result`
    output      file for what it prints
    stdin       file it reads as standard input; none: an empty one
    max_logits  logits that the model holds at once, to force the chunked loss on small sizes
    interrupt   {"signal", "path", "size"}: send the signal when a file that fits has so many bytes
    ranks       run so many processes of the program, as torchrun does
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
import zlib
from glob import glob

import torch

# The optimizers, the options and the pictures need these; their import takes longer than a run.
LIBRARIES = ("torch._dynamo", "numpy", "tyro", "matplotlib.backends.backend_agg", "tqdm")
VOCAB_SIZE = 257  # of the byte tokenizer
DOCUMENT_TOKEN = 256
MAX_SECONDS = 300  # of a job

# --------------------------------------------------------------------------------------------------
# Names that may live in another module in another version: the first home that exists counts.

HOMES = {
    "read_options": [("nanoloop.options", "read_options"), ("console", "read_options")],
    "generate": [("nanoloop.generate", "generate"), ("model", "GPT.generate")],
    "max_logits": [("nanoloop.loss", "MAX_LOGITS"), ("model", "MANY_LOGITS")],
}


def find_home(name: str):
    """Return the object that holds the attribute, and the attribute's name."""
    for module_name, path in HOMES[name]:
        try:
            holder = importlib.import_module(module_name)
        except ModuleNotFoundError:
            continue
        *parents, attribute = path.split(".")
        for parent in parents:
            holder = getattr(holder, parent, None)
        if hasattr(holder, attribute):
            return holder, attribute
    raise LookupError(f"this version has no {name} in any of {HOMES[name]}")


def find(name: str):
    holder, attribute = find_home(name)
    return getattr(holder, attribute)


def set_max_logits(count: int) -> None:
    holder, attribute = find_home("max_logits")
    setattr(holder, attribute, count)


# --------------------------------------------------------------------------------------------------
# Probes


def make_config(options: dict):
    """Build a GPTConfig from those options that are its fields."""
    from model import GPTConfig

    known = {name: options[name] for name in options if name in GPTConfig.__dataclass_fields__}
    return GPTConfig(**known)


def copy_weights(model) -> dict:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def perturb(model) -> None:
    """Add noise to every weight, for many are 0 at first and hide what stands before them."""
    for name, p in model.named_parameters():
        rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        p += 0.2 * torch.randn(p.shape, generator=rng)


def gradients(options: dict, dtype: str) -> dict:
    """Return initial weights, loss, gradients and logits of a model on random tokens."""
    from model import GPT

    sizes = {"vocab_size": VOCAB_SIZE, "document_token": DOCUMENT_TOKEN}
    config = make_config(sizes | options)
    torch.manual_seed(1)
    model = GPT(config, getattr(torch, dtype))
    initial = copy_weights(model)
    perturb(model)
    rng = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCAB_SIZE, (3, config.block_size), generator=rng)
    tokens[:, ::11] = DOCUMENT_TOKEN
    targets = torch.randint(VOCAB_SIZE, tokens.shape, generator=rng)
    targets[0, :5] = -1  # not scored
    torch.manual_seed(3)  # of dropout
    loss = model(tokens, targets)
    loss.backward()
    model.eval()
    with torch.no_grad():
        logits = model(tokens)
        losses = model(tokens, targets, reduction="none")
    return {
        "weights": initial,
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "logits": logits,
        "losses": losses,
    }


def generated(checkpoint: str, dtype: str, settings: list[dict]) -> dict:
    """Return the tokens that a checkpoint's model generates, for each of the settings."""
    from model import GPT

    generate = find("generate")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = GPT(make_config(state["config"]), getattr(torch, dtype))
    model.load_state_dict(state["model"])
    results = {}
    for setting in settings:
        columns = []
        tokens = generate(model, **setting, on_token=columns.append)
        name = " ".join(f"{key}={value}" for key, value in setting.items() if key != "prompts")
        results[f"{name} ({len(setting['prompts'])} prompts)"] = {
            "tokens": tokens,
            "columns": [column.tolist() for column in columns],
        }
    return results


def recipe_options(argv: list[str]) -> dict:
    """Return the options that a recipe and flags come to."""
    from dataclasses import asdict

    import train

    return asdict(find("read_options")(train.TrainConfig, argv, "train.py"))


PROBES = {probe.__name__: probe for probe in (gradients, generated, recipe_options)}

# --------------------------------------------------------------------------------------------------
# Jobs


def redirect(job: dict) -> None:
    """Send output to the job's file and take its input from there."""
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(job.get("stdin") or os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False, buffering=1)


def do(job: dict) -> int:
    """Run a job in this process; return its exit code."""
    if job.get("max_logits"):
        set_max_logits(job["max_logits"])
    if "probe" in job:
        torch.save(PROBES[job["probe"]](**job["arguments"]), job["result"])
        return 0
    sys.argv = job["argv"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run_job(job: dict) -> int:
    """Return the exit code of a job, negative for the signal that ended it."""
    if "ranks" not in job:
        return wait_for(fork(job), job.get("interrupt"))
    ports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    children = []
    for rank in range(job["ranks"]):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"]}
        variables = ports | {name: str(number) for name, number in numbers.items()}
        output = f"{job['output']}.{rank}" if rank else job["output"]
        children.append(fork(job | {"output": output}, variables))
    codes = [wait_for(child, None) for child in children]
    return next((code for code in codes if code), 0)


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fork(job: dict, environment: dict[str, str] | None = None) -> int:
    """Start a job in a fork of this process; return the fork's process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment or {})
        redirect(job)
        code = do(job)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def wait_for(child: int, interrupt: dict | None) -> int:
    """Wait for the end of a child, send its signal when its moment comes, kill it when it hangs."""
    deadline = time.monotonic() + MAX_SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if interrupt and has_size(interrupt["path"], interrupt["size"]):
            os.kill(child, interrupt["signal"])
            interrupt = None
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline += MAX_SECONDS
        time.sleep(0.002)


def has_size(path: str, size: int) -> bool:
    return any(os.path.getsize(file) >= size for file in glob(path, include_hidden=True))


def main() -> None:
    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        print(run_job(json.loads(line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
