"""The published JSON schema is the one that the types give, and every preset names and fits it."""

import jsonschema
import pytest
import yaml

from seerbench.data.longbench import TASKS as LONGBENCH_TASKS
from seerbench.methods.gate_config import POOLINGS
from seerbench.paths import ROOT
from seerbench.presets import schema


def test_the_published_schema_is_up_to_date():
    said = "write it again: python -m seerbench.presets.schema"
    assert schema.FILE.read_text(encoding="utf-8") == schema.text(), said


@pytest.mark.parametrize("path", [*(ROOT / "config").glob("*.yaml"), ROOT / "tests" / "smoke.yaml"], ids=str)
def test_presets_name_and_fit_the_schema(path):
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == schema.FILE
    jsonschema.Draft202012Validator(schema.schema()).validate(yaml.safe_load(text))


def test_choices_come_from_the_code_that_defines_them():
    found = schema.schema()["$defs"]
    assert found["GateSet"]["properties"]["k_pool"]["enum"] == list(POOLINGS)
    tasks = found["LongBench"]["properties"]["tasks"]["anyOf"][0]["items"]["enum"]
    assert tasks == list(LONGBENCH_TASKS)


def test_fields_have_descriptions():
    assert "MInference" in schema.schema()["$defs"]["Arm"]["properties"]["patterns"]["description"]
