"""One thread, since small tensors in many tests leave the machine to the others; and one seed for every test.

An unseeded oracle test misses its derived budget now and then by chance: SEERBENCH_TEST_SEED draws other inputs.
"""

import os

import pytest
import torch
import torch._dynamo

torch.set_num_threads(1)
# One process of tests compiles FlexAttention for more kinds of shapes than a step ever does; past the limit (8)
# it fails, since ours may not fall back to the eager form.
torch._dynamo.config.recompile_limit = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: beside them, other workers run the many short ones."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw the same inputs in every run, whichever tests ran before."""
    torch.manual_seed(int(os.environ.get("SEERBENCH_TEST_SEED", "0")))
