"""What test_sharded.py runs under torchrun by two processes.

torchrun --nproc-per-node 2 two_processes.py <world> <whole> <cut>     # distils, and dies at the third step
torchrun --nproc-per-node 2 two_processes.py <world> <gates> <model>   # fine-tunes, if there is a finetune.json
"""

import json
import sys
from pathlib import Path

from torch.distributed.tensor import DTensor

from seerbench.training import distill, finetune, fsdp

world, whole, cut = map(Path, sys.argv[1:])
if (world / "finetune.json").exists():
    with fsdp.processes("cpu") as device:
        rows = finetune.finetune(
            json.loads((world / "finetune.json").read_text()),
            world / "model",
            whole,
            world / "tokens.parquet",
            cut,
            sparsity=0.5,
            block=16,
            device=device,
        )
        if fsdp.rank_and_world_size()[0] == 0:
            (world / "finetune-rows.json").write_text(json.dumps(rows))
    sys.exit()
job = json.loads((world / "job.json").read_text())
original = distill._distill_step
shards = []


def step(model, windows, sets, block):
    for part in (model.model.layers[0].mlp.up_proj, sets["v1"][0]):
        weight = next(part.parameters())
        shards.append(isinstance(weight, DTensor) and 2 * weight.to_local().numel() == weight.numel())
    if len(windows) != job["batch"] // 2:
        raise AssertionError(f"{len(windows)} windows of a batch of {job['batch']}")
    return original(model, windows, sets, block)


def dies_at_the_third(*arguments):
    dies_at_the_third.calls += 1
    if dies_at_the_third.calls == 3:
        raise KeyboardInterrupt
    return step(*arguments)


dies_at_the_third.calls = 0
with fsdp.processes("cpu") as device:
    where = (world / "model", world / "tokens.parquet")
    distill._distill_step = step
    rows = distill.distill(job, *where, whole, block=16, device=device)
    if not all(shards):
        raise AssertionError("weights are not sharded")
    if fsdp.rank_and_world_size()[0] == 0:
        (world / "rows.json").write_text(json.dumps(rows))
    distill._distill_step = dies_at_the_third
    try:
        distill.distill(job | {"checkpoint_seconds": -1}, *where, cut, block=16, device=device)
    except KeyboardInterrupt:
        print("died")
