"""Train in several processes of torchrun, with model and gates sharded by FSDP2 (`fully_shard`).

    torchrun --standalone --nproc-per-node 8 --no-python seerbench distill paper long

Each process takes its share of the windows of every batch, gathers the weights of one decoder layer at a time, and
keeps its shard of the gates and of their optimizer's state. Gradients are averaged, so the result is that of one
process with the entire batch. Checkpoints hold unsharded tensors, and another number of processes may
continue them. Distillation, fine-tuning and checkpoints call these functions, which change nothing without
torchrun.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from seerbench.errors import ConfigError


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes of torchrun, if it started this one, until the block ends.

    Yields:
        The device of this process: `device` itself, or the GPU with its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device != "cpu":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Return the number of this process and how many there are: (0, 1) outside of `processes`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def require_even_split(windows: int) -> None:
    """Raise ConfigError unless a batch of `windows` splits evenly over all processes."""
    size = rank_and_world_size()[1]
    if windows % size:
        raise ConfigError(
            f"a batch of {windows} windows does not split evenly over {size} processes; change the batch, or the "
            "number of processes"
        )


def shard(model: nn.Module, gates: Iterable[nn.Module], device: str) -> None:
    """Shard the layers of a causal language model, one by one, and each gate over all processes, onto `device`.

    The output embedding is left out, since gates learn without logits.
    """
    mesh = dist.device_mesh.init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for part in (*model.model.layers, model.model, *gates):
        fully_shard(part, mesh=mesh)


def shard_all_weights(model: nn.Module, gates: Iterable[nn.Module], device: str) -> None:
    """Shard a causal language model with its output embedding, and each gate, over all processes, onto `device`.

    The output embedding is read through `all_gather_weight`.
    """
    gates = list(gates)
    shard(model, gates, device)
    mesh = next(model.model.parameters()).device_mesh
    weight = distribute_tensor(model.lm_head.weight.detach().to(device), mesh, [Shard(0)])
    model.lm_head.weight = nn.Parameter(weight)


def all_gather_weight(weight: Tensor) -> Tensor:
    """Return a weight unsharded, to compute with; its gradient is averaged over processes and sharded again."""
    if not isinstance(weight, DTensor):
        return weight
    full = weight.full_tensor(grad_placements=[Partial()])
    if full.requires_grad:
        full.register_hook(lambda gradient: gradient / rank_and_world_size()[1])
    return full


def all_reduce_mean(values: Tensor) -> Tensor:
    """Average `values` over processes, in place, and return them."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(values)
        values /= rank_and_world_size()[1]
    return values


def broadcast_from_rank0(decision: bool) -> bool:
    """Return the decision of the first process, so that all processes take the same one."""
    decisions = [decision]
    if rank_and_world_size()[1] > 1:
        dist.broadcast_object_list(decisions)
    return decisions[0]


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor unsharded. If it is sharded, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(param: Tensor, tensor: Tensor) -> Tensor:
    """Return an unsharded tensor, sharded as `param` is."""
    if not isinstance(param, DTensor):
        return tensor
    return distribute_tensor(tensor.to(param.device), param.device_mesh, param.placements)
