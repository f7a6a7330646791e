"""Make the JSON schema of presets from the types, for editors, and write it to config/preset.schema.json.

    python -m seerbench.presets.schema    # writes it; a test says that the file is up to date

An editor with a YAML language server finds it by the first line of each preset.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from seerbench.methods.gate_config import POOLINGS, RECIPES, UNPOOLED
from seerbench.paths import CONFIG
from seerbench.presets.file import PresetFile

FILE = CONFIG / "preset.schema.json"
# GateConfig checks these values itself, so its types do not list them.
GATE_CHOICES = {
    "q_pool": (*POOLINGS, UNPOOLED),
    "k_pool": POOLINGS,
    "projection": ("double", "single"),
    "recipe": RECIPES,
}


class _WithoutTitles(GenerateJsonSchema):
    """Leave out the titles that pydantic makes of field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> dict[str, Any]:
    """Return the JSON schema of a preset."""
    found = PresetFile.model_json_schema(schema_generator=_WithoutTitles)
    gate_set = found["$defs"]["GateSet"]
    gate_set["properties"].pop("block")  # the block belongs to the gate job
    for name, choices in GATE_CHOICES.items():
        gate_set["properties"][name]["enum"] = list(choices)
    return {"$schema": GenerateJsonSchema.schema_dialect} | found | {"title": "A SeerBench preset"}


def text() -> str:
    """Return the content of the schema's file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
