"""The Makefile works in any folder and with any VENV, calls its environment first, and ends with how to go on.

The programs of the environment are stand-ins that write down how they were called.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from seerbench.paths import ROOT

PROGRAM = """\
#!/bin/sh
printf '%s\\n' "$0" "$@" > "$TOLD"
exit "${EXIT:-0}"
"""
FOLDERS = ["a folder (1)", "it's", 'say "x"', "$HOME & more;", "été 試験", "-leading", "a#b%c*", "tab\there"]


@pytest.fixture
def checkout(tmp_path):
    """Return a function that makes a checkout in a folder, with an environment of stand-ins."""

    def make(name, venv=".venv"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("Makefile", "pyproject.toml", "constraints-cpu.txt"):
            shutil.copyfile(ROOT / file, folder / file)
            os.utime(folder / file, (1, 1))
        programs = folder / venv / "bin"
        programs.mkdir(parents=True)
        for program in ("snakemake", "seerbench"):
            (programs / program).write_text(PROGRAM)
            (programs / program).chmod(stat.S_IRWXU)
        (programs / ".installed").write_text(f"{folder}\n")
        return folder

    return make


def make(folder, *arguments, **environment):
    told = folder / "told"
    # `make test` leaves variables for the makes below it, which would name their folders.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**inherited, "PATH": "/usr/local/bin:/usr/bin:/bin", "TOLD": str(told), **environment},
        capture_output=True,
        text=True,
    )
    return done, told.read_text().splitlines() if told.exists() else []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkout_may_be_in_any_folder(checkout, name):
    folder = checkout(name)
    done, (program, *arguments) = make(folder, "tables", PRESET="my own.yaml")
    assert done.returncode == 0, done.stderr
    assert Path(program) == folder / ".venv" / "bin" / "snakemake"
    assert arguments == ["--cores", "all", "--config", "preset=my own.yaml", "--", "tables"]
    assert done.stdout == "to call seerbench yourself: source .venv/bin/activate\n"


@pytest.mark.parametrize("name", FOLDERS)
def test_the_environment_may_be_anywhere(checkout, tmp_path, name):
    folder = checkout("here", venv=tmp_path / "environments" / name)
    done, (program, *_) = make(folder, "figures", VENV=str(tmp_path / "environments" / name))
    assert done.returncode == 0, done.stderr
    assert Path(program) == tmp_path / "environments" / name / "bin" / "snakemake"


def test_variables_may_be_arguments_too(checkout, tmp_path):
    folder = checkout("here", venv=tmp_path / "there")
    done, (program, *arguments) = make(folder, "report", f"VENV={tmp_path}/there", "PRESET=-x (1).yaml", "CORES=1")
    assert done.returncode == 0, done.stderr
    assert Path(program) == tmp_path / "there" / "bin" / "snakemake"
    assert arguments == ["--cores", "1", "--config", "preset=-x (1).yaml", "--", "report"]


def test_the_environment_of_another_checkout_is_refused_and_stays_as_it_is(checkout):
    first, second = checkout("first"), checkout("second")
    done, told = make(second, "figures", VENV=str(first / ".venv"))
    assert done.returncode != 0
    assert told == []
    assert f"VENV={first}/.venv was installed for the checkout {first}, and this is {second}" in done.stderr
    assert (first / ".venv/bin/.installed").read_text() == f"{first}\n"


def test_a_failure_ends_with_its_exit_code_and_no_hint(checkout):
    done, _ = make(checkout("here"), "figures", EXIT="3")
    assert "Error 3" in done.stderr
    assert done.stdout == ""


def test_whoever_has_seerbench_on_the_path_gets_no_hint(checkout):
    folder = checkout("here")
    done, _ = make(folder, "figures", PATH=f"{folder}/.venv/bin:/usr/bin:/bin")
    assert done.stdout == ""


def test_doctor_is_given_the_preset(checkout):
    _, told = make(checkout("here"), "doctor", PRESET="-my.yaml")
    assert told[1:] == ["doctor", "--", "-my.yaml"]


def test_an_installation_is_announced_and_repeated_after_a_failure(checkout):
    folder = checkout("a folder")
    (folder / ".venv/bin/.installed").unlink()
    done, told = make(folder, "figures", PYTHON="false")
    assert done.returncode != 0
    assert told == []
    assert "installing SeerBench" in done.stdout
    assert not (folder / ".venv/bin/.installed").exists()


def test_help_names_every_target(checkout):
    said = make(checkout("here"), "help")[0].stdout
    text = (ROOT / "Makefile").read_text()
    targets = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    assert {target for target in targets if target not in said} == {"help"}
