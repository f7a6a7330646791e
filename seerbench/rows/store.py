"""Write and read rows in parquet, checked against the schema and together with their provenance.

Every step writes its rows with `write_rows`; everything downstream reads them with `Run`. A file holds rows of one
table. Its metadata hold the schema version and the provenance of each execution that measured them, so that rows
and provenance cannot get separated. `Run.table("runs")` returns the provenance as a frame.

A run is a folder with files `<table>/<part>.parquet`: `results/fresh/<preset>` (what this machine measured) or
`results/published/<machine>` (what `publish` copied there to be committed).

Files of schema versions 1 and 2 are read too. migration.py fills the columns that version 1 lacks, and the columns
of version 3 (the load of the machine) are empty in older rows.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seerbench.errors import ResultsError
from seerbench.rows.migration import migrated_rows, migrated_run
from seerbench.rows.schema import SCHEMA_VERSION, TABLES, schema

# Keys of a file's metadata.
TABLE_KEY, VERSION_KEY, RUNS_KEY = b"seerbench.table", b"seerbench.schema", b"seerbench.runs"


def to_table(table: str, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a pyarrow table with the columns of the schema.

    Raises ResultsError for a missing, unknown or mistyped column, and for an empty value in a column that may have
    none.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    expected = schema(table)
    if frame.empty:
        return expected.empty_table()
    missing = [field.name for field in expected if field.name not in frame and not field.nullable]
    unknown = [name for name in frame if name not in expected.names]
    if missing or unknown:
        raise ResultsError(f"rows of {table}: missing columns {missing}, unknown columns {unknown}")
    columns = []
    for field in expected:
        values = frame[field.name] if field.name in frame else pd.Series([None] * len(frame), dtype=object)
        try:
            column = pa.Array.from_pandas(values, type=field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ResultsError(f"rows of {table}: column {field.name} is not {field.type}: {error}") from None
        if column.null_count and not field.nullable:
            raise ResultsError(f"rows of {table}: column {field.name} has {column.null_count} empty values")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=expected)


def write_rows(
    path: Path,
    table: str,
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    runs: Mapping[str, Any] | Iterable[Mapping[str, Any]],
) -> None:
    """Write rows of one table to a file; an existing file is replaced only once the new one is complete.

    Raises ResultsError for rows that do not fit the schema or that name an execution without provenance, and
    OSError (for example where the disk is full). Neither changes an existing file.

    Args:
        path: the file, `<run>/<table>/<part>.parquet`.
        table: the name of the table.
        rows: the rows.
        runs: the `runs` rows of the executions that the rows name, as `provenance.provenance` makes them.
    """
    runs = [dict(runs)] if isinstance(runs, Mapping) else [dict(run) for run in runs]
    content = to_table(table, rows)
    to_table("runs", runs)
    strangers = set(content["run_id"].to_pylist()) - {run["run_id"] for run in runs}
    if strangers:
        raise ResultsError(f"rows of {table} name runs without provenance: {sorted(strangers)}")
    metadata = {
        TABLE_KEY: table.encode(),
        VERSION_KEY: str(SCHEMA_VERSION).encode(),
        RUNS_KEY: json.dumps(runs, sort_keys=True).encode(),
    }
    content = content.replace_schema_metadata(metadata)
    atomically(path, lambda temporary: pq.write_table(content, temporary, compression="zstd"))


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file in the folder of `path`, and rename that file to `path`.

    If `write` raises, the temporary file is removed and `path` is as before. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically (see `atomically`)."""
    atomically(path, lambda temporary: temporary.write_bytes(content))


def read_rows(path: Path, table: str | None = None) -> tuple[pd.DataFrame, list[dict[str, Any]], str]:
    """Read one file.

    Raises ResultsError, with path and field, for a file that is not readable, is not SeerBench's, has another
    schema version or table, or lacks a column.

    Args:
        path: the file.
        table: the table that it must hold; None for any.

    Returns:
        The rows, the `runs` rows of the executions that measured them, and the name of the table.
    """
    try:
        content = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ResultsError(f"{path} is not readable parquet ({str(error).splitlines()[0]})") from None
    metadata = content.schema.metadata or {}
    for key in (TABLE_KEY, VERSION_KEY, RUNS_KEY):
        if key not in metadata:
            raise ResultsError(f"{path} was not written by SeerBench (no field {key.decode()} in its metadata)")
    name, version = metadata[TABLE_KEY].decode(), metadata[VERSION_KEY].decode()
    if version not in ("1", "2", str(SCHEMA_VERSION)):
        raise ResultsError(
            f"{path} has schema version {version}, this SeerBench reads 1 to {SCHEMA_VERSION}; measure it again"
        )
    if table is not None and name != table:
        raise ResultsError(f"{path} holds the table {name}, expected {table}")
    runs = json.loads(metadata[RUNS_KEY])
    if version == "1":
        content, runs = migrated_rows(name, content), [migrated_run(run) for run in runs]
    expected = schema(name)
    for field in expected:
        if field.name not in content.schema.names and field.nullable:  # the column is younger than the file
            content = content.append_column(field, pa.nulls(len(content), field.type))
        if field.name not in content.schema.names:
            raise ResultsError(f"{path}: column {field.name} is missing")
        kind = content.schema.field(field.name).type
        if kind != field.type:
            raise ResultsError(f"{path}: column {field.name} is {kind}, expected {field.type}")
    return content.select(expected.names).to_pandas(), runs, name


class Run:
    """The rows in one folder, read when they are asked for: `Run(path).table("cells")`.

    A file is read again only if it has changed, since artefacts and claims ask for the same tables many times.
    Raises ResultsError where there is no such folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ResultsError(f"no results in {self.folder}; measure first (make figures) or name another run")
        self._read: dict[Path, tuple[tuple[int, int], pd.DataFrame, list[dict[str, Any]]]] = {}

    def table(self, name: str, part: str | None = None) -> pd.DataFrame:
        """Return all rows of a table, or those of the file `<part>.parquet`; an empty frame if there are none."""
        expected = schema(name)
        if name == "runs":
            return self._runs()
        frames = [self._rows_of(path, name)[0] for path in self._files(name, part)]
        if not frames:
            return expected.empty_table().to_pandas()
        return pd.concat(frames, ignore_index=True)

    def _rows_of(self, path: Path, table: str) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Return the rows of a file, which callers must not change, and their executions."""
        status = path.stat()
        version = (status.st_mtime_ns, status.st_size)
        if path not in self._read or self._read[path][0] != version:
            rows, runs, _ = read_rows(path, table)
            self._read[path] = version, rows, runs
        return self._read[path][1:]

    def _files(self, table: str, part: str | None = None) -> list[Path]:
        """Return the files of a table in the order of their names."""
        return sorted((self.folder / table).glob(f"{part or '*'}.parquet"))

    def _runs(self) -> pd.DataFrame:
        """Return the provenance of all rows in the folder, oldest execution first."""
        runs: dict[str, dict[str, Any]] = {}
        for table in TABLES:
            for path in self._files(table):
                runs.update({run["run_id"]: run for run in self._rows_of(path, table)[1]})
        if not runs:
            return schema("runs").empty_table().to_pandas()
        return to_table("runs", runs.values()).to_pandas().sort_values("started", ignore_index=True)
