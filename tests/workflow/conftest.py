"""The commands of tests of the graph, as forks of one process."""

import os
import sys

import pytest
from warm_start import warm_start


@pytest.fixture(scope="session")
def installed():
    """Return an environment whose PATH finds the installed programs, and in which there is no network."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def warm(installed):
    """Return an environment whose PATH finds the forks of `seerbench` and `snakemake` (warm_start.py)."""
    with warm_start(installed) as environment:
        yield environment
