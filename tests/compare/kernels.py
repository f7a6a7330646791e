"""Right and wrong kernels, and a function that compares them at a toy size."""

import torch

from seerbench.compare import check as compare_check
from seerbench.compare import load as compare_load
from seerbench.compare import run as compare_run
from seerbench.core.problem import AttentionProblem
from seerbench.measure.sampler import Timing
from seerbench.paths import ROOT

CASE = AttentionProblem("cpu", "float32", 1, 4, 2, 16, 0, 16, 16)
EXAMPLES = ROOT / "examples"


def example(name):
    return compare_load.load(str(EXAMPLES / name)).function


right = example("gather_attention.py")


def findings(kernel, case=CASE):
    return [finding for _, finding in compare_check.check_kernel(kernel, case) if finding]


def softmax(q, k, v, seen, scale=None, group=None):
    group = group or (lambda x: x.repeat_interleave(q.shape[1] // x.shape[1], 1))
    scores = q @ group(k).transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ group(v)


METHOD = """
import torch
from seerbench.core.block_mask import BlockMask
from seerbench.methods.protocol import Method
from seerbench.methods.registry import register
from gather_attention import attention

@register("mine", cites="none")
class Mine(Method):
    \"\"\"Keeps everything.\"\"\"
    def __init__(self, sparsity=0.5, block=64):
        self.sparsity, self.block = sparsity, block
    def implementation(self, case):
        return "gather"
    def refuses(self, case):
        return None
    def plan(self, q, k, layer):
        n = -(-q.shape[2] // self.block)
        kept = torch.ones(*q.shape[:2], n, n, dtype=torch.bool)
        mask = BlockMask.from_dense(kept, q.shape[2], self.block, self.block)
        return CHANGE
    def attend(self, q, k, v, plan):
        return attention(q, k, v, plan)
"""


def run(target, tmp_path, **options):
    return compare_run.run(
        target,
        **{"against": ["dense"], "contexts": [80], "sparsities": [0.5], "problem": CASE} | options,
        timing=Timing(rounds=10, cap_s=0),
        results=tmp_path / "rows",
        figures=tmp_path / "figures",
    )
