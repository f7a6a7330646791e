"""Tell on the terminal what a graph is doing: each step in words, its log, its expected and its real duration.

The Snakefile puts `ProgressHandler` in the place of Snakemake's terminal output. Snakemake's own account of the
run is in `.snakemake/log`. A terminal shows a last line that changes while steps run: the end of each step's log,
where trainings and measurements write their progress bars. Without a terminal, a line about each running step
appears once per minute.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import TextIO, TypeVar

from seerbench.errors import UserError
from seerbench.graph.steps import WORDS, in_words, step_name

SECONDS_BETWEEN_LINES = 60  # without a terminal; a log that is followed should not fill with progress bars
LINES_OF_A_FAILED_LOG = 15  # a typed error is one line; the end of a traceback with its cause fits too
CODES_OF_CTRL_C = (130, -2)  # of a command: its shell's exit code, or minus the signal that ended it
BYTES_OF_A_LOG = 20_000  # read from the end of a log, which may be long
NOTHING_TO_DO = "nothing to do: all files are up to date"
Kind = TypeVar("Kind", bound=BaseException)


@dataclass
class Step:
    """A step that runs.

    Attributes:
        number: its place among the steps of this run, from 1.
        words: what it does.
        log: its log file, if it has one.
        expected: the seconds that it took in an earlier run, if any.
        started: when it started, in seconds of the handler's clock.
        told: when the last line about it was written.
    """

    number: int
    words: str
    log: Path | None
    expected: float | None
    started: float
    told: float = field(init=False)

    def __post_init__(self) -> None:
        self.told = self.started


class ProgressHandler(logging.Handler):
    """Write the events of a graph as lines for a reader; hand all other output of Snakemake to its own handler.

    Args:
        otherwise: Snakemake's handler of the terminal. It gets every record until a graph starts, and afterwards
            the warnings and errors that are not about a step, until a step fails: what Snakemake adds then says
            less than the step's log.
        nothing_to_do: Snakemake's message for a graph whose files are all up to date.
        durations: called once a graph runs; returns the seconds of earlier runs by step name.
        closing: called after the last step; returns the lines that say where the results are.
        takes_over: False for a dry run and where the user asked for more or less output: then this handler writes
            nothing but errors that the user can mend.
        stream: where the lines go.
        clock: the time in seconds.
    """

    def __init__(
        self,
        otherwise: logging.Handler,
        *,
        nothing_to_do: str = "",
        durations: Callable[[], Mapping[str, float]] = dict,
        closing: Callable[[], Sequence[str]] = list,
        takes_over: bool = True,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.otherwise, self.nothing_to_do = otherwise, nothing_to_do
        self.durations, self.closing, self.takes_over = durations, closing, takes_over
        self.stream, self.clock = stream, clock
        self.is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.active = False  # whether a graph runs that this handler tells of
        self.total: int | None = None  # steps of this run, known once the graph is planned
        self.begun = self.done = self.failed = 0
        self.to_repeat: list[str] = []  # what failed, for the end of a run that went on without it
        self.went_on = False
        self.began_at = 0.0
        self.expected: Mapping[str, float] = {}
        self.running: dict[int, Step] = {}
        self.ended = threading.Event()
        self.line_is_live = self.interrupted = False

    # Events of Snakemake

    def emit(self, record: logging.LogRecord) -> None:
        """Write what a record says to the reader."""
        event = str(getattr(record, "event", None) or "")
        error = sys.exc_info()[1] if event == "error" else None
        mendable = _in_chain(error, UserError)
        if mendable is not None:
            self.failed += 1
            self._write(f"seerbench: {mendable}")
        elif not self.active:
            self.active = self.takes_over and event == "workflow_started"
            if not self.active:
                self.otherwise.handle(record)
        elif event == "run_info":
            self._planned(record.__dict__["stats"])
        elif event == "job_info":
            self._started(record.__dict__)
        elif event == "job_finished":
            self._finished(record.__dict__["job_id"])
        elif event == "job_error":
            if not self.interrupted:
                self._failed(record.__dict__)
        elif record.msg == self.nothing_to_do:
            self._write(NOTHING_TO_DO, *self.closing())
        elif command := _in_chain(error, CalledProcessError):
            self.interrupted |= command.returncode in CODES_OF_CTRL_C  # what else failed comes as a job_error
        elif record.levelno >= logging.WARNING and not self.failed and not self.interrupted:
            self._clear()
            self.otherwise.handle(record)

    def close(self) -> None:
        """Say how the run ended, and stop."""
        self.ended.set()
        if self.active and self.total is not None:
            self.active = False
            duration = in_time(self.clock() - self.began_at)
            if self.failed:
                if self.went_on:
                    self._write(*(f"failed: {each}" for each in self.to_repeat))
                self._write(
                    f"stopped after {self.done} of {_steps(self.total)}. Mend what the error says, then run the "
                    "same command again: finished steps are not repeated, and the last good tables and figures stay"
                )
            elif self.done < self.total:
                self._write(
                    f"interrupted after {self.done} of {_steps(self.total)}; run the same command again to resume"
                )
            elif self.total:
                self._write(f"{_steps(self.total)} done in {duration}", *self.closing())
            else:
                self._write(NOTHING_TO_DO, *self.closing())
        super().close()

    def _planned(self, stats: Mapping[str, int]) -> None:
        self.total = sum(count for rule, count in stats.items() if rule in WORDS)
        self.expected, self.began_at = self.durations(), self.clock()
        known = '; "before" is the last run in this folder, or else a published run' if self.expected else ""
        if self.total:
            self._write(f"{_steps(self.total)}{known}")
        threading.Thread(target=self._watch, daemon=True).start()

    def _started(self, job: Mapping) -> None:
        words = in_words(job["rule_name"], job["wildcards"])
        if words is None:
            return
        self.begun += 1
        expected = self.expected.get(step_name(job["rule_name"], job["wildcards"]))
        log = Path(job["log"][0]) if job["log"] else None
        step = Step(self.begun, words, log, expected, self.clock())
        self.running[job["jobid"]] = step
        about = f" (took {in_time(expected)} before)" if expected is not None else ""
        self._write(f"{self._place(step)} {words}{about}; log: {log}")

    def _finished(self, job: int) -> None:
        step = self.running.pop(job, None)
        if step is not None:
            self.done += 1
            self.went_on = bool(self.to_repeat)
            self._write(f"{self._place(step)} done in {in_time(self.clock() - step.started)}: {step.words}")

    def _failed(self, job: Mapping) -> None:
        self.failed += 1
        step = self.running.pop(job["jobid"], None)
        log = Path(job["log"][0]) if job["log"] else None
        lines = last_lines(log)
        place = f"{self._place(step)} FAILED: {step.words}" if step else f"FAILED: {job['rule_name']}"
        said = [f"    {line}" for line in lines] or [f"    the command wrote nothing: {job['shellcmd']}"]
        self._write(f"{place}; the end of its log, {log}:", *said)
        self.to_repeat.append(f"{step.words if step else job['rule_name']}; log: {log}")

    # The line that changes, and the lines once per minute

    def _watch(self) -> None:
        while not self.ended.wait(1):
            self.acquire()
            try:
                self.tell_running()
            finally:
                self.release()

    def tell_running(self) -> None:
        """Show how far the running steps are: in the last line of a terminal, else in a line per minute."""
        now = self.clock()
        if self.is_terminal and self.running:
            width = shutil.get_terminal_size().columns - 1
            share = (width + 3) // len(self.running) - 3  # of each step, with " | " between them
            parts = [f"{self._place(step)} {self._state(step, now)}"[:share] for step in self.running.values()]
            self.stream.write("\r\033[K" + " | ".join(parts))
            self.stream.flush()
            self.line_is_live = True
        elif not self.is_terminal:
            for step in self.running.values():
                if now - step.told >= SECONDS_BETWEEN_LINES:
                    step.told = now
                    self._write(f"{self._place(step)} {step.words}: {self._state(step, now)}")

    def _state(self, step: Step, now: float) -> str:
        said = last_lines(step.log, 1)
        return " ".join([in_time(now - step.started), *said])

    def _place(self, step: Step) -> str:
        total = str(self.total or "?")
        return f"[{step.number:>{len(total)}}/{total}]"

    def _write(self, *lines: str) -> None:
        self._clear()
        self.stream.write("".join(f"{line}\n" for line in lines))
        self.stream.flush()

    def _clear(self) -> None:
        if self.line_is_live:
            self.stream.write("\r\033[K")
            self.line_is_live = False


def tell_progress(logger: logging.Logger, settings, **options) -> None:
    """Put a `ProgressHandler` in the place of the handler that writes Snakemake's output to the terminal.

    Where the user chose another handler (`--logger`), nothing changes.

    Args:
        logger: Snakemake's logger.
        settings: Snakemake's output settings of this call.
        options: arguments of `ProgressHandler`.
    """
    plain = not (
        settings.dryrun or settings.quiet or settings.verbose or settings.printshellcmds or settings.debug_dag
    )
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            logger.addHandler(ProgressHandler(handler, takes_over=plain, **options))


def last_lines(log: Path | None, number: int = LINES_OF_A_FAILED_LOG) -> list[str]:
    """Return the last lines of a log that are not empty; a progress bar counts as the line that it ended with."""
    try:
        with open(log or os.devnull, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - BYTES_OF_A_LOG))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in lines]
    return [line for line in lines if line][-number:]


def in_time(seconds: float) -> str:
    """Return a duration in words: "8 s", "4 min 10 s", "1 h 5 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _steps(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def _in_chain(error: BaseException | None, kind: type[Kind]) -> Kind | None:
    """Return the first exception of a kind among an exception and those that led to it."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
