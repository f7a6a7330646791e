"""Tell errors in a user's kernel or method from our own, and show the user's part of the traceback alone."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from seerbench.errors import CompareError, UserError
from seerbench.paths import PACKAGE, ROOT

SHOWN = 8  # frames of a traceback that are shown, the last ones; a recursion has a thousand
# Folders whose code is not the user's, though a user's file may be in a folder above them.
OTHERS = (PACKAGE, ROOT / "kernels", ROOT / "baselines", *map(Path, sysconfig.get_paths().values()))


@contextmanager
def imported(file: str) -> Iterator[None]:
    """Turn whatever a user's file raises while it is imported, `sys.exit` included, into a CompareError.

    What the file prints goes to stderr, since stdout is the report's. A UserError passes.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except SystemExit as stop:
        guard = "guard it by `if __name__ == '__main__':`"
        text = f"{file} calls sys.exit({stop.code!r}) when it is imported; {guard}"
        raise CompareError(f"{text}{frames_of(stop, [file])}") from None
    except Exception as error:
        raise CompareError(f"{file} cannot be imported: {in_short(error)}{frames_of(error, [file])}") from error


@contextmanager
def running(targets: Sequence[str]) -> Iterator[None]:
    """Turn what a user's code raises while it is checked or timed into a CompareError.

    An error without a frame in the user's files or beside them is ours, and passes, as a UserError does.

    targets: the kernels and methods as the user named them, file.py:name or module:name.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        files = [file_of(target) for target in targets]
        frames = frames_of(error, files)
        if not frames:
            raise
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        raise CompareError(f"{' or '.join(files)} raises {in_short(error)}{notes}{frames}") from error


def file_of(target: str) -> str:
    """Return the path of the file that a target names; for a module that was not imported, its name."""
    place = target.partition(":")[0]
    return place if place.endswith(".py") else str(getattr(sys.modules.get(place), "__file__", place))


def in_short(error: BaseException) -> str:
    """Return the type and the text of an error in one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(str(text).split())}"


def frames_of(error: BaseException, files: Sequence[str]) -> str:
    """Return the frames of a traceback that are in the user's files or in files beside them, each on two lines.

    For a syntax error, that is the line with the mistake. Empty if there are none.
    """
    own = [Path(file).resolve() for file in files]
    every = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in every if any(_is_own(frame.filename, file) for file in own)]
    lines = traceback.format_list(frames[-SHOWN:])
    if isinstance(error, SyntaxError):
        lines += traceback.format_exception_only(error)[:-1]
    return "\n" + "".join(lines).rstrip() if lines else ""


def _is_own(name: str, file: Path) -> bool:
    """Return whether code is the user's: of `file` itself, or of a file below its folder that is no library's.

    name: the file of the code, as tracebacks name it; <frozen ...> for parts of Python.
    """
    path = Path(name).resolve()
    if name.startswith("<"):
        return False
    beside = path.is_relative_to(file.parent) and "site-packages" not in path.parts
    return path == file or (beside and not any(path.is_relative_to(folder) for folder in OTHERS))
