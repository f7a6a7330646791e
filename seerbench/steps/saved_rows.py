"""Save the rows of a long step piece by piece, so that a step that is killed loses at most one piece.

The pieces are files beside the step's output. They belong to one state of settings and inputs; those of another
state are not read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seerbench.rows.provenance import finish
from seerbench.rows.store import read_rows, write_rows


class SavedRows:
    """The pieces of one step.

    Args:
        table: the table of the rows.
        out: the step's output, which `join` writes.
        run: the provenance of this execution, from `common.start`.
        state: what decides the rows: settings, digests. Their text tells two states apart.
        files: inputs whose content decides the rows too; a file that was written again is another state.
    """

    def __init__(
        self, table: str, out: Path, run: dict[str, Any], state: Iterable[object], files: Iterable[Path]
    ) -> None:
        self.table, self.out, self.run = table, out, run
        self.folder = out.with_name(f"{out.name}.pieces")
        versions = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        self.digest = hashlib.sha256(repr([*map(repr, state), versions]).encode()).hexdigest()[:16]
        self.files: list[Path] = []

    def has(self, name: str) -> bool:
        """Return whether a piece is there, saved now or by an execution that was killed, and count it as one."""
        file = self._file(name)
        if file.exists() and file not in self.files:
            self.files.append(file)
        return file in self.files

    def save(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a piece, with the run_id of this execution in each row."""
        done = finish(self.run)
        write_rows(self._file(name), self.table, [{**row, "run_id": done["run_id"]} for row in rows], done)
        self.files.append(self._file(name))

    def join(self, keep: bool = False) -> None:
        """Write the output of all pieces, with the provenance of every execution, and delete the pieces.

        keep: whether the pieces stay, so that they are not measured again with what must be.
        """
        rows: list[dict[str, Any]] = []
        runs: dict[str, dict[str, Any]] = {}
        for file in self.files:
            found, executions, _ = read_rows(file, self.table)
            rows += found.astype(object).where(found.notna(), None).to_dict("records")
            for run in executions:  # an execution has its longest wall time in the piece that it saved last
                runs[run["run_id"]] = max(run, runs.get(run["run_id"], run), key=lambda each: each["wall_s"])
        write_rows(self.out, self.table, rows, runs.values())
        if not keep:
            self.discard()

    def discard(self) -> None:
        """Delete the pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.digest}-{name}.parquet"
