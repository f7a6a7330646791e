"""Files appear whole or not at all; what cannot be written is known beforehand, and told in one line."""

import errno
import os
import subprocess

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from seerbench.errors import ModelError
from seerbench.rows import parquet
from seerbench.writing import CAUSES, atomically, cause, require_writable, write_bytes


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), ValueError("x"), OSError(errno.ENOSPC, "no space")])
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_interrupted_leaves_the_old_one_and_nothing_else(tmp_path, raised, is_folder):
    path = tmp_path / "result"
    if is_folder:
        path.mkdir()
        (path / "old").write_text("old")
    else:
        path.write_text("old")

    def write(temporary):
        if is_folder:
            temporary.mkdir()
        (temporary / "new" if is_folder else temporary).write_text("half")
        raise raised

    with pytest.raises(type(raised)):
        atomically(path, write)
    assert [file.name for file in tmp_path.iterdir()] == ["result"]
    assert (path / "old" if is_folder else path).read_text() == "old"


def test_a_folder_replaces_a_folder(tmp_path):
    for name in ("first", "second"):

        def write(temporary, name=name):
            temporary.mkdir()
            (temporary / name).write_text("x")

        atomically(tmp_path / "model", write)
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "second"]


class RustError(Exception):
    """Stands for the errors of safetensors and tokenizers, which are no OSError."""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_the_system_s_errors_are_os_errors_whichever_library_meets_them(tmp_path, number):
    def write(temporary):
        temporary.write_text("half")
        raise RustError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number}) at path x")

    with pytest.raises(OSError) as refusal:
        atomically(tmp_path / "result", write)
    assert refusal.value.errno == number
    assert cause(refusal.value) == cause(OSError(number, os.strerror(number), str(tmp_path / "result")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("raised", [RustError("no error of the system"), ModelError("x is damaged (os error 28)")])
def test_other_errors_stay_what_they_are(tmp_path, raised):
    def write(_):
        raise raised

    with pytest.raises(type(raised)) as found:
        atomically(tmp_path / "result", write)
    assert found.value is raised


def write_tokenizer(path):
    Tokenizer(WordLevel({str(number): number for number in range(9000)}, "0")).save(str(path))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(10**5)),
        lambda path: save_file({"x": torch.zeros(10**5)}, path),
        lambda path: parquet.write(pa.table({"x": np.random.default_rng(0).random(10**5)}), path),
        write_tokenizer,
    ],
    ids=["bytes", "safetensors", "parquet", "tokenizer"],
)
def test_a_disk_that_is_really_full_is_one_line(tmp_path, write):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a small disk")
    try:
        with pytest.raises(OSError) as refusal:
            atomically(disk / "result", write)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert cause(refusal.value) == f"{disk / 'result'}: {CAUSES[errno.ENOSPC]}"


def test_a_path_that_one_process_uses_alone_is_used_again_after_a_kill(tmp_path):
    for name in ("model", "model.tmp", "model.tmp.old"):  # a process was killed while it wrote or replaced
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")

    def write(temporary):
        temporary.mkdir()
        (temporary / "whole").write_text("x")

    atomically(tmp_path / "model", write, tmp_path / "model.tmp")
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "whole"]


def closed_places(tmp_path):
    """Return paths that cannot be written, on whatever machine the test runs."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    places = [tmp_path / "file" / "x.csv", tmp_path / "file" / "deep" / "x.csv", tmp_path / "loop" / "x.csv"]
    places.append(tmp_path / ("n" * 300) / "x.csv")
    if os.path.isdir("/proc/self"):
        places.append(type(tmp_path)("/proc/nowhere/x.csv"))
    if os.geteuid():
        (tmp_path / "closed").mkdir(0o555)
        places.append(tmp_path / "closed" / "x.csv")
    return places


def test_what_cannot_be_written_is_known_beforehand_and_told_in_one_line(tmp_path):
    for path in closed_places(tmp_path):
        for attempt in (require_writable, lambda path: write_bytes(path, b"x")):
            with pytest.raises(OSError) as refusal:
                attempt(path)
            told = cause(refusal.value)
            assert "\n" not in told
            assert told.endswith(tuple(CAUSES.values())), told
    require_writable(tmp_path / "new" / "folder" / "x.csv", tmp_path / "file")
    assert not (tmp_path / "new").exists()


def test_an_unknown_error_keeps_its_words():
    assert cause(OSError(errno.ESTALE, "stale", "x")).startswith("x: ")
    assert "\n" not in cause(OSError(errno.EIO, "x"))
