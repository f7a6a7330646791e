"""Reading files: every fault becomes one line that names the file, what is wrong with it and what to do."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.errors import CorpusError, ModelError
from seerbench.reading import read_json, read_utf8, reading

CURE = "make it again"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def said(path, read=read_json):
    with pytest.raises(ModelError) as caught:
        read(path, ModelError, CURE)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; make it again"),
        (b"{", "is not JSON (line 1, column 2)"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text (byte 0)"),
        (b"\x89PNG\r\n\x1a\n\x00", "is not UTF-8 text"),
        (POINTER, "is a Git LFS pointer instead of the file itself; fetch the file itself with `git lfs pull`"),
        (b"[" * 100_000, "is not readable (maximum recursion"),
        (b"[1]", "holds JSON of another kind: expected an object; make it again"),
        (b'"text"', "expected an object"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault_and_the_cure(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    assert words in said(tmp_path / "x.json")


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "does not exist" in said(tmp_path / "nothing")
    assert "does not exist" in said(tmp_path / "nothing" / "below")
    assert "is a folder, not a file" in said(tmp_path)
    assert "is a link to a file that does not exist" in said(tmp_path / "broken")
    assert "is a link to a file that does not exist" in said(tmp_path / "loop")
    with pytest.raises(CorpusError, match=r"may not be read \(permission denied\); make it again"):
        with reading(tmp_path, CorpusError, CURE):
            raise PermissionError(13, "Permission denied", str(tmp_path))


def test_errors_of_ours_and_a_lack_of_memory_pass(tmp_path):
    for error in (ModelError("mine"), MemoryError()):
        with pytest.raises(type(error)) as caught, reading(tmp_path, CorpusError, CURE):
            raise error
        assert caught.value is error


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    for read, kind in ((read_json, dict), (read_utf8, str)):
        try:
            found = read(path, ModelError, CURE)
        except ModelError as error:
            found = str(error)
            kind = str if found.startswith(f"{path} ") and "\n" not in found else None
        assert isinstance(found, kind or ())


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x").write_text(json.dumps({"a": "é"}), encoding="utf-8-sig")
    assert read_json(tmp_path / "x", ModelError, CURE) == {"a": "é"}
    assert read_utf8(tmp_path / "x", ModelError, CURE).startswith("{")
