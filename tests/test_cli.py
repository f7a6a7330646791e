"""Tests of the command line: each mistake gives one clear line and exit code 1, and changes no results."""

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seerbench import __version__, cli
from seerbench.cli import app
from seerbench.paths import ROOT
from seerbench.presets.load import load_preset
from seerbench.rows.manifest import Manifest
from seerbench.rows.provenance import finish, provenance
from seerbench.rows.store import write_rows

SMOKE = ROOT / "tests" / "smoke.yaml"


class Done(NamedTuple):
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def seerbench(monkeypatch, capsys):
    """Return a function that runs the command line in this process, so torch is imported once for all tests."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["seerbench", *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Done(stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def fails_with(seerbench):
    """Return a function that expects exit code 1 and one line of error that contains a text."""

    def check(text, *arguments):
        done = seerbench(*arguments)
        assert done.code == 1
        (line,) = [line for line in done.err.splitlines() if line.strip()]
        assert line.startswith("seerbench: ")
        assert text in line

    return check


@pytest.fixture
def edited(tmp_path):
    def edit(change):
        config = yaml.safe_load(SMOKE.read_text())
        change(config)
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return edit


def test_an_unknown_preset(fails_with):
    fails_with("known presets: cpu", "tokenizer", "gpux")


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "seerbench.cli", "tokenizer", "gpux"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("seerbench: ")


def test_an_unknown_key(fails_with, edited):
    fails_with("colour: unknown key", "tokenizer", edited(lambda config: config.update(colour="red")))


def test_an_unknown_method(fails_with, edited, tmp_path):
    def change(config):
        config["recall"]["gates"]["arms"] = [{"method": "magic", "sparsities": [0.5]}]

    fails_with("no method 'magic'; known methods", "recall", edited(change), "gates")


def test_an_unknown_model_gate_or_corpus(fails_with, edited):
    def change(config):
        config["recall"]["gates"]["arms"][0]["gate"] = "tall:v1"

    fails_with("no 'tall' under gates", "recall", edited(change), "gates")


def test_doctor_says_that_a_published_run_is_drawn_without_a_gpu(seerbench, monkeypatch):
    monkeypatch.setattr("seerbench.report.doctor.has_gpu", lambda: False)
    assert "make figures PRESET=speed draws the published run h100-speed here" in seerbench("doctor", "speed").out


def test_a_missing_data_folder(fails_with, edited, tmp_path):
    def change(config):
        config["corpora"]["toy"] = {"kind": "folder", "path": "nowhere"}

    fails_with("nowhere", "tokenizer", edited(change), "--results", tmp_path)


def test_an_unknown_artefact(fails_with, tmp_path):
    fails_with("the artefacts are table1", "draw", "table9", "--run", tmp_path)


def test_a_corrupt_parquet(fails_with, tmp_path):
    (tmp_path / "recall").mkdir()
    (tmp_path / "recall" / "gates.parquet").write_bytes(b"PAR1 garbage")
    out = tmp_path / "figures"
    fails_with("gates.parquet is not readable", "draw", "recall", "--run", tmp_path, "--out", out)
    assert not out.exists()


def test_a_parquet_of_another_schema(fails_with, tmp_path):
    run = finish(provenance("test", preset="x", scale="x", seed=0, device="cpu"))
    row = {"name": "m", "kind": "pretrain", "recipe": "none", "step": 0, "tokens": 1, "context": 1}
    write_rows(
        tmp_path / "recall" / "gates.parquet",
        "training",
        [{**row, "learning_rate": 0.1, "run_id": run["run_id"]}],
        run,
    )
    fails_with("holds the table training, expected recall", "draw", "recall", "--run", tmp_path)


def test_no_rows_yet(fails_with, tmp_path):
    fails_with("measure first", "draw", "table1", "--run", tmp_path / "nothing")


def test_a_full_disk_is_one_line(fails_with, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "results/fresh/x.parquet")

    monkeypatch.setattr(cli, "load_preset", no_space)
    fails_with("the disk is full", "maps", "cpu")


def test_publish_refuses_a_run_that_is_not_there(fails_with, tmp_path):
    fails_with("measure first", "publish", SMOKE, "box", "--results", tmp_path)


def test_check_passes_without_published_runs(seerbench, tmp_path):
    done = seerbench("check", "--published", tmp_path)
    assert done.code == 0
    assert "0 published runs, 0 problems" in done.out


def test_doctor_says_what_there_is_and_what_is_missing(seerbench, edited):
    done = seerbench("doctor", "cpu")
    assert done.code == 0, done.err
    for text in ("GPU:", "torch", "method     seer: can run", "artefact   table1: yes"):
        assert text in done.out

    def change(config):
        del config["tasks"]
        config["corpora"]["toy"] = {"kind": "parquet", "path": "no/books.parquet"}

    done = seerbench("doctor", "gpu")
    assert re.search(r"corpus     books: no \S+books\.parquet; emozilla/pg19 in its place", done.out)
    assert "source     emozilla/pg19: the hub or its cache" in done.out

    done = seerbench("doctor", edited(change))
    assert "artefact   table2: not from this preset (tasks/longbench|retrieval)" in done.out
    assert "books.parquet does not exist" in done.out
    assert done.code == 1


@pytest.mark.parametrize(
    ("preset", "published"), [("speed", "h100-speed"), ("gpu", "h200-smollm2"), ("paper", None)]
)
def test_doctor_says_what_is_drawn_where_a_preset_cannot_measure(seerbench, monkeypatch, preset, published):
    monkeypatch.setattr("seerbench.report.doctor.has_gpu", lambda: False)
    done = seerbench("doctor", preset)
    assert done.code == 1
    assert "missing    an NVIDIA GPU" in done.out
    drawn = f"make figures PRESET={preset} draws the published run {published} here"
    assert (drawn in done.out) == (published is not None)


def test_list_shows_methods_and_artefacts(seerbench):
    assert "minference" in seerbench("list").out
    assert "fig10" in seerbench("list", "--artefacts").out


EXAMPLES = [
    pytest.param(shlex.split(example), id=example)
    for command in app.registered_commands
    for example in re.findall(r"`(seerbench [^`]+)`", command.callback.__doc__)
    if "PRESET" not in example
]


@pytest.mark.parametrize("words", EXAMPLES)
def test_the_examples_of_the_help_are_commands(words):
    """Parse every example: its command, its options and the number of its arguments."""
    command = typer.main.get_command(app).commands[words[1]]
    assert command.make_context(words[1], words[2:]).params


def test_every_command_that_takes_something_has_an_example():
    shown = {example.values[0][1] for example in EXAMPLES}
    taking = {command.callback.__name__ for command in app.registered_commands if not command.name}
    assert taking - shown == set()


@pytest.mark.parametrize(
    ("typed", "offered"), [("seerbench dra", "draw"), ("seerbench draw ", "fig6"), ("seerbench train ", "cpu")]
)
def test_the_shell_completes_names(typed, offered, monkeypatch, capsys):
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    monkeypatch.setenv("_SEERBENCH_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        typer.main.get_command(app)(prog_name="seerbench")
    assert offered in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(errno.EACCES, "x", "results/x"), "results/x: no permission"),
        (OSError(errno.EROFS, "x", "figures"), "figures: the file system is read-only"),
        (IsADirectoryError(errno.EISDIR, "x", "a"), "a: this is a folder"),
        (OSError(errno.ENAMETOOLONG, "x", "a"), "the name is too long"),
        (OSError(errno.EMFILE, "x"), "too many files are open"),
        (OSError(errno.ESTALE, "x", "a"), "a: "),
        (MemoryError(), "memory"),
        (ModuleNotFoundError("x", name="matplotlib.pyplot"), "seerbench[plots]"),
        (torch.OutOfMemoryError("x"), "the memory of the GPU"),
    ],
)
def test_what_a_user_can_mend_is_one_line(fails_with, monkeypatch, error, text):
    def fails(*_):
        raise error

    monkeypatch.setattr(cli, "load_preset", fails)
    fails_with(text, "maps", "cpu")


@pytest.mark.parametrize(
    "error", [KeyError("ours"), OSError("no errno"), RuntimeError("x"), ModuleNotFoundError("x", name="ours")]
)
def test_a_fault_of_ours_is_not_hidden(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(cli, "load_preset", fails)
    monkeypatch.setattr(sys, "argv", ["seerbench", "maps", "cpu"])
    with pytest.raises(type(error)):
        cli.main()


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(seerbench, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli.typer, "echo", closed)
    done = seerbench("list")
    assert (done.code, done.err) == (1, "")


def test_debugging_shows_the_traceback_first(seerbench, monkeypatch):
    monkeypatch.setenv("SEERBENCH_DEBUG", "1")
    done = seerbench("tokenizer", "gpux")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("seerbench: ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("latency cpu kernel 0", "expected a number of tokens"),
        ("latency cpu kernel -- -5", "expected a number of tokens"),
        ("latency cpu kernel", "Missing argument"),
        ("draw", "Missing argument"),
        ("nope", "nope"),
        ("list --bogus", "--bogus"),
        ("compare x.py --rounds many", "--rounds"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(seerbench, words, text):
    done = seerbench(*words.split())
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert text in line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("compare x.py --fail-below nan", "--fail-below"),
        ("compare x.py --fail-below -1", "--fail-below"),
        ("compare x.py --fail-below inf", "--fail-below"),
        ("compare x.py --device tpu", "no device 'tpu'"),
        ("compare x.py --device cuda:0", "no device 'cuda:0'"),
        ("compare x.py --name ../x", "--name"),
        ("compare x.py --seed -1", "--seed"),
        ("compare x.py --cap nan", "--cap"),
        ("compare x.py --heads 0", "at least 1"),
        ("compare x.py", "no file x.py"),
        ("latency cpu kernl 8192", "did you mean 'kernel'"),
        ("publish cpu ../x", "'../x'"),
    ],
)
def test_a_wrong_value_is_one_line(fails_with, words, text):
    fails_with(text, *words.split())


def test_the_version(seerbench):
    assert seerbench("--version").out == f"seerbench {__version__}\n"


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ("corpus cpu stdlib", "tokenizer cpu"),
        ("perplexity cpu contexts", "corpus cpu python"),
        ("train cpu long", "corpus cpu stdlib"),
        ("latency cpu methods 2048", "corpus cpu python"),
        ("maps cpu", "corpus cpu python"),
    ],
)
def test_a_step_without_its_inputs_names_the_step_to_run_first(fails_with, tmp_path, words, step):
    fails_with(f"run `seerbench {step}` first", *words.split(), "--results", tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_input_that_is_missing_has_a_step_that_makes_it(fails_with, tmp_path):
    """Make the inputs of a measurement one by one, as empty files, and follow the advice."""
    preset = load_preset("cpu", tmp_path)
    job = preset.perplexity("gates")
    steps = []
    for file in dict.fromkeys([job.tokens.file, *job.arm_files]):
        step = preset.step_that_makes(file)
        fails_with(f"run `{step}` first", "perplexity", "cpu", "gates", "--results", tmp_path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        steps.append(step.split()[1])
    assert set(steps) == {"corpus", "train", "distill"}
    assert preset.step_that_makes(preset.paths.moa_plan("long", None)) == "seerbench profile cpu long"
    assert preset.step_that_makes(preset.paths.model("smollm2") / "config.json") == "seerbench fetch cpu smollm2"


DAMAGED = st.one_of(st.just(b""), st.binary(max_size=64), st.integers(0, 10**6))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["rows", "manifest", "preset", "kernel"]), DAMAGED, st.data())
def test_a_damaged_file_gives_an_answer_or_one_line(seerbench, tmp_path, kind, damage, data):
    """Replace, cut or change a file that a command reads; nothing that is raised may come through."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    run = finish(provenance("test", preset="x", scale="x", seed=0, device="cpu")) | {"dirty": False, "commit": "0"}
    row = {"model": "m", "gate": "g:v1", "document": "d", "context": 128, "block": 64, "layer": 0, "head": 0}
    rows = [row | {"row": 0, "column": 0, "target": 1.0, "predicted": 1.0, "run_id": run["run_id"]}]
    write_rows(folder / "maps" / "all.parquet", "maps", rows, run)
    Manifest.write(folder, ["maps/all.parquet"])
    (folder / "preset.yaml").write_text(SMOKE.read_text())
    (folder / "kernel.py").write_text("def kernel(q, k, v, mask):\n    return q\n")
    out = ["--out", folder / "out"]
    file, words = {
        "rows": ("maps/all.parquet", ["draw", "fig7", "--run", folder, *out]),
        "manifest": ("MANIFEST.json", ["draw", "fig7", "--run", folder, *out]),
        "preset": ("preset.yaml", ["doctor", folder / "preset.yaml"]),
        "kernel": (
            "kernel.py",
            ["compare", folder / "kernel.py", "--device", "cpu", "--heads", 2, "--kv-heads", 3],
        ),
    }[kind]
    path = folder / file
    content = path.read_bytes()
    if isinstance(damage, bytes):
        content = damage
    elif data.draw(st.booleans()):
        content = content[: damage % len(content)]
    else:
        place = damage % len(content)
        content = content[:place] + bytes([content[place] ^ (1 + damage % 255)]) + content[place + 1 :]
    path.write_bytes(content)
    done = seerbench(*words)
    assert done.code in (0, 1)
    if done.code:
        assert done.err.splitlines()[0].startswith("seerbench: ") or "Warning" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_files_are_read_as_utf_8_in_every_locale(locale):
    code = (
        "import sys\nfrom seerbench import cli\ncli.app = lambda **_: print(open(sys.argv[1]).read())\ncli.main()"
    )
    page = ROOT / "docs" / "LOG.md"  # it has letters that ASCII lacks
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, page], capture_output=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").strip() == page.read_text(encoding="utf-8").strip()
    assert not done.stdout.isascii()
