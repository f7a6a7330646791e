"""The steps of the DAG: each reads files of a preset's run, calls one module, writes rows or a model.

`cli.py` gives each a sub-command and the rules call those; nothing here is reached in another way.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from seerbench import (
    accuracy,
    calibrate,
    corpus,
    distill,
    latency,
    longbench,
    models,
    random_weights,
    sharded,
    train,
)
from seerbench.accuracy import Arm
from seerbench.attention import Case
from seerbench.baselines.minference import save_patterns
from seerbench.baselines.moa import save_plan
from seerbench.config import PAPER_GATE, SEARCHED, ConfigError, Preset, at_context, expand
from seerbench.gate import AttnGate, GateConfig, gate_set_names, load_gates, save_gates
from seerbench.registry import create
from seerbench.released_gates import read_released
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
    """Tokenizer (trained, or fetched) and every corpus, tokenised; one corpus' texts in memory at a time."""
    about = preset.config["tokenizer"]
    if "source" in about:
        tokenizer = corpus.load_tokenizer(preset.local(about["source"]), about.get("revision"))
        tokenizer.save_pretrained(preset.tokenizer)
    else:
        frame = _texts(preset, about["corpus"])
        training = frame[frame.split == "train"].text.tolist()
        tokenizer = corpus.train_tokenizer(training, about["vocab"], preset.tokenizer)
    for name, source in preset.config["corpora"].items():
        own = _tokenizer(preset, source["tokenizer"]) if "tokenizer" in source else tokenizer
        corpus.tokenise(_texts(preset, name), own, preset.tokens(name), name=name, source=source)


def _texts(preset: Preset, name: str) -> pd.DataFrame:
    """The documents of a corpus, its path or data set looked for in the data folder first."""
    source = {key: value for key, value in preset.config["corpora"][name].items() if key != "tokenizer"}
    if source["kind"] == "union":
        return corpus.union_of({part: _texts(preset, part) for part in source["of"]})
    if "path" in source:
        source["path"] = str(preset.data(source["path"]))
    if "name" in source:
        source["name"] = str(preset.local(source["name"]))
    return corpus.read_texts(source)


def _tokenizer(preset: Preset, model: str) -> Any:
    """A model's own tokenizer."""
    return corpus.load_tokenizer(preset.model(model), preset.config["models"].get(model, {}).get("revision"))


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
    if "source" in about:
        raise ConfigError(f"the gates {name!r} are released ones; run: seerbench import-gates {preset.name} {name}")
    model = preset.config["models"].get(about["model"], {})
    run = start(preset, f"distill {name}", about["corpus"], "train")
    with sharded.processes(preset.config["device"]) as device:
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
        if sharded.rank_of()[0]:
            return
    rows = [{"name": name, "kind": "distill", **row} for row in rows]
    save(preset, "training", f"distill-{name}", rows, run)
    train.drop_checkpoint(preset.gates(name))


def import_gates(preset: Preset, name: str) -> None:
    """Gates that their authors released, as one gate set named after its recipe (v1 or v2)."""
    about = preset.one_of("gates", name)
    if "source" not in about:
        raise ConfigError(f"the gates {name!r} are trained here; run: seerbench distill {preset.name} {name}")
    local = preset.data(about["source"])
    gates = read_released(local if local.is_dir() else about["source"], about.get("revision"))
    models.check_gates(gates, preset.model(about["model"]), preset.config["models"][about["model"]].get("revision"))
    recipe = gates[0].config.recipe
    atomically(preset.gates(name), lambda part: save_gates(part, {recipe: gates}))


def finetune_model(preset: Preset, name: str) -> None:
    """Extend a model's context: `yarn` dense, or `joint-<sparsity>` with its gates."""
    about, joint = preset.config["extend"], preset.joint_models()
    if name != "yarn" and name not in joint:
        raise ConfigError(f"no model {name!r} to fine-tune; the preset has yarn, {', '.join(joint)}")
    run = start(preset, f"finetune {name}", about["corpus"], "train")
    with sharded.processes(preset.config["device"]) as device:
        rows = distill.finetune(
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
        if sharded.rank_of()[0]:
            return
    recipe = "joint" if name in joint else "yarn"
    extra = {"name": name, "kind": "finetune", "recipe": recipe, "sparsity_requested": joint.get(name)}
    save(preset, "training", f"finetune-{name}", [{**extra, **row} for row in rows], run)
    train.drop_checkpoint(Path(preset.model(name)))


def profile_model(preset: Preset, name: str) -> None:
    """MoA's plans of a model, one for each sparsity that the preset asks for."""
    about, block = preset.config["profile"], preset.config["block"]
    model = _model(preset, name, about["corpus"])
    documents, longest = about["documents"], about["context"]
    # The first documents are profiled; plans are compared on the next ones that are long enough.
    text = corpus.read_tokens(preset.tokens(about["corpus"]), about.get("split", "validation"))
    bos = model.config.bos_token_id
    reach = min(int(calibrate.VALIDATION * longest), model.config.max_position_embeddings)

    def windows(of: Mapping[str, Any], context: int) -> dict[str, np.ndarray]:
        return corpus.evaluation_windows(of, context, documents, longest=max(context, longest), bos=bos)

    profiled = {length: windows(text, length) for length in calibrate.moa_lengths(longest)}
    rest = {document: tokens for document, tokens in text.items() if document not in profiled[longest]}
    plans = calibrate.moa_plans(
        model,
        {length: list(found.values()) for length, found in profiled.items()},
        list(windows(rest, reach).values()),
        preset.moa_sparsities() or [None],
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
    model = _model(preset, name, about["corpus"])
    documents = corpus.read_tokens(preset.tokens(about["corpus"]), about.get("split", "validation"))
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
    with tqdm(total=0, desc=f"perplexity {experiment}", unit="doc", mininterval=1) as bar:
        for name, flat in _by_model(preset, about):
            model = _model(preset, name, about["corpus"])
            arms = make_arms(preset, name, flat)
            for context in about["contexts"]:
                windows = _windows(
                    preset,
                    about["corpus"],
                    context,
                    about.get("documents"),
                    model,
                    longest=max(about["contexts"]),
                    aligned="scored" in about,
                    reaching=about.get("reaching"),
                )
                bar.total += len(windows) * len(arms)
                fixed = {"experiment": experiment, "model": name, "corpus": about["corpus"]}
                found = accuracy.perplexity(model, windows, arms, bar, about.get("scored"))
                rows += [fixed | row for row in found]
    save(preset, "perplexity", experiment, rows, run)


def measure_tasks(preset: Preset, experiment: str) -> None:
    """One experiment of tasks: retrieval at given lengths, or LongBench-E."""
    if "longbench" in preset.one_of("tasks", experiment):
        measure_longbench(preset, experiment)
    else:
        measure_retrieval(preset, experiment)


def measure_longbench(preset: Preset, experiment: str) -> None:
    """LongBench-E: every question and arm, answered and scored."""
    about = preset.one_of("tasks", experiment)
    run = start(preset, f"tasks {experiment}")
    files = [longbench.ARCHIVE, "*_e.jsonl", "data/*_e.jsonl"]
    folder = corpus.dataset_folder(str(preset.local(about["longbench"])), files, about.get("revision"))
    questions = longbench.read_examples(folder, about.get("tasks", list(longbench.TASKS)), about.get("examples"))
    run |= {"corpus": longbench.CORPUS, "corpus_sha256": longbench.digest(questions), "corpus_split": "test"}
    rows = []
    with tqdm(total=0, desc=f"tasks {experiment}", unit="answer", mininterval=1) as bar:
        for name, flat in _by_model(preset, about):
            model = _model(preset, name)
            arms = make_arms(preset, name, flat)
            bar.total += len(questions) * len(arms)
            found = accuracy.answers(model, _tokenizer(preset, name), questions, arms, bar)
            rows += [{"experiment": experiment, "model": name, "corpus": longbench.CORPUS} | row for row in found]
    save(preset, "tasks", experiment, rows, run)


def measure_retrieval(preset: Preset, experiment: str) -> None:
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
            model = _model(preset, name, about["corpus"])
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
    model = _model(preset, name, about["corpus"])
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
    model = _model(preset, about["model"], about["corpus"])
    windows = _windows(preset, about["corpus"], about["context"], 1, model)
    document, window = next(iter(windows.items()))
    job, _, gate_set = about["gate"].partition(":")
    gates = [gate.to(preset.config["device"]) for gate in load_gates(preset.gates(job), gate_set)]
    rows = accuracy.gate_maps(model, document, window, gates)
    fixed = {"model": about["model"], "gate": about["gate"]}
    save(preset, "maps", "maps", [fixed | row for row in rows], run)


# Time


def measure_latency(preset: Preset, sweep: str, contexts: Iterable[int]) -> None:
    """Timing jobs: a sweep, one context after the other, methods interleaved at each; a model is loaded once."""
    config, about = preset.config, preset.config["latency"]["sweeps"][sweep]
    corpus_name = about.get("corpus")
    model = _model(preset, about["model"], corpus_name) if "model" in about else None
    knobs = {"rounds", "min_rounds", "cap_s"}
    knobs = {name: value for name, value in {**config["latency"], **about}.items() if name in knobs}
    timing = Timing(**knobs, seed=config["seed"])
    for context in contexts:
        run = start(preset, f"latency {sweep} {context}", corpus_name, "test" if corpus_name else None)
        job = timing, run["run_id"]
        if model is None:
            found = _time_shape(preset, sweep, about, context, *job)
        else:
            found = _time_in_model(preset, sweep, about, context, model, *job)
        part = f"{sweep}-{context}"
        save(preset, "cells", part, found.cells, run)
        save(preset, "samples", part, found.samples, run)


def _time_in_model(
    preset: Preset, sweep: str, about: Mapping[str, Any], context: int, model: Any, timing: Timing, run_id: str
) -> latency.Rows:
    """The sweeps `methods` and `ttft` on a model, its weights real or random."""
    name, block = about["model"], preset.config["block"]
    arms = at_context(about["arms"], about["contexts"], context)
    if preset.is_random(name):
        inputs, tokens = f"{random_weights.INPUTS}:{name}", _random_tokens(preset, context, model)
        methods = random_arms(preset, arms, latency.case_of_model(model, context, block), model=name)
    else:
        positions = model.config.max_position_embeddings
        beyond = f", beyond the {positions} tokens of its training" if context > positions else ""
        inputs, tokens = f"captured:{name}{beyond}", _timed_tokens(preset, about["corpus"], context, model)
        methods = make_arms(preset, name, expand(arms))
    named = _named(methods, block)
    if sweep == "ttft":
        return latency.ttft_sweep(model, inputs, tokens, named, timing, run_id, block, preset.is_random(name))
    attention = latency.capture(model, tokens, about.get("layer"))
    return latency.methods_sweep(inputs, attention, named, timing, run_id, block)


def _time_shape(
    preset: Preset, sweep: str, about: Mapping[str, Any], context: int, timing: Timing, run_id: str
) -> latency.Rows:
    """The sweeps that need no model: random inputs of the preset's shape."""
    config, shape = preset.config, preset.config["latency"]["shape"]
    heads = shape["q_heads"], shape["kv_heads"], shape["head_dim"]
    block = shape["block"]
    case = Case(config["device"], config["dtype"], shape["batch"], *heads, context, block, block)
    if sweep == "kernel":
        return latency.kernel_sweep(
            case,
            about["sparsities"],
            timing,
            run_id,
            {name: latency.sparse_kernel(name) for name in ["block_sparse", *about.get("kernels", [])]},
            {name: create(name) for name in about.get("dense", [])},
            about.get("blocks", [block]),
            about.get("masks", ["random"]),
        )
    if sweep == "methods":
        attention = latency.random_attention(case, config["seed"])
        methods = _named(random_arms(preset, at_context(about["arms"], about["contexts"], context), case), block)
        return latency.methods_sweep("random", attention, methods, timing, run_id, block)
    return latency.training_kernel_sweep(case, timing, run_id, config["latency"]["naive_limit_mib"])


def _timed_tokens(preset: Preset, corpus_name: str, context: int, model: Any) -> torch.Tensor:
    """[1, context] of held-out text, documents end to end: timing may need more than one document has."""
    documents = corpus.read_tokens(preset.tokens(corpus_name), "test")
    ends = model.config.eos_token_id  # several in the configs of chat models
    stream = corpus.packed(documents, ends[0] if isinstance(ends, list) else ends)
    window = corpus.training_windows(stream, context, 1, np.random.default_rng(0), bos=model.config.bos_token_id)
    return torch.from_numpy(window).long().to(preset.config["device"])


def _random_tokens(preset: Preset, context: int, model: Any) -> torch.Tensor:
    """[1, context] of the model's vocabulary: random weights read no text."""
    device = preset.config["device"]
    generator = torch.Generator(device).manual_seed(preset.config["seed"])
    return torch.randint(model.config.vocab_size, (1, context), generator=generator, device=device)


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
    preset: Preset, arms: Iterable[Mapping[str, Any]], case: Case, model: str | None = None
) -> list[Arm]:
    """The same for random inputs of a case, or for a `model` with random weights: see random_weights.py."""
    seed, dtype = preset.config["seed"], getattr(torch, case.dtype)
    layers = 1 if model is None else preset.config["models"][model]["random"]["num_hidden_layers"]
    found = []
    for one in expand(arms):
        options = _options(preset, one)
        if one["method"] == "seer":
            torch.manual_seed(seed)
            about = GateConfig(block=one.get("block", preset.config["block"]))
            options["gates"] = [
                AttnGate(about, case.q_heads, case.kv_heads, case.head_dim).to(case.device, dtype)
                for _ in range(layers)
            ]
        if one["method"] == "moa":
            options["plan"] = _random_plan(preset, case.q_heads, one["sparsity"], layers)
        method = variant(create(one["method"], **options), one)
        found.append(Arm(method, getattr(method, "source", None)))
    return found


def _random_plan(preset: Preset, heads: int, sparsity: float | None, layers: int = 1) -> Path:
    """A plan of MoA for layers alike whose heads were given random influence: it stands for no model.

    Its windows are as uneven as a search makes them, which is what the kernel's time depends on.
    """
    path = preset.moa_plan(f"random-influence-{layers}x{heads}", sparsity)
    if not path.exists():
        plan = calibrate.random_plan(heads, sparsity, preset.config["block"], preset.config["seed"])
        alphas, betas = (np.repeat(rules, layers, axis=0) for rules in (plan.alphas, plan.betas))
        atomically(path, lambda part: save_plan(part, alphas, betas, plan.about))
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
    """(name, method) for the timings: other patterns or blocks than the usual ones say so, as "seer-128".

    So does a gate set other than the paper's v1, as "seer-v2", where there are several in the sweep.
    """
    arms = list(arms)
    sets = [arm.gate.partition(":")[2] if arm.gate and arm.method.name.startswith("seer") else "" for arm in arms]
    several = len({name for name in sets if name}) > 1
    named = []
    for arm, gate_set in zip(arms, sets, strict=True):
        size = getattr(arm.method, "block", block)
        parts = [arm.method.name, getattr(arm.method, "variant", None)]
        if several and gate_set != PAPER_GATE:
            parts.append(gate_set)
        if size != block and arm.method.name not in latency.DENSE:  # FlexAttention's own says nothing of dense
            parts.append(str(size))
        named.append(("-".join(filter(None, parts)), arm.method))
    return named


def _by_model(preset: Preset, about: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The flat arms grouped by the model that they run in, in order of first use."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in expand(about["arms"]):
        groups.setdefault(one.get("model", about["model"]), []).append(one)
    return list(groups.items())


def _model(preset: Preset, name: str, corpus_name: str | None = None) -> Any:
    """A model; one that was not trained here is refused tokens that its tokenizer did not make."""
    about, config = preset.config["models"].get(name, {}), preset.config
    if preset.is_random(name):
        return random_weights.random_model(about["random"], config["device"], config["dtype"], config["seed"])
    if "source" in about and corpus_name is not None:
        corpus.require_vocabulary(preset.tokens(corpus_name), _tokenizer(preset, name), name)
    return models.load(
        preset.model(name), config["device"], config["dtype"], about.get("revision"), about.get("yarn")
    )


def _windows(
    preset: Preset,
    corpus_name: str,
    context: int,
    documents: int | None,
    model: Any,
    split: str = "test",
    longest: int | None = None,
    aligned: bool = False,
    reaching: int | None = None,
) -> dict[str, Any]:
    """`corpus.evaluation_windows`; `aligned` ones are the last tokens of the longest window, BOS first."""
    tokens = corpus.read_tokens(preset.tokens(corpus_name), split)
    bos = model.config.bos_token_id
    longest = longest or context
    cut = functools.partial(
        corpus.evaluation_windows, tokens, documents=documents, longest=longest, bos=bos, reaching=reaching
    )
    if not aligned:
        return cut(context)
    whole = cut(longest)
    return {name: corpus.with_bos(window[longest - context + 1 :], bos) for name, window in whole.items()}
