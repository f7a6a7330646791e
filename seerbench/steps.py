"""The steps of the DAG: each reads files of a preset's run, calls one module, writes rows or a model.

`cli.py` gives each a sub-command and the rules call those; nothing here is reached in another way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seerbench import accuracy, calibrate, corpus, distill, latency, models, train
from seerbench.accuracy import Arm
from seerbench.attention import Case
from seerbench.baselines.minference import save_patterns
from seerbench.baselines.moa import save_plan
from seerbench.config import SEARCHED, ConfigError, Preset, expand
from seerbench.gate import AttnGate, GateConfig, gate_set_names, load_gates
from seerbench.registry import create
from seerbench.results import atomically, finish, provenance, write_rows
from seerbench.timing import Timing
from seerbench.variants import variant


def start(preset: Preset, step: str, corpus_name: str | None = None, split: str | None = None) -> dict[str, Any]:
    """Provenance of a step, with the corpus' hash and the split that the step reads."""
    sha256 = None
    if corpus_name is not None:
        sha256 = json.loads(preset.tokens(corpus_name).with_suffix(".json").read_text())["sha256"]
    config = preset.config
    return provenance(
        step,
        preset=preset.name,
        scale=config["scale"],
        seed=config["seed"],
        device=config["device"],
        corpus=corpus_name,
        corpus_sha256=sha256,
        corpus_split=split,
    )


def save(preset: Preset, table: str, part: str, rows: Iterable[Mapping[str, Any]], run: dict[str, Any]) -> None:
    """Write rows of one execution, each with its run_id."""
    done = finish(run)
    write_rows(preset.rows(table, part), table, [{**row, "run_id": done["run_id"]} for row in rows], done)


# Texts, models, gates


def make_corpora(preset: Preset) -> None:
    """Tokenizer (trained, or fetched) and every corpus, tokenised."""
    about = preset.config["tokenizer"]
    sources = preset.config["corpora"]
    texts = {
        name: corpus.read_texts(_located(preset, source))
        for name, source in sources.items()
        if source["kind"] != "union"
    }
    for name, source in sources.items():
        if source["kind"] == "union":
            texts[name] = corpus.union_of({part: texts[part] for part in source["of"]})
    if "source" in about:
        tokenizer = corpus.load_tokenizer(about["source"], about.get("revision"))
        tokenizer.save_pretrained(preset.tokenizer)
    else:
        frame = texts[about["corpus"]]
        training = frame[frame.split == "train"].text.tolist()
        tokenizer = corpus.train_tokenizer(training, about["vocab"], preset.tokenizer)
    for name, frame in texts.items():
        source = preset.config["corpora"][name]
        corpus.tokenise(frame, tokenizer, preset.tokens(name), name=name, source=source)


def _located(preset: Preset, source: Mapping[str, Any]) -> dict[str, Any]:
    """A corpus' source with its path made relative to the data folder."""
    return {**source, "path": str(preset.data(source["path"]))} if "path" in source else dict(source)


def train_model(preset: Preset, name: str) -> None:
    """Pre-train a model of the config."""
    about = preset.one_of("models", name)
    run = start(preset, f"train {name}", about["corpus"], "train")
    rows = train.pretrain(
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
    train.drop_checkpoint(Path(preset.model(name)))


def distill_gates(preset: Preset, name: str) -> None:
    """Train the gate sets of one job."""
    about = preset.one_of("gates", name)
    run = start(preset, f"distill {name}", about["corpus"], "train")
    rows = distill.distill(
        about,
        Path(preset.model(about["model"])),
        preset.tokens(about["corpus"]),
        preset.gates(name),
        block=about.get("block", preset.config["block"]),
        device=preset.config["device"],
        dtype=preset.config["dtype"],
        seed=preset.config["seed"],
    )
    rows = [{"name": name, "kind": "distill", **row} for row in rows]
    save(preset, "training", f"distill-{name}", rows, run)
    train.drop_checkpoint(preset.gates(name))


def finetune_model(preset: Preset, name: str) -> None:
    """Extend a model's context: `yarn` dense, or `joint-<sparsity>` with its gates."""
    about, joint = preset.config["extend"], preset.joint_models()
    if name != "yarn" and name not in joint:
        raise ConfigError(f"no model {name!r} to fine-tune; the preset has yarn, {', '.join(joint)}")
    run = start(preset, f"finetune {name}", about["corpus"], "train")
    rows = distill.finetune(
        about,
        Path(preset.model(about["model"])),
        preset.gates(about["gates"]) if name in joint else None,
        preset.tokens(about["corpus"]),
        Path(preset.model(name)),
        sparsity=joint.get(name),
        block=preset.config["block"],
        device=preset.config["device"],
        seed=preset.config["seed"],
    )
    recipe = "joint" if name in joint else "yarn"
    extra = {"name": name, "kind": "finetune", "recipe": recipe, "sparsity_requested": joint.get(name)}
    save(preset, "training", f"finetune-{name}", [{**extra, **row} for row in rows], run)
    train.drop_checkpoint(Path(preset.model(name)))


def profile_model(preset: Preset, name: str) -> None:
    """MoA's plans of a model, one for each sparsity that the preset asks for."""
    about, block = preset.config["profile"], preset.config["block"]
    model = _model(preset, name)
    documents, longest = about["documents"], about["context"]
    # The first documents are profiled; plans are compared on the next ones that are long enough.
    text = corpus.read_tokens(preset.tokens(about["corpus"]), "validation")
    bos, reach = model.config.bos_token_id, int(calibrate.VALIDATION * longest)

    def windows(of: Mapping[str, Any], context: int) -> dict[str, np.ndarray]:
        return corpus.evaluation_windows(of, context, documents, longest=max(context, longest), bos=bos)

    profiled = {length: windows(text, length) for length in calibrate.moa_lengths(longest)}
    rest = {document: tokens for document, tokens in text.items() if document not in profiled[longest]}
    plans = calibrate.moa_plans(
        model,
        {length: list(found.values()) for length, found in profiled.items()},
        list(windows(rest, reach).values()),
        preset.moa_sparsities(),
        block,
    )
    facts = {"model": name, "corpus": about["corpus"], "documents": len(profiled[longest])}
    for sparsity, plan in plans.items():
        atomically(
            preset.moa_plan(name, sparsity),
            lambda part, plan=plan: save_plan(part, plan.alphas, plan.betas, facts | plan.about),
        )


def search_patterns(preset: Preset, name: str) -> None:
    """MInference's patterns of a model's heads, on one key-value look-up (upstream: one of InfiniteBench)."""
    about, config = preset.config["profile"], preset.config
    model = _model(preset, name)
    documents = corpus.read_tokens(preset.tokens(about["corpus"]), "validation")
    tokenizer = corpus.load_tokenizer(preset.tokenizer)
    example = accuracy.TASKS["kv"](documents, tokenizer, about["context"], 1, config["seed"])[0]
    found = calibrate.minference_patterns(model, example.tokens, config["block"])
    atomically(preset.minference_patterns(name), lambda part: save_patterns(part, found))


# Accuracy


def measure_perplexity(preset: Preset, experiment: str) -> None:
    """One perplexity experiment: every context, arm and document."""
    about = preset.one_of("perplexity", experiment)
    run = start(preset, f"perplexity {experiment}", about["corpus"], "test")
    rows = []
    groups = _by_model(preset, about)
    total = sum(len(arms) for _, arms in groups) * len(about["contexts"]) * about["documents"]
    with tqdm(total=total, desc=f"perplexity {experiment}", unit="doc", mininterval=1) as bar:
        for name, flat in groups:
            model = _model(preset, name)
            arms = make_arms(preset, name, flat)
            for context in about["contexts"]:
                windows = _windows(
                    preset,
                    about["corpus"],
                    context,
                    about["documents"],
                    model,
                    longest=max(about["contexts"]),
                    aligned="scored" in about,
                )
                fixed = {"experiment": experiment, "model": name, "corpus": about["corpus"]}
                found = accuracy.perplexity(model, windows, arms, bar, about.get("scored"))
                rows += [fixed | row for row in found]
    save(preset, "perplexity", experiment, rows, run)


def measure_tasks(preset: Preset, experiment: str) -> None:
    """One retrieval experiment: every task, length bucket, arm and example."""
    about = preset.one_of("tasks", experiment)
    run = start(preset, f"tasks {experiment}", about["corpus"], "test")
    rows = []
    groups = _by_model(preset, about)
    documents = corpus.read_tokens(preset.tokens(about["corpus"]), "test")
    tokenizer = corpus.load_tokenizer(preset.tokenizer)
    arms_in_all = sum(len(flat) for _, flat in groups)
    total = len(about["tasks"]) * len(about["contexts"]) * arms_in_all * about["examples"]
    examples = {
        (task, context): accuracy.TASKS[task](
            documents, tokenizer, context, about["examples"], preset.config["seed"]
        )
        for task in about["tasks"]
        for context in about["contexts"]
    }
    with tqdm(total=total, desc=f"tasks {experiment}", unit="example", mininterval=1) as bar:
        for name, flat in groups:
            model = _model(preset, name)
            arms = make_arms(preset, name, flat)
            for (_, context), asked in examples.items():
                fixed = {
                    "experiment": experiment,
                    "model": name,
                    "corpus": about["corpus"],
                    "bucket": accuracy.bucket_of(about["contexts"], context),
                }
                found = accuracy.retrieval(model, asked, arms, about["batch"], bar)
                rows += [fixed | row for row in found]
    save(preset, "tasks", experiment, rows, run)


def measure_recall(preset: Preset, experiment: str) -> None:
    """Block recall of every arm against the oracle."""
    about = preset.one_of("recall", experiment)
    run = start(preset, f"recall {experiment}", about["corpus"], "test")
    name, rows = about["model"], []
    model = _model(preset, name)
    arms = make_arms(preset, name, expand(about["arms"]))
    for context in about["contexts"]:
        windows = _windows(
            preset, about["corpus"], context, about["documents"], model, longest=max(about["contexts"])
        )
        fixed = {"experiment": experiment, "model": name, "corpus": about["corpus"]}
        found = accuracy.recall(model, windows, arms, preset.config["block"])
        rows += [fixed | row for row in found]
    save(preset, "recall", experiment, rows, run)


def measure_maps(preset: Preset) -> None:
    """True and predicted maps of five heads on the first test document that is long enough."""
    about = preset.config["maps"]
    run = start(preset, "maps", about["corpus"], "test")
    model = _model(preset, about["model"])
    windows = _windows(preset, about["corpus"], about["context"], 1, model)
    document, window = next(iter(windows.items()))
    job, _, gate_set = about["gate"].partition(":")
    gates = [gate.to(preset.config["device"]) for gate in load_gates(preset.gates(job), gate_set)]
    rows = accuracy.gate_maps(model, document, window, gates)
    fixed = {"model": about["model"], "gate": about["gate"]}
    save(preset, "maps", "maps", [fixed | row for row in rows], run)


# Time


def measure_latency(preset: Preset, sweep: str, context: int) -> None:
    """One timing job: a sweep at one context, its methods interleaved."""
    config, latency_config = preset.config, preset.config["latency"]
    about = latency_config["sweeps"][sweep]
    corpus_name = about.get("corpus")
    run = start(preset, f"latency {sweep} {context}", corpus_name, "test" if corpus_name else None)
    timing = Timing(rounds=latency_config["rounds"], cap_s=latency_config["cap_s"], seed=config["seed"])
    if "model" in about:
        name = about["model"]
        model = _model(preset, name)
        tokens = _timed_tokens(preset, about["corpus"], context, model)
        methods = _named(make_arms(preset, name, expand(about["arms"])), config["block"])
        if sweep == "methods":
            attention = latency.capture(model, tokens, about["layer"])
            positions = model.config.max_position_embeddings
            beyond = f", beyond the {positions} tokens of its training" if context > positions else ""
            found = latency.methods_sweep(
                f"captured:{name}{beyond}", attention, methods, timing, run["run_id"], config["block"]
            )
        else:
            found = latency.ttft_sweep(model, name, tokens, methods, timing, run["run_id"], config["block"])
    else:
        shape = latency_config["shape"]
        heads = shape["q_heads"], shape["kv_heads"], shape["head_dim"]
        block = shape["block"]
        case = Case(config["device"], config["dtype"], shape["batch"], *heads, context, block, block)
        if sweep == "kernel":
            names = ["block_sparse", *about.get("kernels", [])]
            kernels = {name: latency.sparse_kernel(name) for name in names}
            dense = {name: create(name) for name in about.get("dense", [])}
            found = latency.kernel_sweep(
                case,
                about["sparsities"],
                timing,
                run["run_id"],
                kernels,
                dense,
                about.get("blocks", [block]),
                about.get("masks", ["random"]),
            )
        elif sweep == "methods":
            attention = latency.random_attention(case, config["seed"])
            methods = _named(random_arms(preset, about["arms"], *heads), block)
            found = latency.methods_sweep("random", attention, methods, timing, run["run_id"], block)
        else:
            limit = latency_config["naive_limit_mib"]
            found = latency.training_kernel_sweep(case, timing, run["run_id"], limit)
    part = f"{sweep}-{context}"
    save(preset, "cells", part, found.cells, run)
    save(preset, "samples", part, found.samples, run)


def _timed_tokens(preset: Preset, corpus_name: str, context: int, model: Any) -> torch.Tensor:
    """[1, context] of held-out text, documents end to end: timing may need more than one document has."""
    documents = corpus.read_tokens(preset.tokens(corpus_name), "test")
    stream = corpus.packed(documents, model.config.eos_token_id)
    window = corpus.training_windows(stream, context, 1, np.random.default_rng(0), bos=model.config.bos_token_id)
    return torch.from_numpy(window).long().to(preset.config["device"])


# Pieces


def make_arms(preset: Preset, model: str, flat: Iterable[Mapping[str, Any]]) -> list[Arm]:
    """The methods that the arms ask for, each at one sparsity; gate set `all` stands for every set in its file."""
    arms = []
    for one in flat:
        options = _options(preset, one)
        if one["method"] == "moa":
            options["plan"] = preset.moa_plan(model, one["sparsity"])
        if one.get("patterns") == SEARCHED:
            options["patterns"] = preset.minference_patterns(model)
        recipe = one.get("recipe", "none")
        if "gate" not in one:
            method = variant(create(one["method"], **options), one)
            # A configuration that decides the plan stands beside the number, as a gate's name does.
            arms.append(Arm(method, getattr(method, "source", None), recipe))
            continue
        job, _, gate_set = one["gate"].partition(":")
        file = preset.gates(job)
        for name in gate_set_names(file) if gate_set == "all" else [gate_set]:
            gates = [gate.to(preset.config["device"]) for gate in load_gates(file, name)]
            method = variant(create(one["method"], gates=gates, **options), one)
            arms.append(Arm(method, f"{job}:{name}", recipe))
    return arms


def random_arms(
    preset: Preset, arms: Iterable[Mapping[str, Any]], q_heads: int, kv_heads: int, head_dim: int
) -> list[Arm]:
    """The same for random inputs: gates as they are before training. What a gate costs does not depend on it."""
    device, dtype = preset.config["device"], getattr(torch, preset.config["dtype"])
    found = []
    for one in expand(arms):
        options = _options(preset, one)
        if one["method"] == "seer":
            torch.manual_seed(preset.config["seed"])
            about = GateConfig(block=one.get("block", preset.config["block"]))
            options["gates"] = [AttnGate(about, q_heads, kv_heads, head_dim).to(device, dtype)]
        if one["method"] == "moa":
            options["plan"] = _random_plan(preset, q_heads, one["sparsity"])
        method = variant(create(one["method"], **options), one)
        found.append(Arm(method, getattr(method, "source", None)))
    return found


def _random_plan(preset: Preset, heads: int, sparsity: float | None) -> Path:
    """A plan of MoA for one layer whose heads were given random influence: it stands for no model.

    Its windows are as uneven as a search makes them, which is what the kernel's time depends on.
    """
    path = preset.moa_plan(f"random-influence-{heads}", sparsity)
    if not path.exists():
        plan = calibrate.random_plan(heads, sparsity, preset.config["block"], preset.config["seed"])
        atomically(path, lambda part: save_plan(part, plan.alphas, plan.betas, plan.about))
    return path


def _options(preset: Preset, arm: Mapping[str, Any]) -> dict[str, Any]:
    """What the method of an arm is created with, but for its gates and what was searched for its model."""
    options: dict[str, Any] = {} if arm["sparsity"] is None else {"sparsity": arm["sparsity"]}
    if arm["method"] not in (*latency.DENSE, "seer"):  # a gate has its own block, dense methods have none
        options["block"] = arm.get("block", preset.config["block"])
    if arm.get("patterns", SEARCHED) != SEARCHED:
        options["patterns"] = arm["patterns"]
    return options


def _named(arms: Iterable[Arm], block: int) -> list[tuple[str, Any]]:
    """(name, method) for the timings: other patterns or blocks than the usual ones say so, as "seer-128"."""
    named = []
    for method in (arm.method for arm in arms):
        size = getattr(method, "block", block)
        parts = [method.name, *filter(None, [getattr(method, "variant", None)]), *[str(size)] * (size != block)]
        named.append(("-".join(parts), method))
    return named


def _by_model(preset: Preset, about: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The flat arms grouped by the model that they run in, in order of first use."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in expand(about["arms"]):
        groups.setdefault(one.get("model", about["model"]), []).append(one)
    return list(groups.items())


def _model(preset: Preset, name: str) -> Any:
    source = preset.config["models"].get(name, {})
    config = preset.config
    return models.load(preset.model(name), config["device"], config["dtype"], source.get("revision"))


def _windows(
    preset: Preset,
    corpus_name: str,
    context: int,
    documents: int,
    model: Any,
    split: str = "test",
    longest: int | None = None,
    aligned: bool = False,
) -> dict[str, Any]:
    """`corpus.evaluation_windows`; `aligned` ones are the last tokens of the longest window, BOS first."""
    tokens = corpus.read_tokens(preset.tokens(corpus_name), split)
    bos = model.config.bos_token_id
    longest = longest or context
    if not aligned:
        return corpus.evaluation_windows(tokens, context, documents, longest=longest, bos=bos)
    whole = corpus.evaluation_windows(tokens, longest, documents, longest=longest, bos=bos)
    return {name: corpus.with_bos(window[longest - context + 1 :], bos) for name, window in whole.items()}
