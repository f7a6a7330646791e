"""Name the steps of the graph in words, and look up how long they took before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seerbench.errors import ResultsError
from seerbench.rows.store import RUNS_KEY, Run
from seerbench.rows.timings import disturbed_steps

# Rule -> what its step does, with the rule's wildcards. A rule that is not here runs without a word: it only
# collects files, or moves finished ones to where the reader looks for them.
WORDS = {
    "tokenizer": "make the tokenizer",
    "corpus": "tokenize the corpus {corpus}",
    "fetch": "fetch the model {model}",
    "train": "train the model {model}",
    "finetune": "extend the context of the model: {model}",
    "finetune_jointly": "extend the context together with gates: {model}",
    "import_gates": "read the released gates {gates}",
    "distill": "distill the gates {gates}",
    "profile": "search MoA's plans for the model {model}",
    "patterns": "search MInference's patterns for the model {model}",
    "perplexity": "measure perplexity: {experiment}",
    "tasks": "measure tasks: {experiment}",
    "recall": "measure recall: {experiment}",
    "maps": "record attention maps",
    "latency": "time {sweep} at {context} tokens",
    "draw_figure": "draw {artefact}",
    "draw_table": "draw {artefact}",
    "write_report": "write the report",
    "execute_notebook": "execute the notebook {notebook}",
    "execute_longest_notebook": "execute the notebook {notebook}",
    "compare_one": "check and time your kernel or method",
}


def in_words(rule: str, wildcards: Mapping[str, str]) -> str | None:
    """Return what the step of a rule does, or None for a rule that is not spoken of."""
    return WORDS[rule].format(**wildcards) if rule in WORDS else None


def step_name(rule: str, wildcards: Mapping[str, str]) -> str:
    """Return the name of a step in the table `runs`, such as "latency kernel 8192"."""
    return " ".join([rule.removesuffix("_jointly"), *wildcards.values()])


def measured_durations(preset: str, folders: Iterable[Path]) -> dict[str, float]:
    """Return the seconds that each step of a preset took in earlier runs, by the step's name in `runs`.

    Only the metadata of the files are read. A file that cannot be read has no durations: they are only a hint, and
    the step that needs the file's rows says what is wrong with it.

    Args:
        preset: the name of the preset.
        folders: folders of runs. Where several of them have a step, the last folder counts.
    """
    found = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.parquet")):
            found.update({run["step"]: run["wall_s"] for run in _runs(path) if run.get("preset") == preset})
    return found


def measured_parts(folder: Path, table: str) -> set[str]:
    """Return the parts of a table that a published run has, such as {"contexts", "rope"} of `perplexity`.

    A published run has one file for all parts of a table; the steps in its metadata tell which parts there are.
    """
    kinds = {"train": "pretrain", "distill": "distill", "finetune": "finetune"}  # as in the names of training parts
    found = set()
    for path in sorted((folder / table).glob("*.parquet")):
        for name, *words in (run["step"].split() for run in _runs(path)):
            found.add("-".join([kinds[name], *words] if name in kinds else words or [name]))
    return found


def _runs(path: Path) -> list[dict[str, Any]]:
    """Return the provenance in the metadata of a file with rows; [] for a file that cannot be read."""
    try:
        runs: list[dict[str, Any]] = json.loads((pq.read_schema(path).metadata or {})[RUNS_KEY])
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return []
    return runs


def disturbed_timings(folder: Path) -> list[str]:
    """Return lines on the timings that are left out as disturbed, with the commands that repeat them; often none.

    Rows that cannot be read give no lines: the step that needs them says what is wrong with them.

    Args:
        folder: the folder of a run, which need not exist.
    """
    try:
        commands = disturbed_steps(Run(folder))
    except ResultsError:
        return []
    if not commands:
        return []
    return [
        "disturbed timings are left out (docs/faq.md); repeat them on a quiet machine, then run this again:",
        *(f"    {command}" for command in commands),
    ]
