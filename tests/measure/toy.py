"""Toy problems, models and kernels for the tests of this folder."""

import torch

from seerbench.core.problem import AttentionProblem
from seerbench.measure import inputs as measure_inputs
from seerbench.measure.inputs import InputSource
from seerbench.measure.sampler import Timing
from seerbench.methods.protocol import BlockSparse
from seerbench.rows.store import to_table

QUICK = Timing(rounds=10, cap_s=0.0)
SMALL = AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=32, context=500)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}
SOURCE = InputSource("random_weights", "tiny")
MEANINGLESS = f"random: {measure_inputs.MEANINGLESS}"
TOKENS = torch.randint(97, (1, 500), generator=torch.Generator().manual_seed(0))


def frames(rows):
    """Return both tables as frames, checked against the schema."""
    return tuple(to_table(name, part).to_pandas() for name, part in zip(("cells", "samples"), rows))


class NeverRuns(BlockSparse):
    """A sparse kernel that no test may reach."""

    name, sparsity = "never", 0.5

    def attend(self, q, k, v, plan):
        raise AssertionError("was run")


class Refuses(NeverRuns):
    def refuses(self, case):
        return f"takes no context of {case.context}"
