"""The terminal tells each step in words, shows what a failed one said, and ends with what to open."""

import io
import logging
import subprocess
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seerbench.errors import ConfigError
from seerbench.graph.progress import ProgressHandler, in_time, last_lines, tell_progress

NOTHING = "Nothing to be done"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Graph:
    """A graph that logs as Snakemake does, and a clock that the test sets."""

    def __init__(self, stream=None, **options):
        self.logger = logging.Logger("graph", logging.INFO)
        self.stream, self.own, self.now = stream or io.StringIO(), io.StringIO(), 0.0
        self.handler = ProgressHandler(
            logging.StreamHandler(self.own),
            nothing_to_do=NOTHING,
            closing=lambda: ["open figures/cpu/report.html"],
            stream=self.stream,
            clock=lambda: self.now,
            **options,
        )
        self.logger.addHandler(self.handler)

    def tell(self, event, level=logging.INFO, message="Snakemake's words", **fields):
        self.logger.log(level, message, extra={"event": event, **fields})

    def start(self, **stats):
        self.tell("workflow_started")
        self.tell(None, message="Building DAG of jobs...")
        self.tell("run_info", stats=stats)

    def job(self, number, rule, log=None, **wildcards):
        self.tell("job_info", jobid=number, rule_name=rule, wildcards=wildcards, log=[str(log)] if log else [])

    def fail(self, number, rule, log=None, code=1):
        try:
            raise subprocess.CalledProcessError(code, "seerbench")
        except subprocess.CalledProcessError:
            self.tell("error", logging.ERROR, "RuleException in rule", exception="RuleException")
        fields = {
            "rule_name": rule,
            "jobid": number,
            "log": [str(log)] if log else [],
            "shellcmd": f"seerbench {rule}",
        }
        self.tell("job_error", logging.ERROR, **fields)
        self.tell(None, logging.ERROR, "Exiting because a job execution failed.")

    @property
    def lines(self):
        return self.stream.getvalue().splitlines()


@pytest.fixture
def graph():
    made = []

    def make(*arguments, **options):
        made.append(Graph(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.handler.close()


def test_a_run_is_told_step_by_step_and_ends_with_what_to_open(graph):
    run = graph(durations=lambda: {"train short": 250.0})
    run.start(train=1, draw_figure=1, show_figure=1, figures=1, total=4)
    run.job(1, "train", "logs/cpu/train-short.log", model="short")
    run.now = 100
    run.tell("job_finished", job_id=1)
    run.job(2, "draw_figure", "logs/cpu/draw-fig6.log", artefact="fig6")
    run.tell(None, message="Select jobs to execute...")
    run.now = 104
    run.tell("job_finished", job_id=2)
    run.job(3, "show_figure", "logs/cpu/show-fig6.log", artefact="fig6")
    run.tell("job_finished", job_id=3)
    run.handler.close()
    assert run.lines == [
        '2 steps; "before" is the last run in this folder, or else a published run',
        "[1/2] train the model short (took 4 min 10 s before); log: logs/cpu/train-short.log",
        "[1/2] done in 1 min 40 s: train the model short",
        "[2/2] draw fig6; log: logs/cpu/draw-fig6.log",
        "[2/2] done in 4 s: draw fig6",
        "2 steps done in 1 min 44 s",
        "open figures/cpu/report.html",
    ]
    assert run.own.getvalue() == ""


def test_a_failed_step_shows_the_end_of_its_log_and_how_to_go_on(graph, tmp_path):
    log = tmp_path / "a log (1).txt"
    log.write_text(
        "\n".join(f"line {number}" for number in range(99)) + "\nseerbench: rows.parquet is cut; delete it\n"
    )
    run = graph()
    run.start(perplexity=2, total=2)
    run.job(1, "perplexity", log, experiment="contexts")
    run.fail(1, "perplexity", log)
    run.handler.close()
    assert run.lines[2] == f"[1/2] FAILED: measure perplexity: contexts; the end of its log, {log}:"
    assert run.lines[3].strip() == "line 85"
    assert run.lines[-2].strip() == "seerbench: rows.parquet is cut; delete it"
    assert run.lines[-1].startswith(
        "stopped after 0 of 2 steps. Mend what the error says, then run the same command"
    )
    assert "open" not in run.lines[-1]
    assert run.own.getvalue() == ""  # Snakemake's account of the failed command says less


def test_a_run_that_went_on_names_in_the_end_what_failed(graph, tmp_path):
    log = tmp_path / "fetch.log"
    log.write_text("seerbench: no network; run: pip download\n")
    run = graph()
    run.start(fetch=1, maps=1, total=2)
    run.job(1, "fetch", log, model="smollm2")
    run.fail(1, "fetch", log)
    run.job(2, "maps", log)
    run.tell("job_finished", job_id=2)
    run.handler.close()
    assert run.lines[-2] == f"failed: fetch the model smollm2; log: {log}"
    assert run.lines[-1].startswith("stopped after 1 of 2 steps.")


def test_a_failed_step_without_words_in_its_log_names_its_command(graph, tmp_path):
    run = graph()
    run.start(maps=1, total=1)
    run.job(1, "maps", tmp_path / "none.log")
    run.fail(1, "maps", tmp_path / "none.log")
    assert run.lines[-1].strip() == "the command wrote nothing: seerbench maps"


def test_a_failed_move_of_finished_files_is_told_too(graph):
    run = graph()
    run.start(draw_figure=1, show_figure=1, total=2)
    run.job(2, "show_figure", artefact="fig6")
    run.fail(2, "show_figure")
    assert any(line.startswith("FAILED: show_figure") for line in run.lines)


@pytest.mark.parametrize("code", [130, -2])
def test_ctrl_c_is_no_failure(graph, code):
    run = graph()
    run.start(train=3, total=3)
    run.job(1, "train", model="short")
    run.fail(1, "train", code=code)
    run.handler.close()
    assert run.lines[-1] == "interrupted after 0 of 3 steps; run the same command again to resume"
    assert not any("FAILED" in line for line in run.lines)


def test_nothing_to_do_says_what_to_open(graph):
    run = graph()
    run.tell("workflow_started")
    run.tell(None, message=NOTHING)
    run.handler.close()
    assert run.lines == ["nothing to do: all files are up to date", "open figures/cpu/report.html"]


def test_an_error_that_the_user_can_mend_is_one_line_however_it_is_wrapped(graph):
    run = graph()
    try:
        try:
            raise ConfigError("my.yaml: sead: unknown key; did you mean 'seed'?")
        except ConfigError as error:
            raise RuntimeError("InputFunctionException: 30 lines") from error
    except RuntimeError:
        run.tell("error", logging.ERROR, "30 lines", exception="InputFunctionException")
    run.handler.close()
    assert run.lines == ["seerbench: my.yaml: sead: unknown key; did you mean 'seed'?"]
    assert run.own.getvalue() == ""


def test_other_errors_and_warnings_are_snakemakes(graph):
    run = graph()
    run.tell("error", logging.ERROR, "NameError in file Snakefile", exception="NameError")
    run.start(train=1, total=1)
    run.tell(None, logging.WARNING, "a disk is slow")
    run.tell(None, message="Execute 1 jobs...")
    assert run.own.getvalue().splitlines() == ["NameError in file Snakefile", "a disk is slow"]


def test_a_dry_run_is_told_by_snakemake(graph):
    run = graph(takes_over=False)
    run.start(train=1, total=1)
    run.handler.close()
    assert run.lines == []
    assert "Building DAG of jobs..." in run.own.getvalue()


def test_without_a_terminal_a_line_per_minute_says_how_far_a_step_is(graph, tmp_path):
    log = tmp_path / "train.log"
    log.write_bytes("train:  10%|#   | 1/10\rtrain:  50%|█████     | 5/10 [00:31<00:31]".encode())
    run = graph()
    run.start(train=1, total=1)
    run.job(1, "train", log, model="short")
    for second in range(0, 130, 10):
        run.now = second
        run.handler.tell_running()
    assert run.lines[2:] == [
        "[1/1] train the model short: 1 min train:  50%|█████     | 5/10 [00:31<00:31]",
        "[1/1] train the model short: 2 min train:  50%|█████     | 5/10 [00:31<00:31]",
    ]


def test_a_terminal_has_one_live_line_that_fits(graph, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    (tmp_path / "wait.log").write_text("waiting: another SeerBench process is timing on this CPU\n")
    (tmp_path / "train.log").write_text("train: 5/10 " + "#" * 200)
    run = graph(Terminal())
    run.start(latency=1, train=1, total=2)
    run.job(1, "latency", tmp_path / "wait.log", sweep="kernel", context="512")
    run.handler.tell_running()
    assert run.lines[-1].endswith("[1/2] 0 s waiting: another SeerBench process is timing on this CPU"[:59])
    run.job(2, "train", tmp_path / "train.log", model="short")
    run.handler.tell_running()
    live = run.stream.getvalue().rpartition("\033[K")[2]
    assert len(live) <= 59
    assert live.count(" | ") == 1
    run.tell("job_finished", job_id=1)
    assert "\r\033[K[1/2] done in 0 s: time kernel at 512 tokens\n" in run.stream.getvalue()


@given(st.binary(max_size=300))
def test_any_bytes_in_a_log_can_be_shown(tmp_path_factory, content):
    log = tmp_path_factory.mktemp("log") / "log"
    log.write_bytes(content)
    lines = last_lines(log, 3)
    assert len(lines) <= 3
    assert all(line and "\n" not in line and "\r" not in line for line in lines)


def test_a_log_shows_what_a_terminal_would_show(tmp_path):
    log = tmp_path / "log"
    log.write_text("\x1b[31mred\x1b[0m\n\n 0%\r50%\r100%\r\nseerbench: the end\n")
    assert last_lines(log) == ["red", "100%", "seerbench: the end"]
    assert last_lines(None) == last_lines(tmp_path / "none") == last_lines(tmp_path) == []


def test_durations_in_words():
    words = [in_time(seconds) for seconds in (0.2, 59.4, 60, 61, 3599.6, 3600, 4000, 90_000)]
    assert words == ["0 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 h", "1 h 6 min", "25 h"]


@pytest.mark.parametrize("asked", ["dryrun", "quiet", "verbose", "printshellcmds", "debug_dag", None])
def test_the_terminal_handler_is_replaced_and_files_are_not(tmp_path, asked):
    logger = logging.Logger("snakemake")
    logger.addHandler(logging.StreamHandler())
    logger.addHandler(logging.FileHandler(tmp_path / "snakemake.log"))
    names = ("dryrun", "quiet", "verbose", "printshellcmds", "debug_dag")
    settings = types.SimpleNamespace(**{name: name == asked for name in names})
    tell_progress(logger, settings)
    kinds = {type(handler) for handler in logger.handlers}
    assert kinds == {ProgressHandler, logging.FileHandler}
    (handler,) = [each for each in logger.handlers if isinstance(each, ProgressHandler)]
    assert handler.takes_over == (asked is None)
    for each in logger.handlers:
        each.close()
