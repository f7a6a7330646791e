"""A damaged checkpoint is refused, that of another training is not used, and NaN is never saved."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from seerbench.errors import ModelError
from seerbench.methods import gate_files
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.training import checkpoint as training_checkpoint
from seerbench.training.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    save_gate_sets,
    save_model,
    weights_digest,
)
from seerbench.writing import cause


def training():
    """Return the parameters and the optimizer of a small training after one step."""
    params = {"w": nn.Parameter(torch.ones(3, 4))}
    optimizer = torch.optim.AdamW(params.values())
    params["w"].sum().backward()
    optimizer.step()
    return params, [optimizer]


def saved(folder):
    file = folder / "state.safetensors"
    save_checkpoint(file, *training(), digest="d", step=7, rows=[{"loss": 1.0}])
    return file


def test_a_checkpoint_comes_back_and_another_training_s_is_not_used(tmp_path):
    file = saved(tmp_path)
    params, optimizers = training()
    params["w"].data.zero_()
    assert load_checkpoint(file, params, optimizers, digest="other") == (0, [])
    assert not params["w"].any()
    assert load_checkpoint(tmp_path / "none", params, optimizers, digest="d") == (0, [])
    assert load_checkpoint(file, params, optimizers, digest="d") == (7, [{"loss": 1.0}])
    assert params["w"].all()


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_checkpoint_is_refused_wherever_it_ends(tmp_path_factory, share):
    file = saved(tmp_path_factory.mktemp("cut"))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ModelError, match=r"state.safetensors is .*; delete it and run again"):
        load_checkpoint(file, *training(), digest="d")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    words = {"pointer": "Git LFS pointer", "lost": "link to a file that does not exist", ".": "is a folder"}
    for name, said in words.items():
        with pytest.raises(ModelError, match=said):
            load_checkpoint(tmp_path / name, *training(), digest="d")


@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "param.w"}, {}),
        (lambda w: {k: v for k, v in w.items() if k != "rng.torch"}, {}),
        (lambda w: w | {"param.w": torch.ones(5)}, {}),
        (lambda w: w | {"optimizer.9.0.step": torch.ones(1)}, {}),
        (lambda w: w, {"rows": "no JSON"}),
        (lambda w: w, {"step": "seven"}),
    ],
)
def test_a_checkpoint_with_other_contents_is_refused(tmp_path, change, metadata):
    file = saved(tmp_path)
    save_file(change(load_file(file)), file, metadata={"digest": "d", "step": "7", "rows": "[]"} | metadata)
    with pytest.raises(ModelError, match="delete it and run again"):
        load_checkpoint(file, *training(), digest="d")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=11))
    gate = AttnGate(GateConfig(block=16), 2, 1, 8)
    with torch.no_grad():
        model.model.norm.weight[3] = gate.wk[0, 1, 2] = value
    with pytest.raises(ModelError, match=r"the trained model mine: the weight model\.norm\.weight"):
        save_model(model, tmp_path / "mine")
    with pytest.raises(ModelError, match="the trained gate set v1, layer 0: the weight wk"):
        save_gate_sets(tmp_path / "gates.safetensors", {"v1": nn.ModuleList([gate])})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_what_could_not_be_written_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    file = saved(tmp_path)
    before = file.read_bytes()

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(training_checkpoint, "save_file", full)
    monkeypatch.setattr(gate_files, "save_file", full)
    params, optimizers = training()
    gates = {"v1": nn.ModuleList([AttnGate(GateConfig(block=16), 2, 1, 8)])}
    for path, write in (
        (file, lambda: save_checkpoint(file, params, optimizers, digest="d", step=8, rows=[])),
        (tmp_path / "gates.safetensors", lambda: save_gate_sets(tmp_path / "gates.safetensors", gates)),
    ):
        with pytest.raises(OSError) as refusal:
            write()
        assert cause(refusal.value).startswith(f"{path}: the disk is full")
    assert file.read_bytes() == before
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_changed_weight_changes_the_digest(dtype):
    weights = [torch.zeros(3, 4, dtype=dtype), torch.ones((), dtype=dtype)]
    before = weights_digest(weights)
    assert weights_digest([weight.clone().requires_grad_() for weight in weights]) == before
    assert weights_digest([weights[0].T.contiguous().T, weights[1]]) == before  # memory in another order
    weights[0][2, 3] = torch.finfo(dtype).tiny
    assert weights_digest(weights) != before
