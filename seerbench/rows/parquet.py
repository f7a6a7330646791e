"""Write parquet files with a checksum on every page, and verify the checksums when a file is read.

Rows (store.py) and tokens (data/) go through here. A file that others wrote may lack checksums; it is read all the
same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seerbench.errors import UserError
from seerbench.reading import reading


def write(table: pa.Table, path: Path) -> None:
    """Write a table to a file."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer to which the parts of a table are given one by one."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def read(path: Path, error: type[UserError], cure: str, content: bytes | None = None, **options: Any) -> pa.Table:
    """Read a file, or the columns and rows of it that the options of pyarrow.parquet.read_table name.

    Raises `error`, as reading.reading does, for a file that is damaged, is no parquet or cannot be opened.

    Args:
        path: the file.
        error: the type of the error.
        cure: what the user can do about it.
        content: the bytes of the file, where the caller has read them already.
        options: columns, filters and schema, as pyarrow takes them.
    """
    with reading(path, error, cure), path.open("rb") as file:
        source = file if content is None else pa.BufferReader(content)
        table = pq.read_table(source, page_checksum_verification=True, **options)
        table.validate(full=True)
        table.schema.names  # noqa: B018 (raises for a name that is no UTF-8)
    return table


def column_names(path: Path, error: type[UserError], cure: str) -> list[str]:
    """Return the names of a file's columns. Raises as `read` does."""
    with reading(path, error, cure):
        return list(pq.read_schema(path).names)
