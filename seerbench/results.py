"""Rows: the one definition of what a measurement looks like, with its provenance, in parquet.

Every step writes its rows with `write_rows`; everything downstream reads them with `Run`. A file
holds one table and carries, in its own metadata, the schema version and the provenance of each
execution that wrote rows into it, so that rows and their origin cannot part. `Run.table("runs")`
is that provenance as a frame.

A run is a folder: `<run>/<table>/<part>.parquet`, in `results/fresh/<preset>` (what this machine
measured) or `results/published/<machine>` (committed deliberately by `publish`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seerbench.source_digest import UnknownCommit, changed_since, source_digest

SCHEMA_VERSION = 1
ROOT = Path(__file__).resolve().parent.parent

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
        "sweep": TEXT,  # kernel | breakdown | methods | training_kernel | ttft
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
        "mask": TEXT,  # gate | random | pattern | dense
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


class ResultsError(ValueError):
    """A results file that cannot be used, or rows that do not fit their table. The text says which."""


def schema(table: str) -> pa.Schema:
    """The pyarrow schema of `table`; ResultsError names the known tables for another."""
    if table not in TABLES:
        raise ResultsError(f"no table {table!r}; the tables are {', '.join(TABLES)}")
    return pa.schema(
        [pa.field(name.lstrip("?"), kind, nullable=name[0] == "?") for name, kind in TABLES[table].items()]
    )


def to_table(table: str, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows -> pyarrow, checked against the schema: no missing, unknown, mistyped or empty field."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    want = schema(table)
    if frame.empty:
        return want.empty_table()
    missing = [field.name for field in want if field.name not in frame and not field.nullable]
    unknown = [name for name in frame if name not in want.names]
    if missing or unknown:
        raise ResultsError(f"rows of {table}: missing columns {missing}, unknown columns {unknown}")
    columns = []
    for field in want:
        values = frame[field.name] if field.name in frame else pd.Series([None] * len(frame), dtype=object)
        try:
            column = pa.Array.from_pandas(values, type=field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ResultsError(f"rows of {table}: column {field.name} is not {field.type}: {error}") from None
        if column.null_count and not field.nullable:
            raise ResultsError(f"rows of {table}: column {field.name} has {column.null_count} empty values")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=want)


def write_rows(
    path: Path,
    table: str,
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    runs: Mapping[str, Any] | Iterable[Mapping[str, Any]],
) -> None:
    """Write one table atomically (temporary file, rename); an old file stays whole until then.

    runs: the provenance of the executions that the rows name (`provenance()` makes one).
    Raises ResultsError for rows that do not fit, and OSError (disk full) with nothing changed.
    """
    runs = [dict(runs)] if isinstance(runs, Mapping) else [dict(run) for run in runs]
    content = to_table(table, rows)
    to_table("runs", runs)  # checked too, before anything is written
    strangers = set(content["run_id"].to_pylist()) - {run["run_id"] for run in runs}
    if strangers:
        raise ResultsError(f"rows of {table} name runs without provenance: {sorted(strangers)}")
    kept = {
        b"seerbench.table": table.encode(),
        b"seerbench.schema": str(SCHEMA_VERSION).encode(),
        b"seerbench.runs": json.dumps(runs, sort_keys=True).encode(),
    }
    content = content.replace_schema_metadata(kept)
    atomically(path, lambda part: pq.write_table(content, part, compression="zstd"))


def atomically(path: Path, write: Any) -> None:
    """Call `write(temporary path)` and rename the result onto `path`; leaves nothing behind on error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_rows(path: Path, table: str | None = None) -> tuple[pd.DataFrame, list[dict[str, Any]], str]:
    """(rows, provenance of their runs, table) of one file; ResultsError with path and field otherwise."""
    try:
        content = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ResultsError(f"{path} is not readable parquet ({str(error).splitlines()[0]})") from None
    kept = content.schema.metadata or {}
    if b"seerbench.table" not in kept:
        raise ResultsError(f"{path} was not written by SeerBench (no field seerbench.table in its metadata)")
    found, version = kept[b"seerbench.table"].decode(), kept[b"seerbench.schema"].decode()
    if version != str(SCHEMA_VERSION):
        raise ResultsError(
            f"{path} has schema version {version}, this SeerBench reads {SCHEMA_VERSION}; measure it again"
        )
    if table is not None and found != table:
        raise ResultsError(f"{path} holds the table {found}, expected {table}")
    want = schema(found)
    for field in want:
        if field.name not in content.schema.names and field.nullable:  # younger than the file
            content = content.append_column(field, pa.nulls(len(content), field.type))
        if field.name not in content.schema.names:
            raise ResultsError(f"{path}: column {field.name} is missing")
        if content.schema.field(field.name).type != field.type:
            kind = content.schema.field(field.name).type
            raise ResultsError(f"{path}: column {field.name} is {kind}, expected {field.type}")
    return content.to_pandas(), json.loads(kept[b"seerbench.runs"]), found


class Run:
    """The rows below one folder, read on demand: `Run(path).table("cells")`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ResultsError(f"no results in {self.folder}; measure first (make figures) or name another run")

    def table(self, name: str, part: str | None = None) -> pd.DataFrame:
        """All rows of a table (of the one file `<part>.parquet` if given); empty frame if there are none."""
        want = schema(name)
        if name == "runs":
            return self._runs()
        frames = [read_rows(path, name)[0] for path in self._files(name, part)]
        if not frames:
            return want.empty_table().to_pandas()
        return pd.concat(frames, ignore_index=True)

    def _files(self, table: str, part: str | None = None) -> list[Path]:
        found = sorted((self.folder / table).glob("*.parquet"))
        return [path for path in found if part is None or path.stem == part]

    def _runs(self) -> pd.DataFrame:
        runs: dict[str, dict[str, Any]] = {}
        for table in TABLES:
            for path in self._files(table):
                runs.update({run["run_id"]: run for run in read_rows(path, table)[1]})
        if not runs:
            return schema("runs").empty_table().to_pandas()
        return to_table("runs", runs.values()).to_pandas().sort_values("started", ignore_index=True)


def provenance(
    step: str,
    *,
    preset: str,
    scale: str,
    seed: int,
    device: str,
    corpus: str | None = None,
    corpus_sha256: str | None = None,
    corpus_split: str | None = None,
) -> dict[str, Any]:
    """The `runs` row of this execution. Call it when the step starts; `finish` sets its wall time.

    device is "cpu" or "cuda". A node without git hands the commit in through SEERBENCH_COMMIT and
    SEERBENCH_DIRTY (0 or 1).
    """
    started = datetime.now(UTC)
    commit, dirty = commit_and_dirty()
    identity = f"{step} {started.isoformat()} {os.getpid()} {platform.node()}"
    facts = gpu_facts() if device == "cuda" else {}
    return {
        "run_id": f"{started:%Y%m%dT%H%M%S}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}",
        "step": step,
        "started": started.isoformat(timespec="seconds"),
        "wall_s": 0.0,
        "command": shlex.join(["seerbench", *sys.argv[1:]]),
        "preset": preset,
        "scale": scale,
        "seed": seed,
        "corpus": corpus,
        "corpus_sha256": corpus_sha256,
        "corpus_split": corpus_split,
        "commit": commit,
        "dirty": dirty,
        "source_digest": source_digest(),
        "device": facts.get("name") or cpu_name(),
        "driver": facts.get("driver"),
        "sm_clock_mhz": facts.get("sm_clock_mhz"),
        "threads": thread_count(),
        "platform": platform.platform(),
        "versions": json.dumps(versions(), sort_keys=True),
    }


def finish(run: dict[str, Any]) -> dict[str, Any]:
    """The same row with its wall time filled in."""
    started = datetime.fromisoformat(run["started"]).timestamp()
    return {**run, "wall_s": round(time.time() - started, 1)}


def commit_and_dirty() -> tuple[str | None, bool | None]:
    """(commit, dirty) as handed in by the environment, else as git says, else (None, None)."""
    if os.environ.get("SEERBENCH_COMMIT"):
        dirty = os.environ.get("SEERBENCH_DIRTY")
        return os.environ["SEERBENCH_COMMIT"], None if dirty is None else dirty == "1"
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return None, None
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode or status.returncode:
        return None, None
    return head.stdout.strip(), bool(status.stdout.strip())


def files_digest(files: Iterable[Path]) -> str:
    """Hash of files by name and content, in the order of their names."""
    whole = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Version of Python and of each package that a number may depend on, if installed."""
    found = {"python": platform.python_version()}
    for name in ("seerbench", "torch", "triton", "transformers", "flash-attn", "flash-attn-4", "minference"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def thread_count() -> int:
    """Threads that torch may use, asked of torch only if something already imported it."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else (os.cpu_count() or 1)


def cpu_name() -> str:
    """The CPU's model name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(lines, f": {name}").split(":", 1)[1].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} CPU, {cores} cores"


def gpu_facts() -> dict[str, Any]:
    """Name, UUID, driver and current SM clock of the first GPU; {} where there is none. No torch import."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    facts = {
        "name": pynvml.nvmlDeviceGetName(handle),
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "sm_clock_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
    }
    pynvml.nvmlShutdown()
    return facts


def publish(fresh: Path, published: Path) -> Path:
    """Copy a fresh run to `published`, one file a table, with a manifest of hashes; the folder's path.

    The plans that rows name (MoA, MInference) go with them. Refuses rows that were measured from a dirty or
    unknown tree, since no reader could check them out. Measured rows of an earlier publication there are
    replaced table by table.
    """
    run = Run(fresh)
    runs = run.table("runs")
    if runs.empty:
        raise ResultsError(f"{fresh} holds no rows; measure first")
    unclean = runs[runs.commit.isna() | (runs.dirty != False)]  # noqa: E712 (null counts as unclean)
    if len(unclean):
        steps = ", ".join(sorted(set(unclean.step)))
        raise ResultsError(f"not published: {steps} ran on a dirty or unknown commit; commit, then measure again")
    by_id = {row["run_id"]: row for row in runs.to_dict("records")}
    manifest = {}
    for table in TABLES:
        if table == "runs":
            continue
        frame = run.table(table)
        if frame.empty:
            continue
        path = published / table / "all.parquet"
        write_rows(path, table, frame, [_plain(by_id[name]) for name in frame.run_id.unique()])
        manifest[str(path.relative_to(published))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for plan in sorted(fresh.glob("plans/*.json")):
        path = published / "plans" / plan.name
        atomically(path, lambda part, plan=plan: part.write_bytes(plan.read_bytes()))
        manifest[str(path.relative_to(published))] = hashlib.sha256(path.read_bytes()).hexdigest()
    atomically(published / "MANIFEST.json", lambda part: part.write_text(json.dumps(manifest, indent=1) + "\n"))
    return published


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A frame's row with its NaNs turned back into None, for JSON."""
    return {key: None if pd.isna(value) else value for key, value in row.items()}


def stale(folder: Path) -> list[str]:
    """Return what is wrong with a published run: changed files, timings of other kernels. Empty if nothing.

    A timing is up to date while this tree still has every definition that the commit that measured it had
    (source_digest.changed_since).
    """
    manifest = folder / "MANIFEST.json"
    if not manifest.exists():
        return [f"{folder} has no MANIFEST.json; publish it with seerbench publish"]
    problems = []
    for name, digest in json.loads(manifest.read_text()).items():
        path = folder / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            problems.append(f"{path} is not the file that was published")
    run = Run(folder)
    runs = run.table("runs")
    timed = runs[runs.run_id.isin(set(run.table("cells").run_id))]
    for (commit, recorded, dirty), steps in timed.groupby(["commit", "source_digest", "dirty"], dropna=False):
        commit = None if pd.isna(commit) else commit
        which = f"{len(steps)} timing steps at {f'commit {commit[:9]}' if commit else 'an unknown commit'}"
        try:
            changed = changed_since(commit, recorded, pd.isna(dirty) or bool(dirty))
        except UnknownCommit as unknown:
            problems.append(f"{folder}: cannot tell whether kernels have changed since {which}: {unknown}")
            continue
        if changed:
            others = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            names = f"{', '.join(changed[:3])}{others}"
            problems.append(f"{folder}: {which} were measured with older kernels; changed since: {names}")
    return problems
