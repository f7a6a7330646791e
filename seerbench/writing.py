"""Write files whole or not at all, check beforehand that they can be written, and put system errors into words.

Every module that writes results uses `atomically`: whatever ends the process, a file is the old one or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

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


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`; rename the file or folder that it writes there to `path`.

    If `write` raises, the temporary path is removed and `path` is as before. Missing folders are made. Raises
    OSError, with `path` as its filename, where the path cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if temporary.is_dir() and path.is_dir():
            # A folder cannot replace one that is not empty, so the old one is moved out of the way first.
            os.replace(path, temporary.with_name(f"{temporary.name}.old"))
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        for rest in (temporary, temporary.with_name(f"{temporary.name}.old")):
            _remove(rest)


def _remove(path: Path) -> None:
    """Remove a file or folder if it exists and can be removed."""
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
