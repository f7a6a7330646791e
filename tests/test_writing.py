"""Files appear whole or not at all; what cannot be written is known beforehand, and told in one line."""

import errno
import os

import pytest

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
