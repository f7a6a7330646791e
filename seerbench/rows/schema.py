"""Define the tables of rows: the one place that says which columns a measurement has.

`store.py` checks rows against these schemas when they are written and when they are read. Steps write the rows
(measure/ and training/ make them), artefacts and claims read them. A row states one fact, and code downstream
decides by columns, never by the wording of a text.
"""

from __future__ import annotations

import pyarrow as pa

from seerbench.errors import ResultsError

# Stored in each file. Version 2 added the columns that migration.py fills for files of version 1. Version 3 added
# the load of the machine while a cell was timed, version 4 how a method selects blocks (last_rows_dense, threshold,
# spread, forced), version 5 which texts a corpus was made of (corpus_source) and where weights come from
# (weights), version 6 what a method for decoding keeps (kept_mib), version 7 how new tokens were decoded (decode
# and the columns after it). All are empty in older rows.
SCHEMA_VERSION = 7
TEXT, NUMBER, INTEGER, FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()

# Values of cells.inputs_kind.
RANDOM, CAPTURED, RANDOM_WEIGHTS = "random", "captured", "random_weights"
# Values of status that code decides by: the method was timed, but its numbers cannot be trusted; the method cannot
# do what was requested.
DISTURBED, REFUSED = "disturbed", "refused"
# Largest distance of a realised sparsity from the requested one. Beyond it a method is refused: it would be
# compared with others at a sparsity that it does not have.
TOLERANCE = 0.02
# Values of the column spread: how a requested sparsity is spread over the rows and heads of a layer.
SPREADS = ("row", "layer")
# Values of runs.scale_kind, weakest evidence first. A model that was pre-trained on trillions of tokens says more
# about attention than one that was trained here for minutes, of whatever size.
SCALE_KINDS = ("toy", "small", "real", "paper")

# table -> column -> type. A leading "?" marks a column that may be empty (null); it is not part of the name.
TABLES: dict[str, dict[str, pa.DataType]] = {
    # Each row is one timing: the milliseconds of one stage of one method in one round of a cell.
    "samples": {
        "run_id": TEXT,  # The execution that measured the row; it is a key of the table `runs`, here and below.
        "cell": TEXT,  # The name of the cell, e.g. "kernel-8192-0.90": sweep, context and requested sparsity; in
        # the sweep decode also the batch, e.g. "decode-8192-b8-0.90".
        "method": TEXT,  # The name of the method in the cell, e.g. "seer" or "seer-128".
        "stage": TEXT,  # One of score, select, plan, attend, total, forward, ttft. In ttft cells, plan and attend
        # are sums over all layers of the same forward pass.
        "round": INTEGER,  # The round, counted from 0.
        "order": INTEGER,  # The place of the method in the shuffled order of that round, counted from 0.
        "ms": NUMBER,  # The duration in milliseconds.
    },
    # Each row is one method in one cell: what was requested, on which inputs, and the outcome.
    "cells": {
        "run_id": TEXT,
        "sweep": TEXT,  # One of kernel, authors_kernel, methods, training_kernel, ttft, decode.
        "cell": TEXT,  # The name of the cell, as in `samples`.
        "method": TEXT,  # The name of the method in the cell, as in `samples`.
        "implementation": TEXT,  # The kernel that the method ran on, e.g. "gluon-hopper" or "sdpa-flash".
        "device": TEXT,  # The name of the GPU or CPU.
        "dtype": TEXT,  # The dtype of q, k and v, e.g. "bfloat16".
        "batch": INTEGER,
        "q_heads": INTEGER,
        "kv_heads": INTEGER,
        "head_dim": INTEGER,
        "context": INTEGER,  # The number of tokens; in the sweep decode those before the new one.
        "block_q": INTEGER,  # The number of query rows of a block.
        "block_k": INTEGER,  # The number of key columns of a block.
        "inputs": TEXT,  # What q, k and v are, in words for labels. Code reads the three columns that follow.
        "?inputs_kind": TEXT,  # random: drawn from a normal distribution. captured: from a model. random_weights:
        # from a model with random weights.
        "?inputs_model": TEXT,  # The name of that model; empty for random inputs.
        "?inputs_trained_context": INTEGER,  # The model's training length where the context exceeds it, else empty.
        "mask": TEXT,  # One of gate, random, gate-shaped, authors, pattern, dense: how the blocks were chosen.
        "?gate": TEXT,  # The gate reference, plan file or configuration that decides the plan, if there is one.
        "?sparsity_requested": NUMBER,  # Empty for methods that take no sparsity.
        "?last_rows_dense": INTEGER,  # The block rows at the end that read every key.
        "?threshold": NUMBER,  # Of a gate's softmax, in place of a requested sparsity.
        "?spread": TEXT,  # row: as many blocks in every row of every head. layer: one threshold for all of them.
        "?forced": FLAG,  # Whether block 0 and the diagonal were kept for certain, inside the budget.
        "?sparsity_realised": NUMBER,  # The share of the causal blocks that the plan skips.
        "seed": INTEGER,  # The seed of inputs, masks and the order of rounds.
        "status": TEXT,  # One of measured, refused, failed, out_of_memory, disturbed. The samples of a
        # disturbed cell are kept, but nothing is concluded from them (rows/timings.py).
        "?reason": TEXT,  # Why the method was not measured, or what disturbed its cell; empty if it was measured.
        "?error_vs_oracle": NUMBER,  # The largest absolute error against the float64 reference.
        "?error_budget": NUMBER,  # The largest error that rounding explains (core/tolerance.py).
        "?peak_mib": NUMBER,  # Peak memory of one untimed call beyond its inputs, in MiB.
        "?kept_mib": NUMBER,  # Decode: what the method keeps of the layer beside its cache, in MiB; else empty.
        "?flops": NUMBER,  # Floating-point operations on the kept causal blocks; empty for ttft.
        "?cores_own": NUMBER,  # The cores that this process used on average while the cell was timed.
        "?cores_others": NUMBER,  # The cores that other processes used meanwhile, at least (measure/load.py).
        "?cores_others_peak": NUMBER,  # The same in the busiest half second.
        "?gpu_others": FLAG,  # Whether another process computed on the GPU meanwhile; empty if that is unknown.
        "source_digest": TEXT,  # The digest of kernels and methods (source_digest.py), or of a compared file.
    },
    # Each row is the loss of one method on one document. Where `decode` is given, the last `tokens` tokens were fed
    # one by one after a prefill by the method, and each of them was predicted by a step of decoding.
    "perplexity": {
        "run_id": TEXT,
        "experiment": TEXT,  # The name of the experiment in the preset.
        "model": TEXT,
        "corpus": TEXT,
        "context": INTEGER,  # The number of tokens of the evaluated window.
        "method": TEXT,
        "?gate": TEXT,  # The gate reference "job:set", or what else decides the plan (as in `cells`).
        "recipe": TEXT,  # One of none, post, yarn, joint: how model and gates were trained.
        "?sparsity_requested": NUMBER,
        "?last_rows_dense": INTEGER,  # The block rows at the end that read every key.
        "?threshold": NUMBER,  # Of a gate's softmax, in place of a requested sparsity.
        "?spread": TEXT,  # row: as many blocks in every row of every head. layer: one threshold for all of them.
        "?forced": FLAG,  # Whether block 0 and the diagonal were kept for certain, inside the budget.
        "?sparsity_realised": NUMBER,  # The mean over layers and heads.
        "?decode": TEXT,  # The method for decoding, e.g. "dense" or "seer-r"; empty where the preset names none.
        "?decode_gate": TEXT,  # Its gate reference "job:set".
        "?decode_block": INTEGER,  # Its tokens per block; empty for dense decoding.
        "?decode_budget": INTEGER,  # The tokens of the best blocks that a new token reads, or
        "?decode_threshold": NUMBER,  # the smallest share of the softmax for which a block is read.
        "?decode_sparsity": NUMBER,  # The share of the blocks that decoding skipped, the mean over layers, heads,
        # steps and what was decoded together.
        "document": TEXT,  # The identifier of the document in its corpus.
        "?nll": NUMBER,  # The mean negative log-likelihood in nats per token; empty where there is a reason.
        "tokens": INTEGER,  # The number of tokens that the mean is over.
        "status": TEXT,  # One of measured, refused, failed.
        "?reason": TEXT,  # Why there is no loss; empty if there is one.
    },
    # Each row is one answered example: a look-up, right or wrong (`correct`), or a question of LongBench, RULER or
    # a question set, which is marked (`score`). Answers are decoded greedily, as `decode` says or with dense
    # attention; each token of a `passage` is predicted after the right ones before it. Those of rows before version
    # 4 that are right or wrong had the correct answer given, in one sparse forward pass.
    "tasks": {
        "run_id": TEXT,
        "experiment": TEXT,
        "model": TEXT,
        "corpus": TEXT,
        "task": TEXT,  # A key of lookup_tasks.TASKS or of longbench.TASKS; RULER: tasks.name_in_rows; or a question
        # set, by the name of its experiment.
        "context": INTEGER,  # Look-ups: the upper end of the length bucket. RULER: the length, which prompt and
        # answer share. Otherwise the tokens of the prompt.
        "bucket": TEXT,  # Look-ups and question sets: e.g. "256-512" tokens. RULER: the length. LongBench: 0-4k,
        # 4-8k or 8k+ words.
        "method": TEXT,
        "?gate": TEXT,
        "?sparsity_requested": NUMBER,
        "?last_rows_dense": INTEGER,  # The block rows at the end that read every key.
        "?threshold": NUMBER,  # Of a gate's softmax, in place of a requested sparsity.
        "?spread": TEXT,  # row: as many blocks in every row of every head. layer: one threshold for all of them.
        "?forced": FLAG,  # Whether block 0 and the diagonal were kept for certain, inside the budget.
        "?sparsity_realised": NUMBER,
        "?decode": TEXT,  # The method for decoding, e.g. "dense" or "seer-r"; empty where the preset names none.
        "?decode_gate": TEXT,  # Its gate reference "job:set".
        "?decode_block": INTEGER,  # Its tokens per block; empty for dense decoding.
        "?decode_budget": INTEGER,  # The tokens of the best blocks that a new token reads, or
        "?decode_threshold": NUMBER,  # the smallest share of the softmax for which a block is read.
        "?decode_sparsity": NUMBER,  # The share of the blocks that decoding skipped, the mean over layers, heads,
        # steps and what was decoded together.
        "example": INTEGER,  # The number of the example within its task and bucket (LongBench: within its task).
        "?distance": INTEGER,  # Look-ups: the tokens between the fact and the question. RULER: from the one asked
        # needle to the end of the prompt. Empty otherwise.
        "?depth": NUMBER,  # RULER: the place of the one asked needle in the haystack, from 0 to 1; empty otherwise.
        "?asking_rows": INTEGER,  # Look-ups: the rows of the prompt in the block that asks. Empty for dense
        # methods, and where the question is not in the prompt.
        "?correct": FLAG,  # Whether every token of the answer is right; empty for LongBench.
        "?score": NUMBER,  # The mark, from 0 to 1; empty where there is a reason. Of look-ups only `passage`
        # has one: the share of the answer's tokens that are right.
        "?prediction": TEXT,  # The generated answer.
        "?references": TEXT,  # RULER and question sets: the right answers, a JSON list.
        "?cut": FLAG,  # Whether the middle of the prompt was removed to fit the model; empty for look-ups.
        "?definition": TEXT,  # The edition of prompts and metrics; empty for look-ups.
        "?reason": TEXT,  # Why the example has no mark: the method refused, or the model gave no number.
    },
    # Each row is one logged training step.
    "training": {
        "run_id": TEXT,
        "name": TEXT,  # The model or gate job of the preset.
        "kind": TEXT,  # One of pretrain, distill, finetune.
        "recipe": TEXT,  # pretrain: none. distill: the gate set. finetune: yarn or joint.
        "?sparsity_requested": NUMBER,  # finetune: the sparsity of joint training; empty otherwise.
        "step": INTEGER,
        "tokens": INTEGER,  # The tokens seen up to and including this step.
        "context": INTEGER,
        "?lm_loss": NUMBER,  # The language model's loss in nats per token; empty for distill.
        "?gate_loss": NUMBER,  # The gates' loss; empty where no gate is trained.
        "learning_rate": NUMBER,
    },
    # Each row compares the blocks that a method keeps for one layer, head and document with those of the oracle.
    "recall": {
        "run_id": TEXT,
        "experiment": TEXT,
        "model": TEXT,
        "corpus": TEXT,
        "context": INTEGER,
        "method": TEXT,
        "?gate": TEXT,
        "layer": INTEGER,
        "head": INTEGER,  # The query head.
        "document": TEXT,
        "sparsity_requested": NUMBER,
        "?last_rows_dense": INTEGER,  # The block rows at the end that read every key.
        "?threshold": NUMBER,  # Of a gate's softmax, in place of a requested sparsity.
        "?spread": TEXT,  # row: as many blocks in every row of every head. layer: one threshold for all of them.
        "?forced": FLAG,  # Whether block 0 and the diagonal were kept for certain, inside the budget.
        "sparsity_realised": NUMBER,  # The sparsity of this head.
        "recall": NUMBER,  # The share of the oracle's blocks, at its own sparsity, that the method keeps as well.
        "mass": NUMBER,  # The share of the row-normalised pooled map on the blocks that the method keeps.
        "?task": TEXT,  # The look-up of which the windows are; empty for windows of text.
        "?asked_mass": NUMBER,  # Look-ups: the share of the asking token's attention on the answer's block.
        "?asked_kept": FLAG,  # Look-ups: whether the method keeps the answer's block in the asking block row.
    },
    # Each row is one causal block of the pooled map of one head, true and predicted (Figure 7).
    "maps": {
        "run_id": TEXT,
        "model": TEXT,
        "gate": TEXT,  # The gate reference.
        "document": TEXT,
        "context": INTEGER,
        "block": INTEGER,  # The block size in tokens.
        "layer": INTEGER,
        "head": INTEGER,
        "row": INTEGER,  # The index of the query block.
        "column": INTEGER,  # The index of the key block.
        "target": NUMBER,  # The row-normalised pooled map that the gate is trained to predict.
        "predicted": NUMBER,  # The softmax of the gate's scores.
    },
    # Each row is one execution of one step: the provenance of every row with its run_id.
    "runs": {
        "run_id": TEXT,
        "step": TEXT,  # What ran, e.g. "latency kernel 8192".
        "started": TEXT,  # The start in UTC, ISO 8601.
        "wall_s": NUMBER,  # The wall time of the step in seconds.
        "command": TEXT,  # The command line that repeats the step.
        "preset": TEXT,
        "scale": TEXT,  # The size of the experiment in words, for labels. Code reads scale_kind.
        "?scale_kind": TEXT,  # toy: numbers mean nothing. small: models trained here. real: a released pre-trained
        # model, smaller than the paper's. paper: the paper's shapes or models.
        "seed": INTEGER,
        "?corpus": TEXT,  # The corpus that the step read, if it read one.
        "?corpus_sha256": TEXT,
        "?corpus_source": TEXT,  # The texts: files with their hashes, data sets with their revisions.
        "?corpus_split": TEXT,  # One of train, validation, test; empty in rows older than the column.
        "?weights": TEXT,  # JSON: where the weights of each model come from, in words; empty without a model.
        "?commit": TEXT,  # The git commit; empty where neither git nor SEERBENCH_COMMIT gives one.
        "?dirty": FLAG,  # Whether the tree had uncommitted changes; empty where that is unknown.
        "source_digest": TEXT,  # The digest of what kernels and methods compute (source_digest.py).
        "device": TEXT,  # The name of the GPU or CPU.
        "?driver": TEXT,  # The version of the NVIDIA driver; empty on a CPU.
        "?sm_clock_mhz": NUMBER,  # The clock of the GPU's multiprocessors at the start; empty on a CPU.
        "threads": INTEGER,  # The threads that torch may use.
        "platform": TEXT,
        "versions": TEXT,  # JSON: the versions of Python, torch, triton, transformers, seerbench and others.
    },
}


def schema(table: str) -> pa.Schema:
    """Return the pyarrow schema of a table; raise ResultsError, which lists the tables, for an unknown name."""
    if table not in TABLES:
        raise ResultsError(f"no table {table!r}; the tables are {', '.join(TABLES)}")
    return pa.schema(
        [pa.field(name.lstrip("?"), kind, nullable=name[0] == "?") for name, kind in TABLES[table].items()]
    )
