"""Tests of base_commit.py: the kernel of another commit runs its own code."""

import subprocess

import pytest
import torch

from seerbench import errors
from seerbench.compare import base_commit
from seerbench.core.block_mask import BlockMask
from seerbench.core.reference import reference_attention
from seerbench.paths import ROOT


def test_the_base_commit_runs_its_own_code(tmp_path):
    """Load the kernel of a commit that triples the output: only that kernel returns it tripled."""
    tree = tmp_path / "tree"
    for folder in ("seerbench", "seerbench/core", "kernels", "kernels/block_sparse", "baselines"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "__init__.py").write_text("")
    for file in ("core/block_mask.py", "core/reference.py", "errors.py"):
        (tree / "seerbench" / file).write_text((ROOT / "seerbench" / file).read_text())
    (tree / "kernels" / "helper.py").write_text("TIMES = 3\n")
    (tree / "kernels" / "block_sparse" / "api.py").write_text(
        "from seerbench.core.reference import reference_attention\n\n\ndef refuses(case):\n    return None\n\n\n"
        "def block_sparse_attention(q, k, v, mask):\n    from seerbench.kernels.helper import TIMES\n\n"
        "    return TIMES * reference_attention(q, k, v, mask, q.dtype)[0]\n"
    )
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    base = base_commit.base_kernel("HEAD", tree)
    q = torch.randn(1, 2, 32, 16)
    mask = BlockMask.from_dense(torch.ones(1, 2, 2, 2, dtype=torch.bool), 32, 16, 16)
    assert torch.allclose(base.attend(q, q, q, mask), 3 * reference_attention(q, q, q, mask, q.dtype)[0])
    with pytest.raises(errors.CompareError, match="no-such-commit"):
        base_commit.base_kernel("no-such-commit", tree)
