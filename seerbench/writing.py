"""Write files whole or not at all, check beforehand that they can be written, and put system errors into words.

Every module that writes results uses `atomically`: whatever ends the process, a file is the old one or the new one.
What the system refuses is raised as OSError, whichever library writes, and the command line shows it as one line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from seerbench.errors import UserError

Result = TypeVar("Result")
ELSEWHERE = "change the permissions or name another place"
# errno -> what is wrong and what to do.
CAUSES = {
    errno.ENOSPC: "the disk is full; free some space and run again, nothing was changed",
    errno.EDQUOT: "the disk quota is used up; free some space and run again, nothing was changed",
    errno.EACCES: f"no permission; {ELSEWHERE}",
    errno.EPERM: f"not permitted; {ELSEWHERE}",
    errno.EROFS: "the file system is read-only; name another place",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EISDIR: "this is a folder, expected a file; name another place",
    errno.ENOTDIR: "a file is in the place of a folder; name another place",
    errno.EEXIST: "a file is in the place of a folder; name another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its symbolic links form a circle; mend them or name another place",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close other programs",
    errno.ENOMEM: "no memory is left; close other programs",
}


def cause(error: OSError) -> str:
    """Return an error of the operating system in one line: the path, what is wrong, and what to do."""
    reason = f"{error.strerror}; check the path, then run again"
    if error.errno is not None:
        reason = CAUSES.get(error.errno, f"{os.strerror(error.errno)}; check the path, then run again")
    place = error.filename2 or error.filename
    return reason if place is None else f"{os.fsdecode(place)}: {reason}"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise OSError, with `path` as its filename, for what the system refuses in the block.

    Libraries written in Rust (safetensors and tokenizers, also below transformers' `save_pretrained`) raise other
    types, whose text holds the number of the error: "No space left on device (os error 28)".
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def atomically(path: Path, write: Callable[[Path], Result], temporary: Path | None = None) -> Result:
    """Call `write` with a temporary path beside `path`; rename the file or folder that it writes there to `path`.

    Returns what `write` returns. If it raises, the temporary path is removed and `path` is as before. Missing
    folders are made.

    Args:
        path: the file or folder.
        write: takes the temporary path.
        temporary: a path beside `path` which no other process uses. Whatever is there is removed first, so that
            processes that are killed leave one file at most. None: a new name each time.

    Raises:
        OSError: the path cannot be written; it is the error's filename.
    """
    temporary = temporary or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    old = temporary.with_name(f"{temporary.name}.old")
    _remove(temporary, old)
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            result = write(temporary)
            if temporary.is_dir() and path.is_dir():
                # A folder cannot replace one that is not empty, so the old one is moved out of the way first.
                os.replace(path, old)
            os.replace(temporary, path)
    finally:
        _remove(temporary, old)
    return result


def _remove(*paths: Path) -> None:
    """Remove files and folders that exist and can be removed."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically (see `atomically`)."""
    atomically(path, lambda temporary: temporary.write_bytes(content))


def require_writable(*paths: Path) -> None:
    """Raise OSError, which names the place, unless each of these files or folders can be made or replaced.

    Steps call it before their work, so that a closed folder costs no hour of measuring. Nothing is left behind:
    where the folder of a path does not exist yet, a temporary file is tried in the nearest one that does.
    """
    for path in paths:
        folder = _nearest_folder(path)
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            error.filename, error.filename2 = str(path), None
            raise


def _nearest_folder(path: Path) -> Path:
    """Return the nearest folder above a path that exists; raise OSError where none can be made below it."""
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # raises for a name that is too long, and for a file in the place of a folder
    for folder in path.absolute().parents:
        if not folder.exists() and not folder.is_symlink():
            continue
        if folder.is_dir():
            return folder
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
