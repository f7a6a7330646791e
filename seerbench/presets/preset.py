"""Presets: read, check, and say which files each step reads and writes. Imports no torch.

A preset is one YAML file in `config/`; everything that decides a number stands in it. Both Snakemake
(for its graph) and the steps (for their paths) ask this module, so that the two cannot disagree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from seerbench.devices import has_gpu
from seerbench.errors import ConfigError
from seerbench.methods.registry import card_of
from seerbench.paths import FRESH, ROOT

SCHEMA = Path(__file__).with_name("config.schema.json")
TRAINING_SWEEP = "training_kernel"  # the sweeps by the names that artefacts know them by
SEARCHED = "searched"  # MInference's patterns as `seerbench patterns` found them for the model
PAPER_GATE = "v1"  # the gate set with the paper's pooling, projection and loss
SWEEPS = ("kernel", "methods", TRAINING_SWEEP, "ttft")


@dataclass(frozen=True)
class Preset:
    """A checked config and the folder its rows go to."""

    config: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        return self.config["preset"]

    # Where things are

    def tokens(self, corpus: str) -> Path:
        """The tokenised corpus."""
        self.one_of("corpora", corpus)
        return self.folder / "corpora" / corpus / "tokens.parquet"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    def model(self, name: str) -> Path | str:
        """The model's folder (or its hub id, if the config gives a source that is no folder)."""
        source = self.config["models"].get(name, {}).get("source")
        if source is not None:
            return self.local(source)
        if name not in self.model_names():
            raise ConfigError(f"no model {name!r} in the preset; it has {', '.join(self.model_names())}")
        return self.folder / "models" / name

    def gates(self, name: str) -> Path:
        """The file of a gate job, or of the gates that a joint model was trained with."""
        if name in self.joint_models():
            return self.folder / "models" / name / "gates.safetensors"
        self.one_of("gates", name)
        return self.folder / "gates" / f"{name}.safetensors"

    def moa_plan(self, model: str, sparsity: float | None) -> Path:
        """MoA's plan of a model: for a requested sparsity, or for upstream's KV density (None)."""
        return self.folder / "plans" / f"moa-{model}-{moa_budget(sparsity)}.json"

    def moa_sparsities(self) -> list[float | None]:
        """The sparsities that arms of MoA ask for anywhere in the preset: one search makes all these plans."""
        sparsities = {arm["sparsity"] for arm in expand(self.arms()) if arm["method"] == "moa"}
        return sorted(sparsities, key=lambda sparsity: -1.0 if sparsity is None else sparsity)

    def moa_plans(self, model: str) -> list[str]:
        """The files of one search: a plan for each of them, or upstream's alone where no arm asks."""
        return [str(self.moa_plan(model, sparsity)) for sparsity in self.moa_sparsities() or [None]]

    def minference_patterns(self, model: str) -> Path:
        """The patterns that the search found for a model's heads."""
        return self.folder / "plans" / f"minference-{model}.json"

    def rows(self, table: str, part: str) -> Path:
        return self.folder / table / f"{part}.parquet"

    def data(self, path: str) -> Path:
        """A path of the config, relative to its data folder (SEERBENCH_DATA overrides that)."""
        return Path(os.environ.get("SEERBENCH_DATA", self.config["data"])) / path

    def local(self, source: str) -> Path | str:
        """A hub id's folder below the data folder, where there is one; else the id, for the hub or its cache."""
        folder = self.data(source)
        return folder if folder.is_dir() else source

    # What there is

    def model_names(self) -> list[str]:
        extended = [] if "extend" not in self.config else ["yarn", *self.joint_models()]
        return [*self.config["models"], *extended]

    def trained_models(self) -> list[str]:
        """Models that this preset pre-trains."""
        return [name for name, about in self.config["models"].items() if "stages" in about]

    def is_random(self, model: str) -> bool:
        """Whether a model is a geometry with random weights."""
        return "random" in self.config["models"].get(model, {})

    def joint_models(self) -> dict[str, float]:
        """Jointly fine-tuned models by name, with the sparsity each was trained at."""
        return {f"joint-{s}": s for s in self.config.get("extend", {}).get("sparsities", [])}

    def one_of(self, section: str, name: str) -> Mapping[str, Any]:
        """An entry of a section; ConfigError lists what is there."""
        entries = self.config.get(section, {})
        if name not in entries:
            raise ConfigError(f"no {name!r} under {section} in the preset; it has {', '.join(entries) or 'none'}")
        return entries[name]

    def latency_parts(self) -> list[str]:
        """Every timing job as `<sweep>-<context>`."""
        sweeps = self.config.get("latency", {}).get("sweeps", {})
        return [f"{sweep}-{context}" for sweep, about in sweeps.items() for context in about["contexts"]]

    def parts(self, table: str) -> list[str]:
        """The parts (files) of a table that this preset measures."""
        if table in ("cells", "samples"):
            return self.latency_parts()
        if table == "training":
            names = [*(f"pretrain-{name}" for name in self.trained_models())]
            names += [f"distill-{name}" for name in self.gate_jobs() if "source" not in self.config["gates"][name]]
            return names + [f"finetune-{name}" for name in self.model_names() if name not in self.config["models"]]
        if table == "maps":
            return ["maps"] if "maps" in self.config else []
        return list(self.config.get(table, {}))

    def rows_for(self, needs: Iterable[tuple[str, str]]) -> tuple[list[Path], list[str]]:
        """(files, needs that nothing here meets) for an artefact's needs: (table, part or pattern) pairs."""
        files, unmet = [], []
        for table, pattern in needs:
            wanted = pattern.split("|")
            parts = [part for part in self.parts(table) if any(fnmatch(part, one) for one in wanted)]
            found = [self.rows(table, part) for part in parts]
            files += found
            if not found:
                unmet.append(f"{table}/{pattern}")
        return files, unmet

    def gate_jobs(self) -> list[str]:
        return list(self.config.get("gates", {}))

    def drawn_from(self) -> Path:
        """The run that artefacts are drawn from: this machine's, or a published one where it cannot measure.

        ConfigError when it cannot and the preset names no published run.
        """
        if self.config["device"] == "cpu" or has_gpu():
            return self.folder
        if "published" not in self.config:
            raise ConfigError(
                f"the preset {self.name} measures on an NVIDIA GPU, this machine has none, and the preset names "
                "no published run to draw instead; take the cpu preset"
            )
        return ROOT / "results" / "published" / self.config["published"]

    # What a step reads

    def reads(self, step: str, name: str) -> list[Path]:
        """The files that a step needs before it can run, as the DAG's edges."""
        config = self.config
        if step == "train":
            about = config["models"][name]
            before = [self.model_file(about["init"])] if about.get("init") else []
            return [self.tokens(about["corpus"]), self.tokenizer / "tokenizer.json", *before]
        if step == "distill":
            about = self.one_of("gates", name)
            if "source" in about:
                return []
            return [self.tokens(about["corpus"]), *self._model_files(about["model"])]
        if step == "finetune":
            about = config["extend"]
            gates = [self.gates(about["gates"])] if name in self.joint_models() else []
            return [self.tokens(about["corpus"]), *self._model_files(about["model"]), *gates]
        if step in ("profile", "patterns"):
            return [self.tokens(config["profile"]["corpus"]), *self._model_files(name)]
        if step == "maps":
            about = config["maps"]
            return self._measured([about | {"method": "seer"}], about)
        if step == "latency":
            about = config["latency"]["sweeps"][name]
            return self._measured(timed_arms(about), about) if "model" in about else []
        about = self.one_of(step, name)
        return self._measured(about["arms"], about)

    def check_names(self) -> None:
        """ConfigError or UnknownMethod for a model, gate, corpus or method that the preset names but lacks."""
        for sweep, about in self.config.get("latency", {}).get("sweeps", {}).items():
            for arm in about.get("arms", []):
                card_of(arm["method"])
                given, wanted = len(arm.get("sparsity_by_context", about["contexts"])), len(about["contexts"])
                if given != wanted:
                    raise ConfigError(
                        f"{sweep}: sparsity_by_context of {arm['method']} has {given} numbers for {wanted} contexts"
                    )
            if "model" in about and "corpus" not in about and not self.is_random(about["model"]):
                raise ConfigError(
                    f"{sweep}: {about['model']} needs a corpus whose text it reads; only a model with random "
                    "weights takes random tokens"
                )
        for table in ("perplexity", "tasks", "recall"):
            for name, about in self.config.get(table, {}).items():
                self.reads(table, name)
                for arm in about["arms"]:
                    card_of(arm["method"])
                    if "sparsity_by_context" in arm:
                        raise ConfigError(f"{table}/{name}: sparsity_by_context is for timings; give sparsities")
        for step, names in (
            ("train", self.trained_models()),
            ("distill", self.gate_jobs()),
            ("latency", list(self.config.get("latency", {}).get("sweeps", {}))),
        ):
            for name in names:
                self.reads(step, name)
        for name, about in self.config.get("gates", {}).items():
            if about.get("batch", 0) % about.get("processes", 1):
                raise ConfigError(
                    f"gates/{name}: a batch of {about['batch']} windows does not split over {about['processes']} "
                    "processes"
                )

    def arms(self) -> list[Mapping[str, Any]]:
        """The arms of every experiment and timing that runs in a model."""
        sections = [self.config.get(table, {}) for table in ("perplexity", "tasks", "recall")]
        sweeps = [about for about in self.config.get("latency", {}).get("sweeps", {}).values() if "model" in about]
        found = [arm for about in sections for one in about.values() for arm in one["arms"]]
        return found + [arm for about in sweeps if not self.is_random(about["model"]) for arm in timed_arms(about)]

    def model_file(self, name: str) -> Path:
        """The file that says a model is complete."""
        return Path(self.model(name)) / "config.json"

    def _model_files(self, name: str) -> list[Path]:
        about = self.config["models"].get(name, {})
        return [] if "source" in about or "random" in about else [self.model_file(name)]

    def _measured(self, arms: list[Mapping[str, Any]], about: Mapping[str, Any]) -> list[Path]:
        """Tokens, models, gates and profiles that a list of arms needs."""
        files = [self.tokens(about["corpus"])] if "corpus" in about else []
        for arm in expand(arms):
            model = arm.get("model", about["model"])
            files += self._model_files(model)
            if arm.get("gate"):
                files.append(self.gates(arm["gate"].split(":")[0]))
            if arm["method"] == "moa" and not self.is_random(model):
                files.append(self.moa_plan(model, arm["sparsity"]))
            if arm.get("patterns") == SEARCHED:
                files.append(self.minference_patterns(model))
        return list(dict.fromkeys(files))


def moa_budget(sparsity: float | None) -> str:
    """What a plan of MoA was bound to, as its file is named."""
    return "kv0.50" if sparsity is None else f"{sparsity:.2f}"


def expand(arms: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry a sparsity; `{sparsity}` in an arm's model or gate becomes that sparsity."""
    flat = []
    for arm in arms:
        for sparsity in arm.get("sparsities", [None]):
            one = {key: value for key, value in arm.items() if key != "sparsities"}
            for key in ("model", "gate"):
                if key in one:
                    one[key] = one[key].format(sparsity=sparsity)
            flat.append(one | {"sparsity": sparsity})
    return flat


def at_context(arms: list[Mapping[str, Any]], contexts: list[int], context: int) -> list[dict[str, Any]]:
    """The arms at one context of a sweep: `sparsity_by_context` becomes the one sparsity that it gives there."""
    found = []
    for arm in arms:
        one = {key: value for key, value in arm.items() if key != "sparsity_by_context"}
        if "sparsity_by_context" in arm:
            one["sparsities"] = [arm["sparsity_by_context"][contexts.index(context)]]
        found.append(one)
    return found


def timed_arms(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arms of a timing sweep at all its contexts."""
    return [arm for context in about["contexts"] for arm in at_context(about["arms"], about["contexts"], context)]


def known_presets() -> list[str]:
    """The names of the presets in config/."""
    return sorted(path.stem for path in (ROOT / "config").glob("*.yaml"))


def load_preset(which: str, results: Path | str = FRESH) -> Preset:
    """A preset by name (config/<name>.yaml) or by the path of a YAML file, checked.

    Raises ConfigError for an unknown name, unreadable YAML, or a key or value that the schema refuses.
    """
    path = Path(which) if which.endswith((".yaml", ".yml")) else ROOT / "config" / f"{which}.yaml"
    if not path.is_file():
        raise ConfigError(f"no preset {which!r}; known presets: {', '.join(known_presets())}, or a YAML file")
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    check(config, str(path))
    preset = Preset(config, Path(results) / config["preset"])
    preset.check_names()
    return preset


def check(config: Any, where: str) -> None:
    """ConfigError for the first place where a config leaves the schema."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    errors = sorted(validator.iter_errors(config), key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        error = jsonschema.exceptions.best_match(errors)
        place = "/".join(map(str, error.absolute_path)) or "the top level"
        raise ConfigError(f"{where}: at {place}: {error.message}")
