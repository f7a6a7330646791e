"""Tests of what steps share: evaluation windows, and the command in the provenance of a step."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from seerbench.data.tokens import bos_and_eos
from seerbench.errors import CorpusError
from seerbench.paths import ROOT
from seerbench.presets.jobs import Tokens
from seerbench.presets.load import load_preset
from seerbench.steps import common


def test_aligned_windows_end_alike_and_short_ones_hold_less(monkeypatch):
    tokens = {"long": np.arange(100, 200, dtype=np.int32), "short": np.arange(30, dtype=np.int32)}
    monkeypatch.setattr(common, "read_tokens", lambda file, split: tokens)
    toy = Tokens("toy", Path("tokens.parquet"))
    model = SimpleNamespace(config=SimpleNamespace(bos_token_id=1, eos_token_id=2))
    few, many = (
        common.windows_of(toy, context, 4, model, longest=64, aligned=True)["long"] for context in (16, 64)
    )
    assert (len(few), len(many)) == (16, 64)
    assert few[0] == many[0] == 1
    assert (few[1:] == many[-15:]).all()
    plain = common.windows_of(toy, 16, 4, model, longest=64)["long"]
    assert (plain[1:] == tokens["long"][:15]).all()


def test_provenance_has_one_command_however_the_preset_is_named(tmp_path, monkeypatch):
    (tmp_path / "link.yaml").symlink_to(ROOT / "tests" / "smoke.yaml")
    found = set()
    for folder, spelling, results in (
        (ROOT, "tests/smoke.yaml", "results/fresh"),
        (ROOT / "tests", "./smoke.yaml", tmp_path),
        (tmp_path, "link.yaml", "here"),
        (tmp_path, str(ROOT / "tests" / "smoke.yaml"), "."),
    ):
        monkeypatch.chdir(folder)
        preset = load_preset(spelling, results)
        run = common.start(preset.setup, "latency kernel 256")
        found.add((run["command"], run["preset"], str(preset.distill("long").identity())))
    ((command, *_),) = found
    assert command == "seerbench latency tests/smoke.yaml kernel 256"


def test_a_path_with_a_space_is_quoted_in_the_command(tmp_path):
    path = tmp_path / "my preset.yaml"
    path.write_bytes((ROOT / "tests" / "smoke.yaml").read_bytes())
    command = common.start(load_preset(str(path)).setup, "maps")["command"]
    assert shlex.split(command) == ["seerbench", "maps", str(path)]


def test_a_model_without_bos_opens_windows_with_eos():
    assert bos_and_eos(SimpleNamespace(bos_token_id=None, eos_token_id=[5, 6])) == (5, 5)
    assert bos_and_eos(SimpleNamespace(bos_token_id=1, eos_token_id=2)) == (1, 2)
    for none in (None, []):
        with pytest.raises(CorpusError, match="names no eos_token_id"):
            bos_and_eos(SimpleNamespace(bos_token_id=1, eos_token_id=none))
