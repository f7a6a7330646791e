"""What test_fsdp.py runs under torchrun in two processes.

torchrun --nproc-per-node 2 two_processes.py distill <world> <whole> <cut>     # distils, and dies at the third step
torchrun --nproc-per-node 2 two_processes.py finetune <world> <gates> <model>  # fine-tunes jointly
"""

import json
import sys
from pathlib import Path

from test_distill import ADAM
from tiny_jobs import distill_job, finetune_job
from torch.distributed.tensor import DTensor

from seerbench.training import distill, finetune, fsdp

what, (world, first, second) = sys.argv[1], map(Path, sys.argv[2:])
if what == "finetune":
    with fsdp.processes("cpu") as device:
        changes = {**ADAM, "batch": 2, "steps": 3, "recompute": True, "device": device}
        rows = finetune.finetune(finetune_job(world, second, first, **changes))
        if fsdp.rank_and_world_size()[0] == 0:
            (world / "finetune-rows.json").write_text(json.dumps(rows))
    sys.exit()
original = distill._distill_step
shards = []


def step(model, windows, sets, block):
    for part in (model.model.layers[0].mlp.up_proj, sets["v1"][0]):
        weight = next(part.parameters())
        shards.append(isinstance(weight, DTensor) and 2 * weight.to_local().numel() == weight.numel())
    if len(windows) != 1:
        raise AssertionError(f"{len(windows)} windows of a batch of 2")
    return original(model, windows, sets, block)


def dies_at_the_third(*arguments):
    dies_at_the_third.calls += 1
    if dies_at_the_third.calls == 3:
        raise KeyboardInterrupt
    return step(*arguments)


dies_at_the_third.calls = 0
with fsdp.processes("cpu") as device:
    distill._distill_step = step
    rows = distill.distill(distill_job(world, first, device=device))
    if not all(shards):
        raise AssertionError("weights are not sharded")
    if fsdp.rank_and_world_size()[0] == 0:
        (world / "rows.json").write_text(json.dumps(rows))
    distill._distill_step = dies_at_the_third
    try:
        distill.distill(distill_job(world, second, device=device, checkpoint_seconds=-1))
    except KeyboardInterrupt:
        print("died")
