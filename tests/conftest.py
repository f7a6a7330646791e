"""One thread, since small tensors in many tests leave the machine to the others; and one seed for every test.

An unseeded oracle test misses its derived budget now and then by chance: SEERBENCH_TEST_SEED draws other inputs.
"""

import gc
import os
from collections import defaultdict
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
# Timings of tests mean nothing, and the machine may be busy: tests and the steps that they start do not wait.
os.environ["SEERBENCH_LOAD_LIMIT"] = "inf"
# What is imported lives to the end, and a test's garbage is small: with Python's own threshold of 700 objects, a
# tenth of the time is spent on looking for it.
gc.set_threshold(100_000)
if os.environ.get("TRITON_INTERPRET") != "1":  # Kernels in the interpreter need none of the second's import.
    import torch._dynamo

    # One process of tests compiles FlexAttention for more kinds of shapes than a step ever does; past the limit (8)
    # it fails, since ours may not fall back to the eager form.
    torch._dynamo.config.recompile_limit = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files whose tests take longest first.

    The workers take one file after another (`--dist loadfile`), so a file's fixtures are made once; the short files
    at the end even out what remains.
    """
    seconds: dict[Path, float] = defaultdict(float)
    for item in items:
        seconds[item.path] += sum(mark.kwargs["seconds"] for mark in item.iter_markers("slow"))
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw the same inputs in every run, whichever tests ran before."""
    torch.manual_seed(int(os.environ.get("SEERBENCH_TEST_SEED", "0")))
