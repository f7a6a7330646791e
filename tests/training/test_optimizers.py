"""Test the learning-rate schedules from the first step to the last."""

import pytest

from seerbench.training.optimizers import cosine_at, lr_at


def test_lr_warms_up_stays_and_decays():
    factors = [lr_at(step, 100, warmup=10, decay_share=0.3) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:70] == [1.0] * 61
    assert factors[99] == pytest.approx(1 / 30)
    assert min(factors) > 0


def test_cosine_schedule():
    assert [round(cosine_at(step, 10, 2), 3) for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
