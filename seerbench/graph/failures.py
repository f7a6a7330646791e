"""Count the failures of each step, so that the next run repeats a step that failed.

Snakemake records the settings of a step that failed as if it had succeeded, deletes its files, and does not miss a
file from which others were made that are still there. After a failed step, the next run would therefore find
everything up to date, with tables of earlier rows. The Snakefile gives every rule its number of failures as a
parameter: it has changed after a failure, and a step runs again when a parameter has changed.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from seerbench.errors import GraphError
from seerbench.writing import cause, write_bytes

FILE = Path(".snakemake") / "seerbench.failures.json"  # beside what Snakemake records of each step


class Failures(logging.Filter):
    """The failures of the steps of one preset in a folder; as a filter of Snakemake's log, it counts new ones."""

    def __init__(self, folder: Path, preset: str) -> None:
        super().__init__()
        self.file, self.preset = folder / FILE, preset
        self.jobs: dict[int, str] = {}
        self.counts: dict[str, int] = {}
        try:
            if self.file.exists():
                self.counts = dict(json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise GraphError(f"{self.file} cannot be read ({error}); remove it, and run with --forceall") from None

    def counter(self, rule: str) -> Callable[[Mapping[str, str]], int]:
        """Return the function of a rule's parameter: wildcards -> number of failures of that step so far."""

        def failures(wildcards: Mapping[str, str]) -> int:
            return self.counts.get(self._name(rule, wildcards), 0)

        return failures

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, and count a failed step."""
        event = getattr(record, "event", None)
        if event == "job_info":
            job = record.__dict__
            self.jobs[job["jobid"]] = self._name(job["rule_name"], job["wildcards"])
        elif event == "job_error" and record.__dict__["jobid"] in self.jobs:
            name = self.jobs[record.__dict__["jobid"]]
            self.counts[name] = self.counts.get(name, 0) + 1
            try:
                write_bytes(self.file, json.dumps(self.counts, indent=1, sort_keys=True).encode())
            except OSError as error:  # a full disk may be why the step failed
                print(f"seerbench: {cause(error)}; then run with --forceall", file=sys.stderr)
        return True

    def _name(self, rule: str, wildcards: Mapping[str, str]) -> str:
        return " ".join([self.preset, rule, *(f"{name}={value}" for name, value in sorted(wildcards.items()))])
