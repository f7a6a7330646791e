"""Steps that train: models, gates, and models together with their gates. One imports gates instead."""

from __future__ import annotations

import dataclasses

from seerbench.methods.gate_files import save_gates
from seerbench.models.released_gates import read_released
from seerbench.models.sources import check_gates
from seerbench.presets.jobs import Tokens
from seerbench.presets.preset import Preset
from seerbench.steps.common import require, save, start
from seerbench.training import fsdp
from seerbench.training.checkpoint import drop_checkpoint
from seerbench.training.distill import distill
from seerbench.training.finetune import finetune
from seerbench.training.pretrain import pretrain
from seerbench.writing import atomically


def train_model(preset: Preset, name: str) -> None:
    """Pre-train a model of the preset."""
    job = preset.pretrain(name)
    require(preset, [job.tokens, job.tokenizer / "tokenizer.json", *job.init_files], [job.out, job.rows])
    run = start(preset.setup, f"train {name}", Tokens(job.corpus, job.tokens), "train")
    steps = pretrain(job).to_dict("records")
    rows = [
        {
            "name": name,
            "kind": "pretrain",
            "recipe": "none",
            "step": row["step"],
            "tokens": row["tokens"],
            "context": row["context"],
            "lm_loss": row["loss"],
            "learning_rate": row["lr"],
        }
        for row in steps
    ]
    save("training", job.rows, rows, run)
    drop_checkpoint(job.out)


def distill_gates(preset: Preset, name: str) -> None:
    """Train the gate sets of one gate job."""
    job = preset.distill(name)
    require(preset, [job.tokens, *job.model.files], [job.out, job.rows])
    run = start(
        preset.setup_in(job.model.name), f"distill {name}", Tokens(job.corpus, job.tokens), "train", [job.model]
    )
    with fsdp.processes(job.device) as device:
        rows = distill(dataclasses.replace(job, device=device))
        if fsdp.rank_and_world_size()[0]:
            return
    save("training", job.rows, [{"name": name, "kind": "distill", **row} for row in rows], run)
    drop_checkpoint(job.out)


def import_gates(preset: Preset, name: str) -> None:
    """Read gates that their authors released; write them as one gate set named after its recipe (v1, v2 or r)."""
    job = preset.import_gates(name)
    require(preset, job.model.files, [job.out])
    gates = read_released(job.source, job.revision)
    check_gates(gates, job.model.weights, job.model.revision)
    recipe = gates[0].config.recipe
    atomically(job.out, lambda part: save_gates(part, {recipe: gates}))


def finetune_model(preset: Preset, name: str) -> None:
    """Extend a model's context: `yarn` dense, or `joint-<sparsity>` with its gates."""
    job = preset.finetune(name)
    gates = [] if job.gates is None else [job.gates]
    require(preset, [job.tokens, *job.model.files, *gates], [job.out, job.rows])
    run = start(preset.setup_in(name), f"finetune {name}", Tokens(job.corpus, job.tokens), "train", [job.model])
    with fsdp.processes(job.device) as device:
        rows = finetune(dataclasses.replace(job, device=device))
        if fsdp.rank_and_world_size()[0]:
            return
    recipe = "yarn" if job.sparsity is None else "joint"
    extra = {"name": name, "kind": "finetune", "recipe": recipe, "sparsity_requested": job.sparsity}
    save("training", job.rows, [{**extra, **row} for row in rows], run)
    drop_checkpoint(job.out)
