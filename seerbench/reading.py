"""Read files, and turn every fault on the way into one typed line with the file, the fault and the cure.

    reading     a context that turns what a block raises while it reads a file into an error of ours
    read_utf8   a file as UTF-8 text
    read_json   a file as JSON, of an expected kind

Readers of models, gates, plans, texts, tokens and checkpoints use these functions, so an unreadable file of any of
them ends in the same kind of message. Files are UTF-8 in every locale.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seerbench.errors import UserError

# The first bytes of the small text file that git checks out where the large file was not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_CURE = "fetch the file itself with `git lfs pull`"


@contextmanager
def reading(path: Path | str, error: type[UserError], cure: str) -> Iterator[None]:
    """Raise `error` for whatever the block raises while it reads `path`.

    The libraries that parse files raise errors of many types, which are not documented. So this context takes all
    of them, and a block must contain nothing but the reading. A UserError passes, and so does a lack of memory.

    Args:
        path: the file that the block reads.
        error: the type of the error; its constructor takes the text alone.
        cure: what the user can do, such as "delete it and run again".
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as fault:
        found = fault_of(path, fault)
        raise error(f"{path} {found}; {LFS_CURE if is_lfs_pointer(path) else cure}") from fault


def fault_of(path: Path | str, fault: Exception) -> str:
    """Return in words what is wrong with a file that could not be read, to be put after its name.

    path: the file. fault: what reading it raised.
    """
    if isinstance(fault, PermissionError):
        return "may not be read (permission denied)"
    if not os.path.exists(path):
        return "is a link to a file that does not exist" if os.path.islink(path) else "does not exist"
    if os.path.isdir(path):
        return "is a folder, not a file"
    if is_lfs_pointer(path):
        return "is a Git LFS pointer instead of the file itself"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "is empty"
    if isinstance(fault, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {fault.start})"
    if isinstance(fault, json.JSONDecodeError):
        return f"is not JSON (line {fault.lineno}, column {fault.colno})"
    if isinstance(fault, KeyError):
        return f"has no entry {fault}"
    return f"is not readable ({first_line(fault)})"


def first_line(fault: BaseException) -> str:
    """Return the first line of an error's text that is not empty, or the name of its type."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(fault).__name__


def is_lfs_pointer(path: Path | str) -> bool:
    """Return whether a file is what Git LFS puts in place of a large file that was not fetched."""
    try:
        with open(path, "rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def read_utf8(path: Path | str, error: type[UserError], cure: str) -> str:
    """Return a file as text, without a byte-order mark.

    Raises `error`, as `reading` does, for a file that is not UTF-8 text, and for a Git LFS pointer.
    """
    with reading(path, error, cure):
        if is_lfs_pointer(path):
            raise ValueError("a pointer is text too")
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: Path | str, error: type[UserError], cure: str, kind: type = dict) -> Any:
    """Return the content of a JSON file; raise `error`, as `reading` does, for a file that is not readable.

    Args:
        path: the file.
        error: as in `reading`.
        cure: as in `reading`.
        kind: dict or list, the type that the content must have.
    """
    with reading(path, error, cure):
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    if not isinstance(content, kind):
        wanted = "a list" if kind is list else "an object"
        raise error(f"{path} holds JSON of another kind: expected {wanted}; {cure}")
    return content
