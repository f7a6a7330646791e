"""Test the peak memory of calls whose memory is known."""

import pytest
import torch

from seerbench.measure.memory import available_mib, peak_mib


@pytest.mark.parametrize(
    ("call", "mib"),
    [
        (lambda x: x + 1, 4),  # the output
        (lambda x: (x + 1) * 2, 8),  # the output and one temporary
        (lambda x: (x + 1).sum(), 4),  # a temporary that is gone at the end
        (lambda x: x.view(-1), 0),  # inputs do not count
    ],
)
def test_peak_memory_counts_outputs_and_temporaries(call, mib):
    x = torch.zeros(1024, 1024)
    assert peak_mib(lambda: call(x), "cpu") == pytest.approx(mib, abs=0.01)


def test_available_memory_is_a_number_of_this_machine():
    assert 0 < available_mib() < 64 * 2**20
