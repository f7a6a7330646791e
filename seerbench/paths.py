"""The folders of the project. Every module that needs one of them imports it from here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the repository, or site-packages for an installed wheel
PAPER = ROOT / "results" / "paper"  # the paper's own numbers
PUBLISHED = ROOT / "results" / "published"  # committed runs, one folder per machine
FRESH = Path("results/fresh")  # what this machine measures, relative to the current folder
