"""Findings are explained in words."""

from dataclasses import replace

from compare.kernels import example, findings
from seerbench.compare import present


def test_what_is_recognised_is_told_alone():
    found = findings(example("wrong/ignores_mask.py"))
    suspected = replace(found[-1], guess=found[-1].trial.suspect, recognised=False)
    told = present.explain([found[0], suspected])
    assert told.count("guess") == 1
    assert "ignores the mask" in told
    assert present.explain([suspected]).count("guess") == 1
