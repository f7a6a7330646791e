"""training."""

from __future__ import annotations

from pathlib import Path

from seerbench.errors import ConfigError
from seerbench.methods.gate_files import save_gates
from seerbench.models import sources
from seerbench.models.released_gates import read_released
from seerbench.presets.preset import Preset
from seerbench.rows.store import atomically
from seerbench.steps.common import save, start
from seerbench.training import checkpoint, distill, finetune, fsdp, pretrain


def train_model(preset: Preset, name: str) -> None:
    """Pre-train a model of the config."""
    about = preset.one_of("models", name)
    run = start(preset, f"train {name}", about["corpus"], "train")
    rows = pretrain.pretrain(
        about,
        preset.tokens(about["corpus"]),
        preset.tokenizer,
        Path(preset.model(name)),
        init=Path(preset.model(about["init"])) if about["init"] else None,
        device=preset.config["device"],
        seed=preset.config["seed"],
    )
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
        for row in rows.to_dict("records")
    ]
    save(preset, "training", f"pretrain-{name}", rows, run)
    checkpoint.drop_checkpoint(Path(preset.model(name)))


def distill_gates(preset: Preset, name: str) -> None:
    """Train the gate sets of one job."""
    about = preset.one_of("gates", name)
    if "source" in about:
        raise ConfigError(f"the gates {name!r} are released ones; run: seerbench import-gates {preset.name} {name}")
    model = preset.config["models"].get(about["model"], {})
    run = start(preset, f"distill {name}", about["corpus"], "train")
    with fsdp.processes(preset.config["device"]) as device:
        rows = distill.distill(
            about,
            preset.model(about["model"]),
            preset.tokens(about["corpus"]),
            preset.gates(name),
            block=about.get("block", preset.config["block"]),
            device=device,
            dtype=preset.config["dtype"],
            seed=preset.config["seed"],
            revision=model.get("revision"),
            yarn=model.get("yarn"),
        )
        if fsdp.rank_and_world_size()[0]:
            return
    rows = [{"name": name, "kind": "distill", **row} for row in rows]
    save(preset, "training", f"distill-{name}", rows, run)
    checkpoint.drop_checkpoint(preset.gates(name))


def import_gates(preset: Preset, name: str) -> None:
    """Gates that their authors released, as one gate set named after its recipe (v1 or v2)."""
    about = preset.one_of("gates", name)
    if "source" not in about:
        raise ConfigError(f"the gates {name!r} are trained here; run: seerbench distill {preset.name} {name}")
    local = preset.data(about["source"])
    gates = read_released(local if local.is_dir() else about["source"], about.get("revision"))
    sources.check_gates(
        gates, preset.model(about["model"]), preset.config["models"][about["model"]].get("revision")
    )
    recipe = gates[0].config.recipe
    atomically(preset.gates(name), lambda part: save_gates(part, {recipe: gates}))


def finetune_model(preset: Preset, name: str) -> None:
    """Extend a model's context: `yarn` dense, or `joint-<sparsity>` with its gates."""
    about, joint = preset.config["extend"], preset.joint_models()
    if name != "yarn" and name not in joint:
        raise ConfigError(f"no model {name!r} to fine-tune; the preset has yarn, {', '.join(joint)}")
    run = start(preset, f"finetune {name}", about["corpus"], "train")
    with fsdp.processes(preset.config["device"]) as device:
        rows = finetune.finetune(
            about,
            preset.model(about["model"]),
            preset.gates(about["gates"]) if name in joint else None,
            preset.tokens(about["corpus"]),
            Path(preset.model(name)),
            sparsity=joint.get(name),
            block=preset.config["block"],
            device=device,
            dtype=preset.config["dtype"],
            seed=preset.config["seed"],
            revision=preset.config["models"].get(about["model"], {}).get("revision"),
        )
        if fsdp.rank_and_world_size()[0]:
            return
    recipe = "joint" if name in joint else "yarn"
    extra = {"name": name, "kind": "finetune", "recipe": recipe, "sparsity_requested": joint.get(name)}
    save(preset, "training", f"finetune-{name}", [{**extra, **row} for row in rows], run)
    checkpoint.drop_checkpoint(Path(preset.model(name)))
