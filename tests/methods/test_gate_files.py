"""Files of gates."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seerbench.core.problem import LayerContext
from seerbench.errors import ModelError, Refused
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_files import gate_set_names, gates_in_bf16, load_gates, save_gates
from seerbench.methods.registry import create


def test_gates_come_back_from_their_file(tmp_path):
    sets = {
        "v1": [AttnGate(GateConfig(block=16), 4, 2, 16) for _ in range(2)],
        "v2": [
            AttnGate(GateConfig(block=16, k_pool="maxminavg", projection="single", recipe="v2"), 4, 2, 16)
            for _ in range(2)
        ],
    }
    path = tmp_path / "gates.safetensors"
    save_gates(path, sets)
    assert gate_set_names(path) == ["v1", "v2"]
    for name, gates in sets.items():
        for before, after in zip(gates, load_gates(path, name), strict=True):
            assert before.config == after.config
            assert all(torch.equal(x, y) for x, y in zip(before.parameters(), after.parameters(), strict=True))
    with pytest.raises(ValueError, match="it has v1, v2"):
        load_gates(path, "v9")
    small = tmp_path / "small.safetensors"
    small.write_bytes(gates_in_bf16(path, ["v2"]))
    assert gate_set_names(small) == ["v2"]
    for before, after in zip(sets["v2"], load_gates(small, "v2"), strict=True):
        assert before.config == after.config
        assert all(
            torch.equal(x.bfloat16().float(), y)
            for x, y in zip(before.parameters(), after.parameters(), strict=True)
        )
    with pytest.raises(ModelError, match="no gate set 'v9'"):
        gates_in_bf16(path, ["v9"])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "gates.safetensors"
    save_gates(path, {"v1": [AttnGate(GateConfig(block=16), 4, 2, 16) for _ in range(2)]})
    return path


def described(path):
    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["gates"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "v1.1.wk"}, "the weight v1.1.wk is missing"),
        (lambda w: w | {"v1.2.wk": w["v1.1.wk"].clone()}, "the weight v1.2.wk is left over"),
        (lambda w: w | {"v1.0.wq": w["v1.0.wq"][:1].clone()}, r"v1.0.wq is \[1, 16, 16\], not \[4, 16, 16\]"),
        (lambda w: w | {"v1.0.wq": w["v1.0.wq"] * math.nan}, "v1.0.wq holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(path, change, words):
    save_file(change(load_file(path)), path, metadata={"gates": json.dumps(described(path))})
    with pytest.raises(ModelError, match=words):
        load_gates(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"gates": "no JSON"},
        {"gates": "[]"},
        {"gates": '{"v1": {}}'},
        {"gates": '{"v1": {"config": {"pool": 1}}}'},
    ],
)
def test_metadata_of_another_program_are_refused(path, metadata):
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ModelError, match=r"gates.safetensors") as caught:
        load_gates(path, "v1")
    assert "make it with" in str(caught.value) or "it has" in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused_wherever_it_ends(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "gates.safetensors"
    save_gates(path, {"v1": [AttnGate(GateConfig(block=16), 2, 1, 8)]})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for read in (load_gates, gate_set_names):
        with pytest.raises(ModelError, match=r"gates.safetensors is .*; make it with"):
            read(path)


def test_no_file_and_a_folder_are_refused(tmp_path):
    for place, words in ((tmp_path / "none", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(ModelError, match=words):
            load_gates(place)


@pytest.mark.parametrize(
    ("index", "heads", "kv_heads", "head_dim"), [(2, 4, 2, 16), (0, 8, 2, 16), (1, 4, 4, 16), (0, 4, 2, 32)]
)
def test_gates_of_another_model_refuse_its_layers(path, index, heads, kv_heads, head_dim):
    q, k = torch.randn(1, heads, 64, head_dim), torch.randn(1, kv_heads, 64, head_dim)
    with pytest.raises(Refused, match="they are of another model"):
        create("seer", gates=load_gates(path)).plan(q, k, LayerContext(index, q, k))
