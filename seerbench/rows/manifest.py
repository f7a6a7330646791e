"""Check the files of a published run against its manifest, the list of their hashes that `publish` wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from seerbench.errors import ResultsError
from seerbench.paths import PUBLISHED, ROOT
from seerbench.writing import write_bytes

MANIFEST = "MANIFEST.json"  # in a published run: file -> its SHA-256


@dataclass(frozen=True)
class Manifest:
    """The hashes of a published run: file (relative to `folder`, with forward slashes) -> SHA-256 in hex digits."""

    folder: Path
    hashes: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> Manifest | None:
        """Return the manifest of a run; None for a run that was not published.

        Raises ResultsError for a manifest that cannot be read, and for a folder of results/published without one.
        """
        path = folder / MANIFEST
        if not path.exists():
            if folder.resolve().parent == PUBLISHED.resolve():
                raise ResultsError(f"{folder} has no {MANIFEST}; {restored(folder)}")
            return None
        try:
            hashes = json.loads(path.read_bytes())
        except ValueError as error:
            raise ResultsError(f"{path} is not JSON ({error}); {restored(folder)}") from None
        if not isinstance(hashes, dict) or not all(isinstance(digest, str) for digest in hashes.values()):
            raise ResultsError(f"{path} is no list of hashes by file; {restored(folder)}")
        return cls(folder, hashes)

    @classmethod
    def write(cls, folder: Path, names: Iterable[str]) -> None:
        """Write the manifest of files below a folder."""
        hashes = {name: sha256((folder / name).read_bytes()) for name in names}
        write_bytes(folder / MANIFEST, (json.dumps(hashes, indent=1) + "\n").encode())

    def changed(self) -> list[Path]:
        """Return the listed files that are missing or have another content than was published."""
        paths = {self.folder / name: digest for name, digest in self.hashes.items()}
        return [path for path, digest in paths.items() if not path.is_file() or sha256(path.read_bytes()) != digest]

    def require(self, path: Path, content: bytes) -> None:
        """Raise ResultsError unless a file of the run has the content that was published."""
        if self.hashes.get(path.relative_to(self.folder).as_posix()) != sha256(content):
            raise ResultsError(f"{path} is not the file that was published; {restored(self.folder)}")

    def require_all_of(self, table: str, present: list[Path]) -> None:
        """Raise ResultsError unless every listed file of a table is present."""
        for name in self.hashes:
            if name.startswith(f"{table}/") and self.folder / name not in present:
                raise ResultsError(f"{self.folder / name} is missing; {restored(self.folder)}")


def sha256(content: bytes) -> str:
    """Return the SHA-256 in hex digits."""
    return hashlib.sha256(content).hexdigest()


def restored(folder: Path) -> str:
    """Return what to do about a published run that is not as it was published."""
    place = folder.resolve()
    shown = place.relative_to(ROOT) if place.is_relative_to(ROOT) else folder
    return f"restore it (git checkout {shown}), or publish it again"
