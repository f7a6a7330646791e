"""An error of a user's file gives one line and the user's own frames; one of ours passes."""

import sys

import pytest

from compare.kernels import run
from seerbench.compare import load as compare_load
from seerbench.compare import run as compare_run
from seerbench.errors import CompareError

KERNEL = "def kernel(q, k, v, mask):\n    "
AT_IMPORT = {
    "def f(q, k, v, mask)\n    return q\n": "SyntaxError",
    "import nonesuch_package\n": "nonesuch_package",
    "def g():\n    return 1 / 0\nx = g()\n": "ZeroDivisionError",
    "import sys\nsys.exit(3)\n": "sys.exit(3)",
    "raise SystemExit\n": "sys.exit",
    "def f(): return f()\nf()\n": "RecursionError",
    "open('/nowhere/x')\n": "FileNotFoundError",
    "x = 'a\x00b'\n": "null bytes",
    "\tx = 1\n y = 2\n": "IndentationError",
    "class Mine(nothing): ...\n": "NameError",
    "raise type('Odd', (Exception,), {})('two\\nlines')\n": "two lines",
}
AT_RUN = {
    f"{KERNEL}return mask.no_such\n": "no_such",
    f"{KERNEL}return q @ k\n": "RuntimeError",
    f"def helper(n): return helper(n + 1)\n{KERNEL}return helper(0)\n": "RecursionError",
    f"{KERNEL}raise SystemExit('bye')\n": "SystemExit",
    f"{KERNEL}assert False, 'told'\n": "told",
    f"def refuses(problem): return problem.nothing\n{KERNEL}return q\n": "nothing",
}


def told(file, tmp_path):
    with pytest.raises(CompareError) as error:
        run(str(file), tmp_path)
    return str(error.value)


@pytest.mark.parametrize(("code", "text"), [*AT_IMPORT.items(), *AT_RUN.items()], ids=range(17))
def test_a_users_error_shows_the_users_frames_alone(code, text, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(code)
    first, *rest = told(file, tmp_path).splitlines()
    assert "mine.py" in first
    assert text in first
    assert len(rest) <= 30
    frames = [line for line in rest if line.lstrip().startswith("File ")]
    assert all("mine.py" in line for line in frames)
    assert frames or "null bytes" in first


def test_bytes_that_are_no_python(tmp_path):
    file = tmp_path / "mine.py"
    file.write_bytes(bytes(range(128, 256)))
    assert "mine.py cannot be imported" in told(file, tmp_path)


def test_what_a_file_prints_is_not_in_the_report(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(f"print('0.5833')\n{KERNEL}return q\n")
    compare_load.load(str(tmp_path / "mine.py"))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "0.5833\n")


@pytest.mark.parametrize("target", [".foo:x", "a..b:c", "builtins:print", "json:loads", ":x", "no.such:x", "sys"])
def test_a_module_that_is_no_file_of_kernels(target):
    with pytest.raises(CompareError):
        compare_load.load(target)


def test_the_frames_of_a_package_are_its_own(tmp_path, monkeypatch):
    (tmp_path / "mypack").mkdir()
    (tmp_path / "mypack" / "helper.py").write_text("def divide(q):\n    return q / [].pop()\n")
    (tmp_path / "mypack" / "kernels.py").write_text(f"from mypack.helper import divide\n{KERNEL}return divide(q)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = told("mypack.kernels:kernel", tmp_path)
    assert "kernels.py" in text
    assert "helper.py" in text


def test_an_error_of_ours_passes(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(f"{KERNEL}return q\n")

    def broken(*_):
        raise KeyError("ours")

    monkeypatch.setattr(compare_run, "check", broken)
    with pytest.raises(KeyError, match="ours"):
        run(str(tmp_path / "mine.py"), tmp_path)
