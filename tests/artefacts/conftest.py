"""One synthetic run per session, and artefacts that are drawn from it once, when a test first asks for them."""

import functools
import importlib

import pytest
from synthetic_rows import PAPER, write_run

from seerbench import artefacts
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.rows.store import Run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """Return the folder of a run with every table."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def drawn(run_dir, tmp_path_factory):
    """Return a function: name of an artefact -> the folder with its files."""
    out = tmp_path_factory.mktemp("figures")

    @functools.cache
    def draw(name):
        artefacts.make(name, run_dir, PAPER, out / name)
        return out / name

    return draw


@pytest.fixture(scope="session")
def collect(run_dir):
    """Return a function: name of an artefact, folder (by default the whole run) -> a copy of its frame."""

    @functools.cache
    def collected(name, folder):
        module = importlib.import_module(f"seerbench.artefacts.{name}")
        return module.collect(Run(folder), paper_values(PAPER))

    return lambda name, folder=run_dir: collected(name, folder).copy()
