"""More than one process: `torchrun`, with the frozen model and the gates sharded by FSDP2 (fully_shard).

    torchrun --standalone --nproc-per-node 8 --no-python seerbench distill paper long

Each process takes its share of every batch's windows, gathers one decoder layer's weights at a time, and keeps
its shard of the gates and of their optimizer's state. Gradients are averaged, so that the run is the one that a
single process would do on the whole batch. Checkpoints hold whole tensors: a run may go on with another number
of processes. Without torchrun everything here is the identity.
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


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Join torchrun's processes for the length of the block, if it started this one; yields this one's device."""
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
    """(this process, all processes): (0, 1) outside of `processes`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard(model: nn.Module, gates: Iterable[nn.Module], device: str) -> None:
    """Shard a causal language model's layers, one by one, and each gate over all processes, onto `device`.

    The output embedding stays where it is: gates learn without logits.
    """
    mesh = dist.device_mesh.init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for part in (*model.model.layers, model.model, *gates):
        fully_shard(part, mesh=mesh)


def shard_whole(model: nn.Module, gates: Iterable[nn.Module], device: str) -> None:
    """The same for training all weights: the output embedding is sharded too, and read through `gathered`."""
    gates = list(gates)
    shard(model, gates, device)
    mesh = next(model.model.parameters()).device_mesh
    weight = distribute_tensor(model.lm_head.weight.detach().to(device), mesh, [Shard(0)])
    model.lm_head.weight = nn.Parameter(weight)


def all_gather_weight(weight: Tensor) -> Tensor:
    """A sharded weight in one piece, to compute with; its gradient comes back averaged over processes."""
    if not isinstance(weight, DTensor):
        return weight
    one = weight.full_tensor(grad_placements=[Partial()])
    if one.requires_grad:
        one.register_hook(lambda gradient: gradient / rank_and_world_size()[1])
    return one


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over processes."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(values)
        values /= rank_and_world_size()[1]
    return values


def broadcast_from_rank0(answer: bool) -> bool:
    """The first process' answer: what all must do together, they must decide together."""
    answers = [answer]
    if rank_and_world_size()[1] > 1:
        dist.broadcast_object_list(answers)
    return answers[0]


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor in one piece. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(param: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, whole, sharded as `param` is."""
    if not isinstance(param, DTensor):
        return tensor
    return distribute_tensor(tensor.to(param.device), param.device_mesh, param.placements)
