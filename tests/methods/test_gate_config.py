"""Options of a gate: the impossible ones are refused."""

import pytest

from seerbench.methods.gate_config import GateConfig


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"q_pool": "sum"}, "no pooling"),
        ({"projection": "triple"}, "double or single"),
        ({"recipe": "v3"}, "v1 or v2"),
        ({"q_pool": "maxmin", "projection": "single"}, "one pooling operator"),
        ({"q_pool": "none"}, "takes a single projection"),
        ({"k_pool": "none"}, "no pooling"),
    ],
)
def test_impossible_gates_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        GateConfig(**options)
