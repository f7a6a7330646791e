"""The folders of the project. Every module that needs one of them imports it from here.

In a checkout, the presets and the paper's numbers are reached through links in this folder; a wheel has copies
of them in the same places. Published runs, notebooks and rules are in a checkout only.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # the repository, or site-packages for an installed wheel
CONFIG = (PACKAGE / "config").resolve()  # the presets
PAPER = (PACKAGE / "paper").resolve()  # the paper's own numbers
IS_CHECKOUT = CONFIG != PACKAGE / "config"
IN_CHECKOUT_ONLY = "published runs, notebooks and the rules of the graph are in a checkout of the repository alone"
# Committed runs, one folder per machine.
PUBLISHED = (ROOT if IS_CHECKOUT else Path()) / "results" / "published"
FRESH = Path("results/fresh")  # what this machine measures, relative to the current folder
