"""Train in the two processes of torchrun that test_fsdp.py starts; the rows of <name> go to <folder>/<name>.json.

torchrun --nproc-per-node 2 two_processes.py <world> <folder>

It distills gates (`gates`), fine-tunes with them jointly (`joint`), and distills once more, killed at step 3
(`killed`). One start serves all three, since importing takes longest.
"""

import json
import sys
from pathlib import Path

from tiny_jobs import ADAM, distill_job, finetune_job
from torch.distributed.tensor import DTensor

from seerbench.training import distill, finetune, fsdp

world, folder = map(Path, sys.argv[1:])


def write_rows(name, rows):
    if fsdp.rank_and_world_size()[0] == 0:
        (folder / f"{name}.json").write_text(json.dumps(rows))


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
    gates = folder / "gates"
    distill.accumulate_gradients = step
    write_rows("gates", distill.distill(distill_job(world, gates, device=device)))
    if not all(shards):
        raise AssertionError("weights are not sharded")
    changes = {**ADAM, "batch": 2, "steps": 3, "recompute": True, "device": device}
    write_rows("joint", finetune.finetune(finetune_job(world, folder / "joint", gates, **changes)))
    distill.accumulate_gradients = dies_at_the_third
    try:
        distill.distill(distill_job(world, folder / "killed", device=device, checkpoint_seconds=-1))
    except KeyboardInterrupt:
        print("died")
