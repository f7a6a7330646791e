"""Gate distillation at Llama-3.1-8B's geometry on one GPU: a step of the paper's windows fits 80 GB.

Random weights. `pytest -s tests/gpu/test_8b_gpu.py` prints memory and seconds; half a minute on an H100.
"""

import time

import pytest
import torch

from seerbench.methods.gate_config import GateConfig
from seerbench.models.random_weights import random_model
from seerbench.presets.load import load_preset
from seerbench.training import distill
from seerbench.training.optimizers import GATE_CLIP, update_weights

GIB = 2**30
LARGE = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory > 75 * GIB
pytestmark = pytest.mark.skipif(not LARGE, reason="needs a CUDA GPU with 80 GB")


def test_a_distillation_step_at_64k_fits_80_gb():
    geometry = load_preset("speed").model("llama-3.1-8b").geometry
    model = random_model(geometry, "cuda", "bfloat16").requires_grad_(False)
    sets = distill.fresh_gates(model, {"v1": GateConfig(), "v2": GateConfig("avg", "maxminavg", "single")}, seed=0)
    sets = {name: gates.to("cuda") for name, gates in sets.items()}
    params = [param for gates in sets.values() for param in gates.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3)
    windows = torch.randint(geometry["vocab_size"], (2, 65536), device="cuda")
    for step in range(2):  # the first compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        losses = distill.accumulate_gradients(model, windows, sets, 64)
        update_weights([optimizer], [(gates.parameters(), GATE_CLIP) for gates in sets.values()])
        torch.cuda.synchronize()
        seconds, peak = time.perf_counter() - started, torch.cuda.max_memory_allocated() / GIB
        print(
            f"step {step}: two windows of 64k, two gate sets: {seconds:.2f} s, peak {peak:.1f} GiB, loss {losses}"
        )
    assert all(0 < loss < float("inf") for loss in losses.values())
    assert peak * GIB < 80e9
