"""The folders of the project. Every module that needs one of them asks here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "results" / "paper"
PUBLISHED = ROOT / "results" / "published"
FRESH = Path("results/fresh")
