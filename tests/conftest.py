"""One thread, since small tensors in many tests leave the machine to the others; and one seed for every test.

An unseeded oracle test misses its derived budget now and then by chance: SEERBENCH_TEST_SEED draws other inputs.
"""

import os

import pytest
import torch
import torch._dynamo

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
# Timings of tests mean nothing, and the machine may be busy: tests and the steps that they start do not wait.
os.environ["SEERBENCH_LOAD_LIMIT"] = "inf"
# One process of tests compiles FlexAttention for more kinds of shapes than a step ever does; past the limit (8)
# it fails, since ours may not fall back to the eager form.
torch._dynamo.config.recompile_limit = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every other long test first, and the others in the middle.

    With two workers the first half of the list goes to one and the second half to the other, so each worker begins
    with long tests and takes short ones from the other at the end.
    """
    long = [item for item in items if item.get_closest_marker("slow")]
    short = [item for item in items if not item.get_closest_marker("slow")]
    first, second = long[::2], long[1::2]
    middle = len(items) // 2 - len(first)
    items[:] = first + short[:middle] + second + short[middle:]


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw the same inputs in every run, whichever tests ran before."""
    torch.manual_seed(int(os.environ.get("SEERBENCH_TEST_SEED", "0")))
