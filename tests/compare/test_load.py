"""Kernels and methods are found in files and modules."""

import sys

import pytest

from seerbench import errors
from seerbench.compare import load as compare_load


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x = 1", "0 kernels and methods"),
        ("def a(q, k, v, mask): ...\ndef b(q, k, v, mask): ...", r"2 kernels and methods \(a, b\)"),
    ],
)
def test_a_file_without_one_kernel_says_so(tmp_path, content, text):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(errors.CompareError, match=text):
        compare_load.load(str(path))


def test_an_object_of_a_package_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "kernels.py").write_text(
        "import functools\ndef scaled(q, k, v, mask, scale): ...\nbest = functools.partial(scaled, scale=2)\n"
        "def renamed(query, key, value, block_mask): ...\nother = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert compare_load.load("mypackage.kernels:best").name == "best"
    assert compare_load.load("mypackage.kernels:renamed").function.__name__ == "renamed"
    for wrong in ("mypackage.kernels:other", "mypackage.kernels:scaled", "mypackage.nowhere:x"):
        with pytest.raises(errors.CompareError):
            compare_load.load(wrong)
