"""Synthetic rows: a small run with made-up numbers, for tests of artefacts and of the report.

The numbers never leave the folders of the tests. `write_run` writes every table that an artefact reads.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seerbench.paths import ROOT
from seerbench.rows.provenance import provenance
from seerbench.rows.schema import CAPTURED, RANDOM
from seerbench.rows.store import Run, write_rows

PAPER = ROOT / "results" / "paper"
SCALE = "synthetic rows of a test"
SPARSITIES = (0.4, 0.6, 0.9)
POOLS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
# method -> the loss at sparsity 1, in nats per token
LOSS = {"seer": 0.3, "moa": 0.6, "minference": 0.5, "streaming": 0.9, "oracle": 0.2, "random": 1.5}
GATE = "long:v1"
DENSE = ("dense", None, "none", None, 0.0)  # a cell of `perplexity`

Row = dict[str, Any]
# (method, sparsity, stage -> ms, peak MiB) of one method in a timing sweep; a dense method is in every cell.
Timed = tuple[str, float | None, Mapping[str, float], float]


@functools.cache
def _provenance() -> Row:
    """Return one real `runs` row; asking git for each synthetic one would take most of a test's time."""
    return provenance("any", preset="test", scale=SCALE, scale_kind="toy", seed=0, device="cpu")


def origin(step: str, number: int | str = 0, **changes: Any) -> Row:
    """Return a `runs` row whose facts do not depend on this machine, except for the source digest."""
    fixed = {
        "run_id": f"{step}-{number}",
        "step": step,
        "started": "2026-11-22T10:00:00+00:00",
        "commit": "abc1234def",
        "dirty": False,
        "device": "Test CPU, 2 cores",
        "driver": None,
    }
    return {**_provenance(), **fixed, **changes}


def perplexity(
    run_id: str, experiment: str, cells: Sequence[tuple], contexts: Sequence[int], documents: int = 6
) -> list[Row]:
    """Return perplexity rows. A cell is (method, gate, recipe, sparsity, loss at sparsity 1).

    NLL = 2.3 + the document's own level + a loss that grows with the cube of the sparsity.
    """
    rng = np.random.default_rng(0)
    level = rng.normal(0, 0.2, documents)
    rows = []
    for context, (method, gate, recipe, sparsity, loss), document in itertools.product(
        contexts, cells, range(documents)
    ):
        nll = 2.3 - 0.05 * np.log2(context / 512) + level[document]
        nll += 0 if sparsity is None else loss * sparsity**3 + rng.normal(0, 0.003)
        rows.append(
            {
                "run_id": run_id,
                "experiment": experiment,
                "model": "tiny",
                "corpus": "stdlib",
                "context": context,
                "method": method,
                "gate": gate,
                "recipe": recipe,
                "sparsity_requested": sparsity,
                "sparsity_realised": 0.0 if sparsity is None else sparsity - 0.01,
                "threshold": None,
                "document": f"d{document}",
                "nll": nll,
                "tokens": context - 1,
                "status": "measured",
                "reason": None,
            }
        )
    return rows


def timings(
    run_id: str,
    sweep: str,
    context: int,
    methods: Sequence[Timed],
    rounds: int = 12,
    refused: Mapping[str, str] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Return (cells, samples) of one sweep at one context. refused: method -> reason."""
    refused = refused or {}
    rng = np.random.default_rng(context)
    sparsities = sorted({sparsity for _, sparsity, _, _ in methods if sparsity is not None}) or [None]
    captured = sweep != "kernel"
    cells, samples = [], []
    for cell_sparsity in sparsities:
        name = f"{sweep}-{context}-{cell_sparsity}"
        shared_noise = rng.lognormal(0, 0.1, rounds)
        for order, (method, sparsity, stages, peak) in enumerate(methods):
            if sparsity not in (None, cell_sparsity):
                continue
            reason = refused.get(method)
            cells.append(
                {
                    "run_id": run_id,
                    "sweep": sweep,
                    "cell": name,
                    "method": method,
                    "implementation": f"test.{method}",
                    "device": "Test CPU, 2 cores",
                    "dtype": "float32",
                    "batch": 1,
                    "q_heads": 4,
                    "kv_heads": 2,
                    "head_dim": 32,
                    "context": context,
                    "block_q": 64,
                    "block_k": 64,
                    "inputs": "captured:tiny" if captured else "random",
                    "inputs_kind": CAPTURED if captured else RANDOM,
                    "inputs_model": "tiny" if captured else None,
                    "inputs_trained_context": None,
                    "mask": "dense" if sparsity is None else "random",
                    "sparsity_requested": sparsity,
                    "sparsity_realised": None if reason else (sparsity or 0.01) - 0.01,
                    "seed": 0,
                    "status": "refused" if reason else "measured",
                    "reason": reason,
                    "error_vs_oracle": None,
                    "error_budget": None,
                    "peak_mib": None if reason else peak,
                    "flops": None,
                    "source_digest": "0",
                }
            )
            for (stage, ms), number in itertools.product(stages.items(), range(rounds)):
                if not reason:
                    noise = shared_noise[number] * rng.lognormal(0, 0.02)
                    key = {"run_id": run_id, "cell": name, "method": method, "stage": stage}
                    samples.append({**key, "round": number, "order": order, "ms": ms * noise})
    return cells, samples


def write_timings(
    folder: Path, sweep: str, context: int, methods: Sequence[Timed], refused: Mapping[str, str] | None = None
) -> None:
    """Write the cells and samples of one sweep at one context."""
    run = origin("latency", f"{sweep}-{context}")
    cells, samples = timings(run["run_id"], sweep, context, methods, refused=refused)
    write_rows(folder / "cells" / f"{sweep}-{context}.parquet", "cells", cells, run)
    write_rows(folder / "samples" / f"{sweep}-{context}.parquet", "samples", samples, run)


def write_kernel_run(folder: Path, ms: float, context: int = 32768, **changes: Any) -> Run:
    """Write a GPU run whose kernel sweep at 90% took `ms` where FlashAttention-2 took 60 ms, and return it.

    changes: facts of the execution that differ.
    """
    facts = {"driver": "600.1", "started": "2026-11-24T01:00:00+00:00", "device": "Test GPU", "scale_kind": "paper"}
    run = origin("latency", folder.name, **(facts | changes))
    methods: list[Timed] = [("fa2", None, {"attend": 60.0}, 1.0), ("block_sparse", 0.9, {"attend": ms}, 1.0)]
    cells, samples = timings(run["run_id"], "kernel", context, methods)
    write_rows(folder / "cells" / "a.parquet", "cells", cells, run)
    write_rows(folder / "samples" / "a.parquet", "samples", samples, run)
    return Run(folder)


def write_run(folder: Path) -> Path:
    """Write a whole run, with every table that an artefact reads, and return its folder."""
    _write_perplexity(folder)
    _write_training(folder)
    for context in (1024, 4096):
        _write_all_timings(folder, context)
    _write_tasks(folder)
    _write_decoded(folder)
    _write_recall(folder)
    _write_maps(folder)
    return folder


def _write_perplexity(folder: Path) -> None:
    run = origin("perplexity")

    def write(experiment: str, cells: Sequence[tuple], contexts: Sequence[int]) -> None:
        rows = perplexity(run["run_id"], experiment, cells, contexts)
        write_rows(folder / "perplexity" / f"{experiment}.parquet", "perplexity", rows, run)

    methods = [("seer", GATE, "none", sparsity, LOSS["seer"]) for sparsity in SPARSITIES]
    methods += [("seer", "long:untrained", "none", sparsity, 1.4) for sparsity in SPARSITIES]
    others = {name: loss for name, loss in LOSS.items() if name != "seer"}
    methods += [(name, None, "none", s, loss) for name, loss in others.items() for s in SPARSITIES]
    write("contexts", [DENSE, *methods], (512, 1024, 2048))
    gates = (("short:rope", 0.4), ("short:norope", 1.2))
    rope = [("seer", gate, "none", sparsity, loss) for gate, loss in gates for sparsity in (0.5, 0.7)]
    write("rope", [DENSE, *rope], (512, 1024, 2048))
    pairs = enumerate(itertools.product(POOLS, POOLS))
    pooling = [
        ("seer", f"pooling:Q{q}_K{k}", "none", sparsity, 0.3 + 0.01 * place)
        for place, (q, k) in pairs
        for sparsity in (0.5, 0.9)
    ]
    write("pooling", pooling, (1024,))
    gates = ((GATE, 0.3), ("block128:v1", 0.5), ("quarter:v1", 0.4))
    ablation = [("seer", gate, "post", sparsity, loss) for gate, loss in gates for sparsity in (0.5, 0.9)]
    write("gates", [DENSE, *ablation], (1024,))
    recipes = (("post", 0.3), ("joint", 0.1))
    yarn = [("seer", GATE, recipe, sparsity, loss) for recipe, loss in recipes for sparsity in (0.5, 0.9)]
    write("use", [DENSE], (512, 2048))
    write("use_yarn", [("dense", None, "yarn", None, 0.0)], (512, 2048, 8192))
    write("yarn", [("dense", None, "yarn", None, 0.0), *yarn], (2048,))


def _write_training(folder: Path) -> None:
    run = origin("finetune")
    steps = [
        {
            "run_id": run["run_id"],
            "name": "yarn",
            "kind": "finetune",
            "recipe": recipe,
            "sparsity_requested": sparsity,
            "step": step,
            "tokens": step * 100,
            "context": 2048,
            "lm_loss": 2.5 + 0.5 * np.exp(-step / 20) + (sparsity or 0) * 0.05,
            "gate_loss": None,
            "learning_rate": 1e-4,
        }
        for recipe, sparsity in (("yarn", None), ("joint", 0.5), ("joint", 0.9))
        for step in range(0, 100, 5)
    ]
    write_rows(folder / "training" / "finetune-yarn.parquet", "training", steps, run)
    distilled = {"kind": "distill", "recipe": "v1", "context": 512}
    for name, count in (("short", 5), ("quarter", 5), ("long", 17)):  # tokens: 2,000, 2,000, 8,000
        rows = [row | distilled | {"name": name} for row in steps[:count]]
        write_rows(folder / "training" / f"distill-{name}.parquet", "training", rows, run)


def _write_all_timings(folder: Path, context: int) -> None:
    """Write all four sweeps at one context. At 1k MInference is refused, at 4k the naive kernel."""
    scale = (context / 1024) ** 2
    kernel: list[Timed] = [("dense", None, {"attend": 10 * scale}, 10.0)]
    kernel += [("block_sparse", s, {"attend": 10 * scale * (1 - s) + 0.5}, 10.0) for s in SPARSITIES]
    write_timings(folder, "kernel", context, kernel)
    methods: list[Timed] = [("dense", None, {"attend": 10 * scale, "total": 10 * scale}, 10.0)]
    for name, sparsity in itertools.product(("seer", "moa", "minference", "streaming"), SPARSITIES):
        attend, plan = 10 * scale * (1 - sparsity) + 0.6, {"seer": 0.4, "minference": 2.0}.get(name, 0.05) * scale
        stages = {"plan": plan, "attend": attend, "total": attend + plan}
        if name == "seer":
            stages |= {"score": 0.7 * plan, "select": 0.3 * plan}
        methods.append((name, sparsity, stages, 10.0))
    refused = {"minference": "head_dim 32 is not 128"} if context == 1024 else {}
    write_timings(folder, "methods", context, methods, refused)
    ttft: list[Timed] = [("dense", None, {"ttft": 900 * scale}, 10.0)]
    ttft += [(name, 0.6, {"ttft": 700 * scale}, 10.0) for name in ("seer", "minference")]
    write_timings(folder, "ttft", context, ttft, refused)
    training: list[Timed] = [
        ("dense", None, {"forward": 10 * scale}, 20.0 * context / 1024),
        ("pooled", None, {"forward": 12 * scale}, 22.0 * context / 1024),
        ("naive", None, {"forward": 60 * scale}, 100.0 * scale),
    ]
    refused = {"naive": "the map needs 512 GiB"} if context == 4096 else {}
    write_timings(folder, "training_kernel", context, training, refused)
    _write_decoding(folder, context)


def _write_decoding(folder: Path, context: int) -> None:
    """Write the sweep `decode`: a step whose attention is proportional to batch, context and kept blocks."""
    run = origin("latency", f"decode-{context}")
    tables: tuple[list[Row], list[Row]] = [], []
    for batch in (1, 8):
        ms = batch * context / 4096
        methods: list[Timed] = [("dense", None, {"attend": ms}, 1.0)]
        for name, sparsity in itertools.product(("seer-r", "quest", "oracle"), (0.5, 0.9)):
            plan, attend = ms if name == "oracle" else 0.05, ms * (1 - sparsity) + 0.01
            methods.append((name, sparsity, {"plan": plan, "attend": attend, "total": plan + attend}, 1.0))
        refused = {"quest": "no memory was left"} if (batch, context) == (8, 4096) else {}
        for table, rows in zip(tables, timings(run["run_id"], "decode", context, methods, refused=refused)):
            for row in rows:
                of_batch = {"batch": batch} if "batch" in row else {}
                table.append(row | of_batch | {"cell": f"{row['cell']}-b{batch}"})
    for name, table in zip(("cells", "samples"), tables):
        write_rows(folder / name / f"decode-{context}.parquet", name, table, run)


def _write_tasks(folder: Path) -> None:
    run = origin("tasks")
    rng = np.random.default_rng(0)
    tasks = [
        {
            "run_id": run["run_id"],
            "experiment": "retrieval",
            "model": "tiny",
            "corpus": "stdlib",
            "task": task,
            "context": context,
            "bucket": f"{context // 2}-{context}",
            "method": method,
            "gate": GATE if method == "seer" else None,
            "sparsity_requested": sparsity,
            "sparsity_realised": sparsity or 0.0,
            "example": example,
            "distance": int(rng.integers(10, context)),
            "correct": bool(rng.random() < share),
        }
        for method, sparsity, share in (("dense", None, 0.95), ("seer", 0.5, 0.9), ("streaming", 0.5, 0.4))
        for task in ("passkey", "kv", "cloze")
        for context in (512, 1024)
        for example in range(20)
    ]
    write_rows(folder / "tasks" / "retrieval.parquet", "tasks", tasks, run)
    write_rows(folder / "tasks" / "ruler.parquet", "tasks", ruler_rows(run["run_id"]), run)
    # With one row in the asking block the gate finds all facts, with 16 rows none beyond its window.
    asking = [
        {
            **row,
            "experiment": "asking-rows",
            "context": 1008 + asking_rows,
            "bucket": "992-1024",
            "asking_rows": None if row["method"] == "dense" else asking_rows,
            "correct": row["method"] == "dense" or asking_rows == 1 or row["distance"] < 100,
        }
        for row in tasks
        for asking_rows in (1, 16)
        if row["task"] == "kv" and row["context"] == 1024 and row["method"] != "streaming"
    ]
    write_rows(folder / "tasks" / "asking-rows.parquet", "tasks", asking, run)


def _write_decoded(folder: Path) -> None:
    """Write losses and scores under methods for decoding, which lose 64 tokens over the budget in nats or points.

    Quest refuses the task `vt`. One arm has a sparse prefill.
    """
    run = origin("decode")
    ways: list[Row] = [{"decode": "dense"}, {"decode": "seer-r", "decode_threshold": 0.01}]
    ways += [{"decode": name, "decode_budget": budget} for name in ("seer-r", "quest") for budget in (256, 512)]
    prefills: list[Row] = [{"method": "dense", "sparsity_requested": None}] * len(ways)
    ways.append({"decode": "quest", "decode_budget": 256})
    prefills.append({"method": "streaming", "sparsity_requested": 0.5})
    losses, scores = [], []
    for way, prefill in zip(ways, prefills, strict=True):
        dense = way["decode"] == "dense"
        lost = 0.0 if dense else 64 / way.get("decode_budget", 1024)
        labels = way | {
            "run_id": run["run_id"],
            "experiment": "decode",
            "model": "tiny",
            "corpus": "books",
            "context": 1024,
            "gate": None,
            "decode_gate": "decode:r" if way["decode"] == "seer-r" else None,
            "decode_block": None if dense else 64,
            "decode_sparsity": 0.0 if dense else 1 - (way.get("decode_budget", 512) + 128) / 1024,
            "sparsity_realised": prefill["sparsity_requested"] or 0.0,
        }
        losses += [
            {
                **labels,
                **prefill,
                "recipe": "none",
                "document": f"d{document}",
                "nll": 2.3 + 0.1 * document + lost + 0.01 * document * lost,
                "tokens": 128,
                "status": "measured",
            }
            for document in range(5)
        ]
        for task, example in itertools.product(("niah_multivalue-books", "vt"), range(4)):
            refused = task == "vt" and way["decode"] == "quest"
            asked = {"experiment": "decode-ruler", "task": task, "bucket": "1024", "example": example}
            mark = {"reason": "too long"} if refused else {"score": (1 if task == "vt" else 0.5) - lost}
            scores.append({**labels, **prefill, **asked, **mark})
    write_rows(folder / "perplexity" / "decode.parquet", "perplexity", losses, run)
    write_rows(folder / "tasks" / "decode-ruler.parquet", "tasks", scores, run)


def longbench_rows(run_id: str, seer: float = 0.6) -> list[Row]:
    """Return two tasks in two buckets: dense scores 0.5, SeerAttention at 10% `seer`, MInference 0.4.

    MInference refuses the shorter bucket.
    """
    rows = []
    for bucket, task, example in itertools.product(("0-4k", "8k+"), ("qasper", "lcc"), range(4)):
        for method, sparsity, score in (("dense", None, 0.5), ("seer", 0.1, seer), ("minference", None, 0.4)):
            refused = method == "minference" and bucket == "0-4k"
            rows.append(
                {
                    "run_id": run_id,
                    "experiment": "longbench",
                    "model": "instruct",
                    "corpus": "LongBench-E",
                    "task": task,
                    "context": 1000 + example,
                    "bucket": bucket,
                    "method": method,
                    "gate": "instruct:v1" if method == "seer" else None,
                    "sparsity_requested": sparsity,
                    "sparsity_realised": 0.0 if sparsity is None else 0.12,
                    "example": example,
                    "score": None if refused else score + (0.2 if task == "lcc" else 0.0),
                    "prediction": "an answer",
                    "cut": example == 0,
                    "definition": "edition of a test",
                    "reason": "too short" if refused else None,
                }
            )
    return rows


def ruler_rows(run_id: str) -> list[Row]:
    """Return four tasks at two lengths, of 8 examples each.

    Dense scores 1 in two needle tasks, 0.5 in `vt` and nothing in `cwe`; StreamingLLM half of that, and all of it
    with dense last rows. It refuses `vt` at 1024 tokens.
    """
    rows = []
    dense = {"niah_single_1": 1.0, "niah_multikey_1-books": 1.0, "vt": 0.5, "cwe": 0.0}
    methods = (("dense", None, 0, 1.0), ("streaming", 0.5, 0, 0.5), ("streaming+last2", 0.5, 2, 1.0))
    for context, (task, score), example in itertools.product((1024, 4096), dense.items(), range(8)):
        for method, sparsity, last_rows, share in methods:
            refused = (method, task, context) == ("streaming", "vt", 1024)
            asked = {"depth": example / 7, "distance": 1000 - 100 * example} if task.startswith("niah") else {}
            rows.append(
                {
                    "run_id": run_id,
                    "experiment": "ruler",
                    "model": "instruct",
                    "corpus": "books",
                    "task": task,
                    "context": context,
                    "bucket": str(context),
                    "method": method,
                    "sparsity_requested": sparsity,
                    "sparsity_realised": 0.0 if sparsity is None else 0.51,
                    "last_rows_dense": last_rows,
                    "example": example,
                    "score": None if refused else score * share,
                    "prediction": "an answer",
                    "references": '["an answer"]',
                    "definition": "edition of a test",
                    "reason": "too short" if refused else None,
                }
                | asked
            )
    return rows


def _write_recall(folder: Path) -> None:
    run = origin("recall")
    rng = np.random.default_rng(1)
    shares = {("seer", GATE): 0.8, ("seer", "long:untrained"): 0.4, ("streaming", None): 0.3}
    recall = [
        {
            "run_id": run["run_id"],
            "experiment": "gates",
            "model": "tiny",
            "corpus": "stdlib",
            "context": 1024,
            "method": method,
            "gate": gate,
            "layer": layer,
            "head": head,
            "document": f"d{document}",
            "sparsity_requested": sparsity,
            "sparsity_realised": sparsity,
            "recall": share + rng.normal(0, 0.05),
            "mass": share + 0.1 + rng.normal(0, 0.02),
        }
        for (method, gate), share in shares.items()
        for sparsity in (0.5, 0.9)
        for layer, head, document in itertools.product(range(2), range(2), range(5))
    ]
    write_rows(folder / "recall" / "gates.parquet", "recall", recall, run)
    # The first head looks up the answer, and gates find its block in as many documents as their share says.
    asked = [
        {
            **row,
            "experiment": "gates-kv",
            "task": "kv",
            "asked_mass": 0.6 if row["head"] == 0 else 0.1,
            "asked_kept": row["head"] == 0 and int(row["document"][1:]) < 5 * shares[row["method"], row["gate"]],
        }
        for row in recall
    ]
    write_rows(folder / "recall" / "gates-kv.parquet", "recall", asked, run)


def _write_maps(folder: Path) -> None:
    run = origin("maps")
    rng = np.random.default_rng(2)
    every_block = {
        "run_id": run["run_id"],
        "model": "tiny",
        "gate": GATE,
        "document": "d0",
        "context": 1024,
        "block": 64,
    }
    rows = []
    for layer, head in ((0, 0), (0, 3), (1, 1)):
        for row in range(16):
            weight = rng.random(row + 1) ** 6 + 1e-3
            weight[0] += head
            for column, target in enumerate(weight / weight.sum()):
                place = {"layer": layer, "head": head, "row": row, "column": column}
                rows.append({**every_block, **place, "target": target, "predicted": 0.8 * target + 0.2 / (row + 1)})
    write_rows(folder / "maps" / "maps.parquet", "maps", rows, run)
