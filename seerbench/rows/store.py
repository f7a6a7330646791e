"""Rows: the one definition of what a measurement looks like, with its provenance, in parquet.

Every step writes its rows with `write_rows`; everything downstream reads them with `Run`. A file
holds one table and carries, in its own metadata, the schema version and the provenance of each
execution that wrote rows into it, so that rows and their origin cannot part. `Run.table("runs")`
is that provenance as a frame.

A run is a folder: `<run>/<table>/<part>.parquet`, in `results/fresh/<preset>` (what this machine
measured) or `results/published/<machine>` (committed deliberately by `publish`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seerbench.errors import ResultsError
from seerbench.rows.migration import migrated_rows, migrated_run
from seerbench.rows.schema import SCHEMA_VERSION, TABLES, schema


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
    if version not in ("1", str(SCHEMA_VERSION)):
        raise ResultsError(
            f"{path} has schema version {version}, this SeerBench reads 1 and {SCHEMA_VERSION}; measure it again"
        )
    if table is not None and found != table:
        raise ResultsError(f"{path} holds the table {found}, expected {table}")
    runs = json.loads(kept[b"seerbench.runs"])
    if version == "1":
        content, runs = migrated_rows(found, content), [migrated_run(run) for run in runs]
    want = schema(found)
    for field in want:
        if field.name not in content.schema.names and field.nullable:  # younger than the file
            content = content.append_column(field, pa.nulls(len(content), field.type))
        if field.name not in content.schema.names:
            raise ResultsError(f"{path}: column {field.name} is missing")
        if content.schema.field(field.name).type != field.type:
            kind = content.schema.field(field.name).type
            raise ResultsError(f"{path}: column {field.name} is {kind}, expected {field.type}")
    return content.select(want.names).to_pandas(), runs, found


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
