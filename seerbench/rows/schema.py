"""schema."""

from __future__ import annotations

import pyarrow as pa

from seerbench.errors import ResultsError

SCHEMA_VERSION = 1
TEXT, NUMBER, WHOLE, FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()
# column -> type; a leading "?" on the name marks a column that may be empty (null).
TABLES: dict[str, dict[str, pa.DataType]] = {
    # One timing: how long one stage of one method took in one round of a cell.
    "samples": {
        "run_id": TEXT,
        "cell": TEXT,  # the shape, context and sparsity in which all methods ran interleaved
        "method": TEXT,
        "stage": TEXT,  # score | select | plan | attend | total | forward | ttft (its plan, attend: all layers')
        "round": WHOLE,
        "order": WHOLE,  # the method's place in the shuffled order of that round
        "ms": NUMBER,
    },
    # One method in one cell: what was asked, what came of it.
    "cells": {
        "run_id": TEXT,
        "sweep": TEXT,  # kernel | methods | training_kernel | ttft
        "cell": TEXT,
        "method": TEXT,
        "implementation": TEXT,
        "device": TEXT,  # the GPU's or CPU's name
        "dtype": TEXT,
        "batch": WHOLE,
        "q_heads": WHOLE,
        "kv_heads": WHOLE,
        "head_dim": WHOLE,
        "context": WHOLE,
        "block_q": WHOLE,
        "block_k": WHOLE,
        "inputs": TEXT,  # random | captured:<model> | random weights:<model>, what else must be known after it
        "mask": TEXT,  # gate | random | gate-shaped | pattern | dense
        "?gate": TEXT,  # the plan file or configuration of a method that has one; null before rows said so
        "?sparsity_requested": NUMBER,
        "?sparsity_realised": NUMBER,
        "seed": WHOLE,
        "status": TEXT,  # measured | refused | failed | out_of_memory
        "?reason": TEXT,
        "?error_vs_oracle": NUMBER,
        "?error_budget": NUMBER,
        "?peak_mib": NUMBER,
        "?flops": NUMBER,
        "source_digest": TEXT,
    },
    # One document: mean negative log-likelihood a token, in nats.
    "perplexity": {
        "run_id": TEXT,
        "experiment": TEXT,
        "model": TEXT,
        "corpus": TEXT,
        "context": WHOLE,
        "method": TEXT,
        "?gate": TEXT,  # e.g. v1:Qavg_Kmaxmin
        "recipe": TEXT,  # none | post | yarn | joint
        "?sparsity_requested": NUMBER,
        "?sparsity_realised": NUMBER,
        "document": TEXT,
        "?nll": NUMBER,
        "tokens": WHOLE,
        "status": TEXT,
        "?reason": TEXT,
    },
    # One example: a retrieval task, scored teacher-forced (correct), or LongBench's, answered and marked (score).
    "tasks": {
        "run_id": TEXT,
        "experiment": TEXT,
        "model": TEXT,
        "corpus": TEXT,
        "task": TEXT,  # passkey | kv | cloze, or one of longbench.TASKS
        "context": WHOLE,  # the upper end of the length bucket; LongBench: tokens of the prompt
        "bucket": TEXT,  # e.g. 256-512; LongBench: 0-4k | 4-8k | 8k+, in words
        "method": TEXT,
        "?gate": TEXT,
        "?sparsity_requested": NUMBER,
        "?sparsity_realised": NUMBER,
        "example": WHOLE,
        "?distance": WHOLE,  # tokens between the fact and the question
        "?correct": FLAG,
        "?score": NUMBER,  # LongBench: 0 to 1; empty where the method refused
        "?prediction": TEXT,
        "?cut": FLAG,  # whether the prompt was cut in the middle to fit the model
        "?definition": TEXT,  # which edition of LongBench's prompts and scorer
        "?reason": TEXT,
    },
    # One logged training step.
    "training": {
        "run_id": TEXT,
        "name": TEXT,  # the model or gate set in the config
        "kind": TEXT,  # pretrain | distill | finetune
        "recipe": TEXT,  # e.g. v1, v2, yarn, joint
        "?sparsity_requested": NUMBER,
        "step": WHOLE,
        "tokens": WHOLE,
        "context": WHOLE,
        "?lm_loss": NUMBER,
        "?gate_loss": NUMBER,
        "learning_rate": NUMBER,
    },
    # One layer and head on one document: how many of the oracle's top-k blocks a method also chose.
    "recall": {
        "run_id": TEXT,
        "experiment": TEXT,
        "model": TEXT,
        "corpus": TEXT,
        "context": WHOLE,
        "method": TEXT,
        "?gate": TEXT,
        "layer": WHOLE,
        "head": WHOLE,
        "document": TEXT,
        "sparsity_requested": NUMBER,
        "sparsity_realised": NUMBER,
        "recall": NUMBER,  # share of the oracle's blocks, at the oracle's own sparsity
        "mass": NUMBER,  # share of the target (row-normalised pooled attention) that is kept
    },
    # One block of one head's map: what the gate says, what the truth is (Figure 7).
    "maps": {
        "run_id": TEXT,
        "model": TEXT,
        "gate": TEXT,
        "document": TEXT,
        "context": WHOLE,
        "block": WHOLE,
        "layer": WHOLE,
        "head": WHOLE,
        "row": WHOLE,
        "column": WHOLE,
        "target": NUMBER,
        "predicted": NUMBER,
    },
    # One execution of one step: the provenance of every row that names its run_id.
    "runs": {
        "run_id": TEXT,
        "step": TEXT,
        "started": TEXT,  # UTC, ISO 8601
        "wall_s": NUMBER,
        "command": TEXT,
        "preset": TEXT,
        "scale": TEXT,  # what the run is, in words, for labels
        "seed": WHOLE,
        "?corpus": TEXT,
        "?corpus_sha256": TEXT,
        "?corpus_split": TEXT,  # train | validation | test: what the step read; null before rows said so
        "?commit": TEXT,  # null where neither git nor SEERBENCH_COMMIT says it; never guessed
        "?dirty": FLAG,
        "source_digest": TEXT,
        "device": TEXT,
        "?driver": TEXT,
        "?sm_clock_mhz": NUMBER,
        "threads": WHOLE,
        "platform": TEXT,
        "versions": TEXT,  # JSON: python, torch, triton, transformers, seerbench, ...
    },
}


def schema(table: str) -> pa.Schema:
    """The pyarrow schema of `table`; ResultsError names the known tables for another."""
    if table not in TABLES:
        raise ResultsError(f"no table {table!r}; the tables are {', '.join(TABLES)}")
    return pa.schema(
        [pa.field(name.lstrip("?"), kind, nullable=name[0] == "?") for name, kind in TABLES[table].items()]
    )
