"""base_commit."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from seerbench.compare.load import KernelFunction
from seerbench.core.block_mask import BlockMask
from seerbench.errors import CompareError
from seerbench.paths import ROOT
from seerbench.rows.source_digest import files_digest

# Where a commit has the block-sparse kernel and BlockMask: this tree's files, then those of commits before 0.2.
PLACES = (
    ("kernels/block_sparse/api.py", "core/block_mask.py"),
    ("kernels/block_sparse_attention.py", "attention.py"),
)


def base_kernel(ref: str, root: Path = ROOT) -> KernelFunction:
    """The block-sparse kernel of another commit, loaded beside this tree's under the package name of its own.

    The commit's files are unpacked into a temporary folder and its imports of `seerbench` renamed, lazy ones
    too, so that neither tree can reach the other's code. It gets masks of its own BlockMask class.
    """
    sha = _git(root, "rev-parse", "--short", "--verify", f"{ref}^{{commit}}").decode().strip()
    package = f"seerbench_at_{sha}"
    folder = TemporaryDirectory(prefix=f"{package}-")
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", sha, "seerbench", "kernels", "baselines"))) as tar:
        tar.extractall(folder.name, filter="data")
    whole = Path(folder.name) / package
    (Path(folder.name) / "seerbench").rename(whole)
    for name in ("kernels", "baselines"):
        (whole / name).unlink(missing_ok=True)  # a link, where the tree has one
        (Path(folder.name) / name).rename(whole / name)
    digest = files_digest((whole / "kernels").rglob("*.py"))
    for path in whole.rglob("*.py"):
        path.write_text(re.sub(r"(?m)^(\s*(?:from|import) )seerbench\b", rf"\1{package}", path.read_text()))
    sys.path.insert(0, folder.name)
    kernel_file, mask_file = next(files for files in PLACES if (whole / files[0]).exists())
    kernel, block_mask = (
        importlib.import_module(".".join((package, *Path(file).with_suffix("").parts)))
        for file in (kernel_file, mask_file)
    )
    converted: dict[int, tuple[BlockMask, Any]] = {}  # the mask is kept, so that its id stays its own

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
        if id(mask) not in converted:
            converted.clear()
            lists = (mask.kv_num_blocks, mask.kv_indices, mask.tokens, mask.block_q, mask.block_k)
            converted[id(mask)] = (mask, block_mask.BlockMask(*lists))
        return kernel.block_sparse_attention(q, k, v, converted[id(mask)][1])

    attend.folder = folder  # removed with the kernel: Triton reads its source when it compiles
    return KernelFunction(f"base-{sha}", attend, digest, kernel.refuses)


def _git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True)
    if done.returncode:
        said = done.stderr.decode().strip().splitlines()
        raise CompareError(
            f"git {' '.join(arguments)}: {said[-1] if said else 'failed'}; --base takes a commit of {root}"
        )
    return done.stdout
