"""Compute a digest of the kernels and methods that ignores comments, names and messages.

The digest covers a set of definitions: functions, classes and constants of the project that the roots reach
by name (`_roots` lists them: registered methods, block-sparse kernels, pooled attention, the gate). Each
definition is hashed in a normal form (normal_form.py), in which a reference to another definition is that
definition's digest. Names of definitions, files and folders therefore do not matter, nor do comments and
error messages, nor code that nothing reaches. Timings are fresh while every definition of the commit that
measured them still exists (`changed_since`), so a method that is added makes nothing stale.

Limits: a renamed attribute, keyword or class member counts as a change unless normal_form.RENAMED lists it,
and so does code that is arranged differently; then measure again. Two arguments that exchange their names are
not noticed, nor are statements at the top of a module that bind no name, nor code that is reached only through
an object passed as an argument (ROOT_NAMES lists such objects).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import seerbench
from seerbench.errors import UnknownCommit
from seerbench.paths import ROOT
from seerbench.rows.git import git
from seerbench.rows.normal_form import IMPORTS, Key, Project, is_register

PACKAGE = Path(seerbench.__file__).resolve().parent
# The folders with source code. The last two are imported as seerbench.kernels and seerbench.baselines.
FOLDERS = ("seerbench", "kernels", "baselines")
# Roots that no source refers to by name, since callers pass them as arguments or time them directly.
ROOT_NAMES = ("AttnGate", "pooled_attention", "naive_pooled_attention")


def sources_on_disk(package: Path = PACKAGE) -> dict[str, str]:
    """Return the source text of every module beside or inside `package` (a checkout, or an installed wheel)."""
    sources = {}
    for folder in FOLDERS:
        top = package if folder == "seerbench" else package / folder
        if not top.is_dir():  # a site-packages folder may hold another `kernels`, so the inner folder comes first
            top = package.parent / folder
        for path in top.rglob("*.py"):
            place = PurePosixPath(folder, *path.relative_to(top).parts)
            if folder != "seerbench" or place.parts[1] not in FOLDERS:
                sources[module_name(place)] = path.read_text(encoding="utf-8")
    return sources


def sources_at(commit: str, root: Path = ROOT) -> dict[str, str]:
    """Return the source text of every module at a git commit; raise UnknownCommit where git cannot give it."""
    archive = git(root, "archive", "--format=tar", commit, "--", *FOLDERS)
    if archive.returncode:
        answer = archive.stderr.decode(errors="replace").strip()
        raise UnknownCommit(
            f"commit {commit[:9]} is not in this repository; fetch the whole history (git: {answer})"
        )
    sources = {}
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        for file in tar:
            content = tar.extractfile(file) if file.isfile() and file.name.endswith(".py") else None
            if content is not None:
                sources[module_name(PurePosixPath(file.name))] = content.read().decode()
    return sources


def files_digest(files: Iterable[Path]) -> str:
    """Return a hash of files by name and content, in the order of their names, 16 hex digits."""
    content = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()[:16]


def module_name(path: PurePosixPath) -> str:
    """Return the dotted name of a file: kernels/index_lists.py -> seerbench.kernels.index_lists."""
    parts = [*path.parts[:-1], *([] if path.name == "__init__.py" else [path.stem])]
    return ".".join(parts if parts[0] == "seerbench" else ["seerbench", *parts])


def definitions(sources: Mapping[str, str]) -> dict[str, str]:
    """Return digest -> "module.name" for every definition that the roots reach, referenced ones first."""
    project = Project(sources)
    digests: dict[Key, str] = {}
    for group in _groups(_roots(project), project):
        digests |= _digests(group, project, digests)
    return {digest: ".".join(key) for key, digest in digests.items()}


@functools.cache
def definitions_here() -> dict[str, str]:
    """Return the definitions of this tree."""
    return definitions(sources_on_disk())


@functools.cache
def definitions_at(commit: str) -> dict[str, str]:
    """Return the definitions at a commit of this repository; raise UnknownCommit."""
    return definitions(sources_at(commit))


def source_digest() -> str:
    """Return the digest of what this tree's kernels and methods compute, 16 hex digits."""
    return _combined(definitions_here())


def digest_at(commit: str) -> str:
    """Return what `source_digest` gives at a commit of this repository; raise UnknownCommit."""
    return _combined(definitions_at(commit))


def changed_since(commit: str | None, recorded: str, dirty: bool | None = False) -> list[str]:
    """Return the definitions that rows were measured with and that this tree no longer has.

    commit, recorded, dirty: the rows' commit, source digest, and whether that tree had uncommitted changes.
    Definitions that were added since make nothing stale. Raises UnknownCommit if the recorded digest
    differs from this tree's and the commit's sources cannot be read.
    """
    if recorded == source_digest():
        return []
    if not commit:
        raise UnknownCommit("the rows name no commit")
    if dirty and recorded != digest_at(commit):
        return ["uncommitted changes"]
    now = definitions_here()
    return [name for digest, name in definitions_at(commit).items() if digest not in now]


def _combined(digests: Iterable[str]) -> str:
    """Return one digest of a set of digests, whatever their order."""
    return _hash("".join(sorted(digests)))


def _hash(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _roots(project: Project) -> list[Key]:
    """Return the registered classes, the catalogue of block-sparse kernels, and ROOT_NAMES."""
    marks = re.compile(rf"@register\(|^SPARSE_KERNELS\b|^(def|class) ({'|'.join(ROOT_NAMES)})\b", re.MULTILINE)
    roots = []
    for module in sorted(name for name, text in project.sources.items() if marks.search(text)):
        for name, statements in project.bindings(module).items():
            node = statements[-1]
            registered = isinstance(node, ast.ClassDef) and any(map(is_register, node.decorator_list))
            if registered or (name in ROOT_NAMES and isinstance(node, (ast.FunctionDef, ast.ClassDef))):
                roots.append(Key(module, name))
            elif name == "SPARSE_KERNELS" and not isinstance(node, IMPORTS):
                roots += [part for part in project.parts(Key(module, name)) if isinstance(part, Key)]
    return roots


def _groups(roots: Iterable[Key], project: Project) -> Iterator[list[Key]]:
    """Yield reached definitions, referenced ones first; those that refer to each other form one group (Tarjan)."""
    index: dict[Key, int] = {}
    low: dict[Key, int] = {}
    stack: list[Key] = []

    def visit(key: Key) -> Iterator[list[Key]]:
        index[key] = low[key] = len(index)
        stack.append(key)
        for other in project.parts(key):
            if isinstance(other, Key) and other not in index:
                yield from visit(other)
                low[key] = min(low[key], low[other])
            elif isinstance(other, Key) and other in stack:
                low[key] = min(low[key], index[other])
        if low[key] == index[key]:
            group = stack[stack.index(key) :]
            del stack[stack.index(key) :]
            yield group

    for root in roots:
        if root not in index:
            yield from visit(root)


def _digests(group: list[Key], project: Project, known: Mapping[Key, str]) -> dict[Key, str]:
    """Return the digest of each definition of a group.

    Inside a group a reference begins as an empty text and is then refined by the digests of the round before,
    once per member, so that neither names nor the order of visits matter.
    """
    digests = dict.fromkeys(group, "")
    for _ in group:
        before = {**known, **digests}
        for key in group:
            texts = [f"<{before[part]}>" if isinstance(part, Key) else part for part in project.parts(key)]
            digests[key] = _hash("".join(sorted(texts) if key.name == "*" else texts))
    return digests
