"""Load the block-sparse kernel of another commit beside this tree's, for `seerbench compare --base REF`.

Both run in the same process and the same rounds, so that a difference of a few percent can be seen.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from seerbench.compare.load import KernelFunction
from seerbench.core.block_mask import BlockMask
from seerbench.errors import CompareError
from seerbench.paths import IS_CHECKOUT, ROOT
from seerbench.rows.git import git
from seerbench.rows.source_digest import files_digest

# The files with the block-sparse kernel and BlockMask: in this layout, then in the layout of earlier commits.
PLACES = (
    ("kernels/block_sparse/api.py", "core/block_mask.py"),
    ("kernels/block_sparse_attention.py", "attention.py"),
)


def base_kernel(ref: str, root: Path = ROOT) -> KernelFunction:
    """Return the block-sparse kernel of a commit, imported under a package name of its own.

    The files of the commit are unpacked into a temporary folder, and every import of `seerbench` in them is
    renamed, inside functions too, so that neither tree can reach the other's code. Masks are converted to the
    commit's own BlockMask class. Raises CompareError where git does not know the commit, or where the commit has no
    such kernel.

    Args:
        ref: a commit, branch or tag.
        root: the repository.
    """
    if root == ROOT and not IS_CHECKOUT:
        raise CompareError("--base takes a commit of a checkout of the repository, and this is an installed wheel")
    commit = _answer(root, "rev-parse", "--short", "--verify", f"{ref}^{{commit}}").decode().strip()
    package = f"seerbench_at_{commit}"
    folder = TemporaryDirectory(prefix=f"{package}-")
    archive = _answer(root, "archive", commit, "seerbench", "kernels", "baselines")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder.name, filter="data")
    tree = Path(folder.name) / package
    (Path(folder.name) / "seerbench").rename(tree)
    for name in ("kernels", "baselines"):
        (tree / name).unlink(missing_ok=True)  # the link to the folder, which a commit of this layout has
        (Path(folder.name) / name).rename(tree / name)
    digest = files_digest((tree / "kernels").rglob("*.py"))
    for path in tree.rglob("*.py"):
        renamed = re.sub(
            r"(?m)^(\s*(?:from|import) )seerbench\b", rf"\1{package}", path.read_text(encoding="utf-8")
        )
        path.write_text(renamed, encoding="utf-8")
    sys.path.insert(0, folder.name)
    files = next((files for files in PLACES if (tree / files[0]).exists()), None)
    if files is None:
        raise CompareError(
            f"commit {commit} has no block-sparse kernel in {' or '.join(file for file, _ in PLACES)}"
        )
    try:
        kernel, block_mask = (
            importlib.import_module(".".join((package, *Path(file).with_suffix("").parts))) for file in files
        )
    except ImportError as error:
        raise CompareError(f"the kernel of commit {commit} does not run with these packages: {error}") from None
    # The last mask and its conversion. The mask is held so that no other object can get its id.
    converted: dict[int, tuple[BlockMask, Any]] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
        if id(mask) not in converted:
            converted.clear()
            lists = (mask.kv_num_blocks, mask.kv_indices, mask.tokens, mask.block_q, mask.block_k)
            converted[id(mask)] = (mask, block_mask.BlockMask(*lists))
        return kernel.block_sparse_attention(q, k, v, converted[id(mask)][1])

    # Triton reads the source of a kernel when it compiles, so the folder lives as long as the kernel.
    return KernelFunction(f"base-{commit}", attend, kernel.refuses, digest, keeps=folder)


def _answer(root: Path, *arguments: str) -> bytes:
    """Return the output of git; raise CompareError with git's last line where it fails."""
    done = git(root, *arguments)
    if done.returncode:
        lines = done.stderr.decode().strip().splitlines() or ["failed"]
        raise CompareError(f"git {' '.join(arguments)}: {lines[-1]}; --base takes a commit of {root}")
    return done.stdout
