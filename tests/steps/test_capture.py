"""A model's q, k, v and each method's mask are captured; heads and layers can be chosen."""

import json
import re
from pathlib import Path

import pytest
import torch
from standins import make_preset
from typer.testing import CliRunner

from seerbench.cli import app
from seerbench.core.problem import AttentionProblem
from seerbench.errors import ConfigError, MeasureError
from seerbench.measure import inputs
from seerbench.measure.arm import Arm
from seerbench.measure.workloads import read_workloads
from seerbench.methods.registry import create
from seerbench.paths import ROOT
from seerbench.presets.load import load_preset
from seerbench.steps import capture, common
from seerbench.steps.latency import text_window

ARMS = [
    {"method": "dense"},
    {"method": "streaming", "sparsities": [0.5, 0.7]},
    {"method": "oracle", "sparsities": [0.5]},
    {"method": "oracle", "mean_correction": True, "sparsities": [0.5]},  # its mask is that of the line above
    {"method": "minference"},
]


@pytest.fixture
def preset(tmp_path):
    return make_preset(tmp_path, ARMS)


def test_each_method_s_mask_is_captured_with_q_k_and_v(preset, tmp_path):
    left_out = capture.capture_workloads(preset, [128, 256], [0, 1], [], tmp_path / "out")
    assert {(each["context"], each["layer"], each["method"]) for each in left_out} == {
        (context, layer, "minference") for context in (128, 256) for layer in (0, 1)
    }
    assert {each["reason"] for each in left_out} == {"its plan is no BlockMask"}
    found = {each.name: each for each in read_workloads(tmp_path / "out")}
    names = ["streaming-0.50", "streaming-0.70", "oracle-0.50"]
    assert list(found) == [f"{n}-layer{i}-{name}" for n in (128, 256) for i in (0, 1) for name in names]
    job = preset.latency("methods", 256)
    model = common.load_model(job.groups[0].model, job.setup)
    q, k, v, layer = inputs.capture(model, text_window(job.tokens, 256, model, "cpu"), 1)
    workload = found["256-layer1-oracle-0.50"]
    *tensors, mask = workload.tensors("cpu", "float32")
    assert all(map(torch.equal, tensors, (q, k, v)))
    method = create("oracle", sparsity=0.5, block=16).with_threshold_for(q, k, layer)
    assert torch.equal(mask.to_dense(), method.plan(q, k, layer).to_dense())
    assert (workload.mask_kind, workload.source) == ("pattern", inputs.captured_from("tiny", 256, 512))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["run"]["command"].endswith(f"--contexts 128,256 --layers 0,1 --out {tmp_path / 'out'}")


def test_the_page_on_the_format_reads_it(preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capture.capture_workloads(preset, [], [], [], Path("captured"))
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "capture.md").read_text(), re.S)
    capsys.readouterr()
    exec(code, {})
    assert (
        capsys.readouterr().out.splitlines()[0].startswith("256-layer1-streaming-0.50 torch.Size([1, 4, 256, 16])")
    )


def test_some_heads_keep_what_was_planned_on_all(preset, tmp_path):
    out, command = (
        tmp_path / "out",
        ["capture", tmp_path / "small.yaml", "--results", tmp_path / "results", "--out"],
    )
    whole, part = ([*command, out / name] for name in ("whole", "part"))
    for arguments in (whole, [*part, "--kv-heads", 1]):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
    assert "3 masks: " in done.output
    assert "left out at 256 tokens: minference: its plan is no BlockMask" in done.output
    for one, other in zip(read_workloads(out / "whole"), read_workloads(out / "part"), strict=True):
        (q, k, _, mask), (some_q, some_k, _, some) = (each.tensors("cpu", "float32") for each in (one, other))
        assert torch.equal(q[:, 2:], some_q)
        assert torch.equal(k[:, 1:], some_k)
        assert torch.equal(mask.to_dense()[:, 2:], some.to_dense())
        assert other.kv_heads == (1,)
        assert other.realised == pytest.approx(1 - some.density())
    CliRunner().invoke(app, list(map(str, [*part, "--layers", 0])))  # replaces the capture
    assert {each.layer for each in read_workloads(out / "part")} == {0}


def test_a_refusal_becomes_the_reason(monkeypatch):
    arm = Arm(create("minference", sparsity=0.5, block=16))
    q, k, _, layer = inputs.random_attention(AttentionProblem("cpu", "float32", 1, 4, 2, 16, 128), 0)
    assert "where 50.0% was requested" in capture._planned(arm, q, k, layer)
    monkeypatch.setattr(type(arm.method), "refuses", lambda self, problem: f"no {problem.context} tokens")
    assert capture._planned(arm, q, k, layer) == "no 128 tokens"


def test_what_cannot_be_captured_is_one_line(preset, tmp_path):
    with pytest.raises(MeasureError, match="no layer 7; choose among its layers 0 to 1"):
        capture.capture_workloads(preset, [], [7], [], tmp_path / "out")
    with pytest.raises(ConfigError, match="among the model's heads 0 to 1"):
        capture.capture_workloads(preset, [], [], [2], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="has other content"):
        capture.capture_workloads(preset, [], [], [], tmp_path)
    assert (tmp_path / "small.yaml").exists()
    with pytest.raises(ConfigError, match="no sweep `methods` in a model"):
        capture.capture_workloads(load_preset("speed", tmp_path), [], [], [], tmp_path / "out")
