"""Write and read rows in parquet, checked against the schema and together with their provenance.

Every step writes its rows with `write_rows`; everything downstream reads them with `Run`. A file holds rows of one
table. Its metadata hold the schema version and the provenance of each execution that measured them, so that rows
and provenance cannot get separated. `Run.table("runs")` returns the provenance as a frame.

A run is a folder with files `<table>/<part>.parquet`: `results/fresh/<preset>` (what this machine measured) or
`results/published/<machine>` (what `publish` copied there to be committed).

Three checks find damage when a file is read: page checksums (parquet.py); a digest of rows and provenance in the
metadata, since page checksums do not cover the end of the file, where names, places and metadata are; and, for
published runs, the hashes in their manifest (manifest.py), since some are older than the other two.

Files of earlier schema versions are read too. migration.py fills the columns that version 1 lacks, and the columns
of later versions are empty in older rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from seerbench.errors import ResultsError
from seerbench.rows import parquet
from seerbench.rows.manifest import Manifest
from seerbench.rows.migration import migrated_rows, migrated_run
from seerbench.rows.numbers import without_number
from seerbench.rows.schema import SCHEMA_VERSION, TABLES, TEXT, schema
from seerbench.writing import atomically

# Keys of a file's metadata. The last one is absent in files that are older than it.
TABLE_KEY, VERSION_KEY, RUNS_KEY = b"seerbench.table", b"seerbench.schema", b"seerbench.runs"
DIGEST_KEY = b"seerbench.sha256"


def to_table(table: str, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a pyarrow table with the columns of the schema.

    Raises ResultsError for a missing, unknown or mistyped column, for an empty value in a column that may have
    none, and for a row without its number (numbers.py).
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
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise ResultsError(f"rows of {table}: column {field.name} is not {field.type}: {error}") from None
        if column.null_count and not field.nullable:
            raise ResultsError(f"rows of {table}: column {field.name} has {column.null_count} empty values")
        columns.append(column)
    content = pa.Table.from_arrays(columns, schema=expected)
    _require_numbers(f"rows of {table}", table, content)
    return content


def _require_numbers(where: str, table: str, content: pa.Table) -> None:
    """Raise ResultsError for the first row without its number."""
    lacking = without_number(table, content.to_pandas())
    if lacking:
        raise ResultsError(f"{where}: {lacking}; measure it again")


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
    metadata[DIGEST_KEY] = _digest(content, metadata)
    content = content.replace_schema_metadata(metadata)
    atomically(path, lambda temporary: parquet.write(content, temporary))


def _digest(content: pa.Table, metadata: Mapping[bytes, bytes]) -> bytes:
    """Return a hash of rows and metadata (without the digest itself) in hex digits.

    It depends on the values alone, and not on how a version of pyarrow encodes them.
    """
    digest = hashlib.sha256()
    for key in (TABLE_KEY, VERSION_KEY, RUNS_KEY):
        digest.update(metadata[key])
    for name, column in zip(content.schema.names, content.columns, strict=True):
        digest.update(name.encode())
        if column.type == TEXT:
            digest.update(json.dumps(column.to_pylist()).encode())
        else:
            digest.update(column.is_valid().to_numpy().tobytes())
            digest.update(column.fill_null(pa.scalar(0).cast(column.type)).to_numpy().tobytes())
    return digest.hexdigest().encode()


def read_rows(
    path: Path, table: str | None = None, content: bytes | None = None
) -> tuple[pd.DataFrame, list[dict[str, Any]], str]:
    """Read one file.

    Raises ResultsError, with path and field, for a file that is damaged, is not SeerBench's, has another schema
    version or table, lacks a column, or has a row without its number.

    Args:
        path: the file.
        table: the table that it must hold; None for any.
        content: the bytes of the file, where the caller has read them already.

    Returns:
        The rows, the `runs` rows of the executions that measured them, and the name of the table.
    """
    stored = parquet.read(path, ResultsError, "measure it again", content)
    metadata = stored.schema.metadata or {}
    for key in (TABLE_KEY, VERSION_KEY, RUNS_KEY):
        if key not in metadata:
            raise ResultsError(f"{path} was not written by SeerBench (no field {key.decode()} in its metadata)")
    name, version = (metadata[key].decode(errors="replace") for key in (TABLE_KEY, VERSION_KEY))
    if version not in {str(known) for known in range(1, SCHEMA_VERSION + 1)}:
        raise ResultsError(
            f"{path} has schema version {version}, this SeerBench reads 1 to {SCHEMA_VERSION}; measure it again"
        )
    if name not in TABLES or (table is not None and name != table):
        raise ResultsError(f"{path} holds the table {name}, expected {table or 'one of ' + ', '.join(TABLES)}")
    runs, written = _runs_of(path, metadata[RUNS_KEY], version), stored
    if version == "1":
        stored = migrated_rows(name, stored)
    expected = schema(name)
    unknown = [column for column in stored.schema.names if column not in expected.names]
    if unknown:
        raise ResultsError(f"{path}: column {unknown[0]} is unknown; read it with the SeerBench that wrote it")
    for field in expected:
        if field.name not in stored.schema.names and field.nullable:  # the column is younger than the file
            stored = stored.append_column(field, pa.nulls(len(stored), field.type))
        if field.name not in stored.schema.names:
            raise ResultsError(f"{path}: column {field.name} is missing")
        column = stored[field.name]
        if column.type != field.type:
            raise ResultsError(f"{path}: column {field.name} is {column.type}, expected {field.type}")
        if column.null_count and not field.nullable:
            raise ResultsError(f"{path}: column {field.name} has {column.null_count} empty values")
    stored = stored.select(expected.names)
    strangers = set(stored["run_id"].to_pylist()) - {run["run_id"] for run in runs}
    if strangers:
        raise ResultsError(f"{path}: rows name runs without provenance: {sorted(strangers)}")
    _require_numbers(str(path), name, stored)
    if DIGEST_KEY in metadata and metadata[DIGEST_KEY] != _digest(written, metadata):
        raise ResultsError(f"{path} is damaged: its rows are not those that were written; measure it again")
    return stored.to_pandas(), runs, name


def _runs_of(path: Path, content: bytes, version: str) -> list[dict[str, Any]]:
    """Return the `runs` rows in a file's metadata; raise ResultsError where they are none."""
    try:
        runs = json.loads(content)
        runs = [migrated_run(run) for run in runs] if version == "1" else runs
        to_table("runs", runs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultsError(f"{path}: field {RUNS_KEY.decode()} holds no provenance ({error})") from None
    return runs


class Run:
    """The rows in one folder, read when they are asked for: `Run(path).table("cells")`.

    A file is read again only if it has changed, since artefacts and claims ask for the same tables many times.
    Raises ResultsError where there is no such folder, and for a published run without its manifest.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ResultsError(f"no results in {self.folder}; measure first (make figures) or name another run")
        self._manifest = Manifest.of(self.folder)
        self._read: dict[Path, tuple[tuple[int, int], pd.DataFrame, list[dict[str, Any]]]] = {}
        self._made: dict[Hashable, tuple[dict[Path, tuple[int, int]], pd.DataFrame]] = {}

    def table(
        self, name: str, part: str | None = None, prepare: Callable[[str, pd.DataFrame], pd.DataFrame] | None = None
    ) -> pd.DataFrame:
        """Return all rows of a table, or those of the file `<part>.parquet`; an empty frame if there are none.

        Args:
            name: the name of the table; "runs" is the provenance of all rows, oldest execution first.
            part: the name of a file of the table; None: all of them.
            prepare: what is done to the rows once for as long as their files do not change: a function of the name
                and the rows that depends on nothing else.
        """
        expected = schema(name)
        tables = TABLES if name == "runs" else [name]
        files = {path: table for table in tables for path in self._files(table, part)}
        versions = {path: _version(path) for path in files}  # before reading: a file may change meanwhile
        key = name, part, prepare
        if key not in self._made or self._made[key][0] != versions:
            read = [self._rows_of(path, table) for path, table in files.items()]
            if not read:
                rows = expected.empty_table().to_pandas()
            elif name == "runs":
                rows = _provenance(runs for _, runs in read)
            else:
                rows = pd.concat([rows for rows, _ in read], ignore_index=True)
            self._made[key] = versions, prepare(name, rows) if prepare else rows
        return self._made[key][1].copy()

    def _rows_of(self, path: Path, table: str) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Return the rows of a file, which callers must not change, and their executions."""
        version = _version(path)
        if path not in self._read or self._read[path][0] != version:
            content = path.read_bytes()
            if self._manifest is not None:
                self._manifest.require(path, content)
            rows, runs, _ = read_rows(path, table, content)
            self._read[path] = version, rows, runs
        return self._read[path][1:]

    def _files(self, table: str, part: str | None = None) -> list[Path]:
        """Return the files of a table in the order of their names."""
        files = sorted((self.folder / table).glob(f"{part or '*'}.parquet"))
        if self._manifest is not None and part is None:
            self._manifest.require_all_of(table, files)
        return files


def _version(path: Path) -> tuple[int, int]:
    """Return what differs after a file was written again: the time in nanoseconds and the size in bytes."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _provenance(runs_of_files: Iterable[list[dict[str, Any]]]) -> pd.DataFrame:
    """Return the executions of several files as one frame, oldest first."""
    runs = {run["run_id"]: run for runs in runs_of_files for run in runs}
    return to_table("runs", runs.values()).to_pandas().sort_values("started", ignore_index=True)
