"""The paper's contradictions with itself, with their arithmetic."""

from seerbench.report.oddities import oddities


def test_the_arithmetic():
    text = "\n".join(oddities())
    for number in ("12.09 s", "1.57x", "16k: 0.55 and 0.65", "line 14"):
        assert number in text
