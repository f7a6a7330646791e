"""Build the sdist and the wheel, install them into clean environments, and use them in an empty folder.

    python tools/release_check.py [PYTHON ...] [--out dist] [--without-evaluate]

Each PYTHON (python3.11, python3.12, ...; this one by default) gets a new environment, in which the wheel is
installed from its file, with its dependencies from the registry. In an empty folder outside the repository it then
lists methods, shows what the machine can measure, compares a kernel and, once its extra `plots` is there, evaluates
a method. `make release-check` calls this file. It takes about ten minutes and 3 GB for each PYTHON.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL, METHOD = ROOT / "examples" / "gather_attention.py", ROOT / "examples" / "pooled_top_k.py"
# Files that code needs and no module is: they reach a wheel through links and globs.
DATA = ("config/cpu.yaml", "config/preset.schema.json", "paper/values.csv", "kernels/flex_attention.py")
COMPARE = ["compare", "mine.py", "--contexts", "512", "--block", "16", "--rounds", "10", "--cap", "1"]


def main() -> None:
    """Check every Python that is named, and leave the sdist and the wheel in the folder `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="*", default=[sys.executable], help="interpreters, by name or path")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the sdist and the wheel")
    parser.add_argument("--without-evaluate", action="store_true", help="leave out `evaluate`, the longest part")
    options = parser.parse_args()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    wheel, sdist = build(options.python[0], options.out, version)
    check_content(wheel, sdist)
    for python in options.python:
        with environment(python) as commands:
            use(commands, wheel, version, not options.without_evaluate)
            run(commands / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", sdist)
            with tempfile.TemporaryDirectory() as folder:
                expect(run(commands / "seerbench", "--version", folder=folder), f"seerbench {version}")
        print(f"{python}: right", flush=True)


@contextmanager
def environment(python: str) -> Iterator[Path]:
    """Yield the folder with the programs of a new environment, which is removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        run(shutil.which(python) or python, "-m", "venv", folder)
        yield Path(folder) / "bin"


def build(python: str, out: Path, version: str) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it; return (wheel, sdist)."""
    for old in out.glob("seerbench-*"):
        old.unlink()
    with environment(python) as commands:
        run(commands / "python", "-m", "pip", "install", "--quiet", "build")
        run(commands / "python", "-m", "build", "--outdir", out, ROOT)
    return out / f"seerbench-{version}-py3-none-any.whl", out / f"seerbench-{version}.tar.gz"


def check_content(wheel: Path, sdist: Path) -> None:
    """Fail unless both have the package's data, and neither has tests or rows."""
    with zipfile.ZipFile(wheel) as file:
        of_wheel = file.namelist()
    with tarfile.open(sdist) as archive:
        of_sdist = [name.partition("/")[2] for name in archive.getnames()]
    for names in (of_wheel, of_sdist):
        missing = {f"seerbench/{name}" for name in DATA} - set(names)
        strange = [name for name in names if name.startswith(("tests/", "results/", "figures/"))]
        if missing or strange:
            raise SystemExit(f"missing: {sorted(missing)}; should not be there: {strange[:5]}")


def use(commands: Path, wheel: Path, version: str, with_evaluate: bool) -> None:
    """Install the wheel, and run in an empty folder what a user would run first."""
    run(commands / "python", "-m", "pip", "install", "--quiet", wheel, *constraints())
    with tempfile.TemporaryDirectory() as folder:

        def seerbench(*arguments: object, code: int = 0) -> str:
            return run(commands / "seerbench", *arguments, folder=folder, code=code)

        expect(seerbench("--version"), f"seerbench {version}")
        expect(seerbench("list"), "flashprefill", "seer")
        expect(seerbench("doctor", code=1), "installed  from a wheel", "missing    snakemake is not installed")
        shutil.copy(KERNEL, Path(folder) / "mine.py")
        expect(seerbench(*COMPARE), "agrees with the float64 reference", "no figure: matplotlib is not installed")
        run(commands / "python", "-m", "pip", "install", "--quiet", f"{wheel}[plots]", *constraints())
        expect(seerbench(*COMPARE), "mine.png")
        if with_evaluate:
            shutil.copy(METHOD, Path(folder) / "method.py")
            expect(seerbench("evaluate", "method.py", "--quick"), "Loss over dense attention", "card.html")


def constraints() -> list[object]:
    """Return pip's options that choose torch as `make install` does."""
    return [] if shutil.which("nvidia-smi") else ["--constraint", ROOT / "constraints-cpu.txt"]


def run(*command: object, folder: str | None = None, code: int = 0) -> str:
    """Run a command outside the repository; return its output. Fail if its exit code is another than `code`."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    own = {"PYTHONPATH", "VIRTUAL_ENV", "SEERBENCH_DATA"}
    variables = {name: value for name, value in os.environ.items() if name not in own}
    variables["SEERBENCH_LOAD_LIMIT"] = "inf"  # the times mean nothing here, so nothing waits for a quiet machine
    where = folder or tempfile.gettempdir()
    done = subprocess.run(words, cwd=where, env=variables, stdout=subprocess.PIPE, text=True)
    if done.returncode != code:
        raise SystemExit(f"{done.stdout}\nexit code {done.returncode}, expected {code}: {' '.join(words)}")
    return done.stdout


def expect(output: str, *texts: str) -> None:
    """Fail unless each text is part of the output."""
    missing = [text for text in texts if text not in output]
    if missing:
        raise SystemExit(f"{output}\nnot in this output: {missing}")


if __name__ == "__main__":
    main()
