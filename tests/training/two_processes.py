"""Train in the two processes of torchrun that test_fsdp.py starts; the rows go to <out>.json.

torchrun --nproc-per-node 2 two_processes.py distill <world> <out> <killed>    # a second one is killed at step 3
torchrun --nproc-per-node 2 two_processes.py finetune <world> <out> <gates>    # fine-tunes jointly
"""

import json
import sys
from pathlib import Path

from tiny_jobs import ADAM, distill_job, finetune_job
from torch.distributed.tensor import DTensor

from seerbench.training import distill, finetune, fsdp

training, (world, out, other) = sys.argv[1], map(Path, sys.argv[2:])


def write_rows(rows):
    if fsdp.rank_and_world_size()[0] == 0:
        out.with_name(out.name + ".json").write_text(json.dumps(rows))


if training == "finetune":
    with fsdp.processes("cpu") as device:
        changes = {**ADAM, "batch": 2, "steps": 3, "recompute": True, "device": device}
        write_rows(finetune.finetune(finetune_job(world, out, other, **changes)))
    sys.exit()
original = distill.accumulate_gradients
shards = []


def step(model, windows, sets, block, place):
    for part in (model.model.layers[0].mlp.up_proj, sets["v1"][0]):
        weight = next(part.parameters())
        shards.append(isinstance(weight, DTensor) and 2 * weight.to_local().numel() == weight.numel())
    if len(windows) != 1:
        raise AssertionError(f"{len(windows)} windows of a batch of 2")
    return original(model, windows, sets, block, place)


def dies_at_the_third(*arguments):
    dies_at_the_third.calls += 1
    if dies_at_the_third.calls == 3:
        raise KeyboardInterrupt
    return step(*arguments)


dies_at_the_third.calls = 0
with fsdp.processes("cpu") as device:
    distill.accumulate_gradients = step
    write_rows(distill.distill(distill_job(world, out, device=device)))
    if not all(shards):
        raise AssertionError("weights are not sharded")
    distill.accumulate_gradients = dies_at_the_third
    try:
        distill.distill(distill_job(world, other, device=device, checkpoint_seconds=-1))
    except KeyboardInterrupt:
        print("died")
