"""Test that MInference's search gives each head a pattern and a score."""

from seerbench.search.minference import minference_patterns


def test_every_head_gets_a_pattern(model, windows):
    patterns = minference_patterns(model, windows[128][0], 16)
    assert [len(layer) for layer in patterns] == [4, 4]
    assert all(0 < pattern.score <= 1 for layer in patterns for pattern in layer)
