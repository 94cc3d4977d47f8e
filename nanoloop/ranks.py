"""One run in many processes: who is who, what is summed and agreed on, how a model too large for one device is cut.

`torchrun --nproc_per_node=8 train.py config/x.py` starts a process, a *rank*, per GPU. Each computes its own sequences
of the global batch; gradients are averaged once per optimizer step. With shard=True every rank also keeps only its
share of each parameter, gradient and optimizer state (ZeRO stage 3, Rajbhandari et al. 2020, arXiv:1910.02054; torch's
FSDP2). In a single process every function here does the obvious thing, or nothing. It imports console alone.
"""

import contextlib
import datetime
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanoloop.options import UserError, explain, first_line

# ---------------------------------------------------------------------------------------------------------------------
# Ranks: torchrun tells each process its place by environment variables.


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def restarts() -> int:
    """How often torchrun has started this run anew because one of its processes failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextlib.contextmanager
def together():
    """In here the ranks are connected, and the first alone prints. When one fails, all end, with its message."""
    if "RANK" not in os.environ:
        yield
        return
    store, number, count = next(dist.rendezvous("env://", timeout=datetime.timedelta(minutes=5)))
    store = dist.PrefixStore(
        f"start {restarts()}", store
    )  # or ranks started anew would call the dead ones
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # of torch 2.13, about names that 2.11 has no others for
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    patience = datetime.timedelta(hours=2)  # the others wait while the first prepares data or saves
    stdout = sys.stdout
    try:
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=patience
        )
        with open(os.devnull, "w") as nowhere:
            sys.stdout = nowhere if number else stdout
            yield
    except Exception as error:
        # The first to fail speaks. The others made the same mistake, or failed because it is gone.
        if store.add("failed", 1) > 1:
            os._exit(1)
        lost = isinstance(error, RuntimeError) and any(
            word in str(error) for word in ("gloo", "NCCL", "Connection")
        )
        told = (
            f"another process of this run has ended ({first_line(error)})"
            if lost
            else explain(error)
        )
        if not told:
            raise
        raise UserError(f"{told.removeprefix('error: ')} [rank {number} of {count}]") from None
    finally:
        sys.stdout = stdout
    dist.destroy_process_group()
    if (
        number
    ):  # all is written; taking down an interpreter whose connections had threads was seen to abort
        os._exit(0)


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place. On CPU tensors it also is where they wait for each other."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    return all_sum(tensor) / world_size()


def agree(seconds: float, stop: bool) -> tuple[float, bool]:
    """The first rank's clock, and whether any rank was told to stop: all must leave the loop at the same step.

    The few bytes travel between the processors while the GPUs compute.
    """
    both = all_sum(torch.tensor([0.0 if rank() else seconds, float(stop)], dtype=torch.float64))
    return both[0].item(), both[1].item() > 0


def in_turn(action):
    """action() of the first rank, then of the others: it may make what they only find."""
    result = None if rank() else action()
    all_sum(torch.zeros(1))
    return action() if rank() else result


# ---------------------------------------------------------------------------------------------------------------------
# Gradients and shards


def replicate(network: nn.Module) -> nn.Module:
    """The network with gradients averaged over the ranks as they arise (Li et al. 2020, arXiv:2006.15704)."""
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Cut every parameter of `model`, a GPT on the CPU, along its rows: each rank keeps its share on its device.

    A block's weights are gathered in `dtype` just before they are used, and forgotten after. The whole model is never
    on one device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*model.h, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)


def sync_gradients(network: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass exchanges gradients: only the last micro-step of an optimizer step has to."""
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP2
        network.set_requires_gradient_sync(wanted)
    elif world_size() > 1:
        network.require_backward_grad_sync = wanted


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor; a whole tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, cut as that is."""
    if not hasattr(like, "to_local") or hasattr(tensor, "to_local"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole tensor: nothing has to be sent.
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def share(function, stack: Tensor, rows: int, sharded: bool) -> Tensor:
    """function(stack) for a function of whole matrices, computed once: each rank takes an equal part of the matrices.

    stack: (N, R, columns); R is all `rows` of each matrix or, if sharded, those that this rank keeps: then every rank
    gathers its own matrices whole and sends the rows of the results back where they belong.
    """
    n, ranks = len(stack), world_size()
    if ranks == 1:
        return function(stack)
    each = -(-n // ranks)  # matrices per rank
    stack = torch.cat([stack, stack.new_zeros(each * ranks - n, *stack.shape[1:])])
    if not sharded:
        results = torch.empty_like(stack)
        dist.all_gather_into_tensor(results, function(stack[rank() * each : (rank() + 1) * each]))
        return results[:n]
    columns, height = stack.size(2), -(-rows // ranks)
    heights = [min(height, max(0, rows - k * height)) for k in range(ranks)]  # as torch.chunk cuts
    theirs, mine = [each * h * columns for h in heights], [each * stack.size(1) * columns] * ranks
    gathered = stack.new_empty(sum(theirs))
    dist.all_to_all_single(gathered, stack.flatten(), theirs, mine)
    matrices = [part.view(each, h, columns) for part, h in zip(gathered.split(theirs), heights)]
    results = function(torch.cat(matrices, dim=1)).split(heights, dim=1)
    returned = torch.empty_like(stack).flatten()
    dist.all_to_all_single(returned, torch.cat([part.flatten() for part in results]), mine, theirs)
    return returned.view_as(stack)[:n]
