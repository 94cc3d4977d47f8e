"""One run in many processes, called ranks: sums, agreement, gradients and shards.

`torchrun --nproc_per_node=8 train.py config/x.py` starts one rank per GPU. Each rank computes its
sequences of the global batch; gradients are averaged once per optimizer step. With shard=True each
rank also keeps only its rows of every parameter, gradient and optimizer state (ZeRO stage 3,
Rajbhandari et al. 2020, arXiv:1910.02054; torch's FSDP2). In a single process these functions do
the obvious thing or nothing.
"""

import contextlib
import datetime
import functools
import logging
import os
import re
import sys
import time
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanoloop.options import UserError, explain, first_line, reading, require

# -----------------------------------------------------------------------------
# What torchrun tells each process by environment variables


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank(default: int) -> int:
    """Return the index of this process on its machine, or the default without torchrun."""
    return int(os.environ.get("LOCAL_RANK", default))


def restarts() -> int:
    """Return how often torchrun has restarted this run because a process failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


# -----------------------------------------------------------------------------
# The group of ranks


@contextlib.contextmanager
def connected():
    """Connect the ranks for the block; only rank 0 prints. Ends the program with exit code 0.

    When a rank fails, all end, and the first to fail gives the message. A single process that no
    launcher started continues after the block.
    """
    if not {"RANK", "WORLD_SIZE"} & set(os.environ):
        yield
        return
    # torch 2.13 warns of names that have no replacement in torch 2.11.
    warnings.simplefilter("ignore", FutureWarning)
    # On CPUs it warns of how it exchanges rows in `share_work`.
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    hint = "start with torchrun, or type `unset RANK WORLD_SIZE` for a single process"
    patience = datetime.timedelta(minutes=5)
    with reading("the processes of this run cannot connect", hint):
        store, number, count = next(dist.rendezvous("env://", timeout=patience))
    # Each restart has a store of its own, or restarted ranks would talk to dead ones.
    store = dist.PrefixStore(f"start {restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = datetime.timedelta(hours=2)  # the others wait while rank 0 prepares data or saves
    try:
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=timeout
        )
        with open(os.devnull, "w") as nowhere:
            with contextlib.redirect_stdout(nowhere if number else sys.stdout):
                yield
    except Exception as error:
        is_first = False
        with contextlib.suppress(RuntimeError):  # the store ended with rank 0
            is_first = store.add("failed", 1) == 1
        if not is_first:
            os._exit(1)  # another rank gives the message
        message = explain(error)
        if isinstance(error, RuntimeError) and re.search("gloo|NCCL|Connection", str(error)):
            message = f"another process of this run has ended ({first_line(error)})"
        if message is None:
            raise
        raise UserError(f"{message} [rank {number} of {count}]") from None
    dist.destroy_process_group()
    if number:
        # All files are written. An interpreter that had connection threads may abort at its end.
        os._exit(0)
    # torchrun takes another code for a failure, and starts a run again that a signal has stopped.
    sys.exit(0)


def all_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place. On a CPU tensor the ranks also wait here."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    return all_sum(tensor) / world_size()


class Clock:
    """Seconds of training, and whether to stop: the same on all ranks.

    They must leave the loop at the same step. stop: a StopFlag, or None. The two numbers travel
    between the CPUs while the GPUs compute.
    """

    def __init__(self, seconds: float, stop):
        self.stop = stop
        if stop:
            stop.listen()
        self.set(seconds)

    def set(self, seconds: float) -> None:
        self.start = time.perf_counter() - seconds

    def read(self) -> tuple[float, bool]:
        """Return the seconds of rank 0, and whether any rank has received a signal."""
        seconds = 0.0 if rank() else time.perf_counter() - self.start
        has_signal = bool(self.stop and self.stop.signal)
        sums = all_sum(torch.tensor([seconds, float(has_signal)], dtype=torch.float64))
        seconds, signals = sums.tolist()
        return seconds, signals > 0

    def has_signal(self) -> bool:
        return self.read()[1]


def require_equal(values: dict) -> None:
    """Raise UserError, on all ranks, where a value of one rank differs from rank 0's."""
    gathered = [values] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, values)
    for number, found in enumerate(gathered):
        for name, expected in gathered[0].items():
            value = found.get(name)
            require(
                value == expected,
                f"rank {number} has {name}={value}, rank 0 has {expected}: start all ranks with "
                "one command, with data and runs on a file system that they share",
            )


def in_turn(action):
    """Return action(), called by rank 0 first: the other ranks may find what it creates."""
    result = None if rank() else action()
    all_sum(torch.zeros(1))  # a barrier
    return action() if rank() else result


# -----------------------------------------------------------------------------
# Gradients and shards


def replicate(network: nn.Module, is_sharded: bool = False) -> nn.Module:
    """Average gradients over the ranks as they arise (Li et al. 2020, arXiv:2006.15704).

    Returns the network itself in a single process, and if its parameters are sharded.
    """
    if is_sharded or world_size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


@functools.cache
def device_mesh(device_type: str):
    """Return all ranks as a line of devices."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (world_size(),))


def build(make_model, device: torch.device, is_sharded: bool) -> nn.Module:
    """Build a GPT on the device; sharded, split its parameters by rows over the ranks.

    make_model: returns the GPT on the CPU. With shards, rank 0 alone makes the weights; elsewhere
    the model takes no memory (torch's meta device) before each rank receives its rows. A block's
    weights are gathered in compute_dtype just before their use and freed after it, so no device
    ever holds the complete model. Raises UserError for shards in a process without torchrun.
    """
    if not is_sharded:
        return make_model().to(device)
    require(
        dist.is_initialized(),
        "shard=True divides the model among ranks: type torchrun --nproc_per_node=N train.py …, or "
        "leave it out",
    )
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    with torch.device("meta" if rank() else "cpu"):
        model = make_model()
    weights = model.state_dict()
    policy = MixedPrecisionPolicy(param_dtype=model.compute_dtype, reduce_dtype=torch.float32)
    for module in (*model.h, model):
        fully_shard(module, mesh=device_mesh(device.type), mp_policy=policy)
    if rank():
        model.to_empty(device=device)
    for buffer in model.buffers():  # not in state_dict: they can be computed again
        dist.broadcast(buffer, src=0)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)
    return model


def sync_gradients(network: nn.Module, enabled: bool) -> None:
    """Choose whether the next backward pass exchanges gradients.

    Only the last micro-step of an optimizer step has to.
    """
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP2
        network.set_requires_gradient_sync(enabled)
    elif world_size() > 1:
        network.require_backward_grad_sync = enabled


def local(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a sharded tensor, or a plain tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors; of sharded ones, rank 0 has them complete on the CPU, the others none.

    All ranks must call it.
    """
    complete = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):
            tensor = tensor.full_tensor()
            tensor = tensor.cpu() if rank() == 0 else tensor.new_empty(0)
        complete[name] = tensor
    return complete


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Move a complete tensor to the device of `like`, and shard it like that.

    A single number, of shape (), is kept by every rank.
    """
    tensor = tensor.to(like.device)
    if not hasattr(like, "to_local") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the complete tensor, so nothing is sent (src_data_rank=None).
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def share_work(function, stack: Tensor, rows: int, is_sharded: bool) -> Tensor:
    """Return function(stack), where each rank computes an equal part of the matrices.

    stack: (N, R, columns), N matrices of one shape. R is `rows`, the rows of a complete matrix,
    or those that this rank keeps if `is_sharded`. Then each rank gathers the rows of its matrices
    and sends the rows of the results back.
    """
    if world_size() == 1:
        return function(stack)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    columns = stack.size(2)
    shape = torch.Size([len(stack), rows, columns])
    layout = {"shape": shape, "stride": (rows * columns, columns, 1)}
    mesh = device_mesh(stack.device.type)
    kept = [Shard(1) if is_sharded else Replicate()]
    matrices = DTensor.from_local(stack, mesh, kept, **layout).redistribute(placements=[Shard(0)])
    results = DTensor.from_local(function(matrices.to_local()), mesh, [Shard(0)], **layout)
    return results.redistribute(placements=kept).to_local()
