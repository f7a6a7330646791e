"""Test that checkpoints in the formats of real ones are loaded: several files, Llama-3.1's RoPE, Mistral."""

import json
import math
import shutil

import pytest
import standins
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from seerbench.data.tokens import load_tokenizer
from seerbench.errors import ModelError
from seerbench.models.sources import load

TOKENS = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shards", [1, 3])
@torch.no_grad()
def test_sharded_weights_and_llama3_rope(tmp_path, shards):
    folder = standins.make_llama_checkpoint(tmp_path / str(shards), shards=shards, instruct=True)
    assert len(list(folder.glob("*.safetensors"))) == shards
    model = load(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(model.state_dict())
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert model(TOKENS).logits.isfinite().all()
    assert load_tokenizer(folder)("the quick")["input_ids"][0] == model.config.bos_token_id


@torch.no_grad()
def test_mistral(tmp_path):
    model = load(standins.make_mistral_checkpoint(tmp_path))
    assert model.config.model_type == "mistral"
    assert model.config.sliding_window is None
    assert model(TOKENS).logits.isfinite().all()


def test_a_missing_model_is_refused_with_the_command_that_fetches_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf download nobody/nothing --revision main"):
        load("nobody/nothing", revision="main")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return standins.make_llama_checkpoint(tmp_path_factory.mktemp("intact"), shards=1)


def with_weights(intact, folder, change):
    """Return a copy of a model folder with other weights; change takes and returns name -> tensor."""
    shutil.copytree(intact, folder)
    save_file(change(load_file(intact / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink()
    return folder


WEIGHTS = "model-00001-of-00001.safetensors"
Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {k: v for k, v in w.items() if k != Q}, f"1 missing ({Q})"),
        (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, "1 missing (lm_head.weight)"),
        (lambda w: {f"backbone.{k}": v for k, v in w.items()}, "left over (backbone.lm_head.weight, "),
        (lambda w: {}, "missing (lm_head.weight, model.embed_tokens.weight, "),
        (lambda w: w | {Q: w[Q][:-8].clone()}, f"1 of another shape ({Q} ("),
        (lambda w: w | {NORM: w[NORM].repeat(2)}, f"1 of another shape ({NORM} ("),
        (
            lambda w: w | {Q.replace("weight", "bias"): w[NORM].clone()},
            "1 left over (model.layers.1.self_attn.q_proj.bias)",
        ),
        (lambda w: w | {Q.replace("1", "9"): w[Q].clone()}, "left over (model.layers.9."),
        (lambda w: w | {NORM: w[NORM] * math.nan}, f"the weight {NORM} holds values that are not finite numbers"),
        (lambda w: w | {Q: w[Q].index_fill(0, torch.tensor(3), -math.inf)}, f"the weight {Q} holds"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(intact, tmp_path, change, words):
    folder = with_weights(intact, tmp_path / "model", change)
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_gates_among_the_weights_are_left_aside(intact, tmp_path):
    gate = {"model.layers.0.self_attn.attn_gate.mask_linear_k.weight": torch.ones(2, 2)}
    folder = with_weights(intact, tmp_path / "model", lambda w: w | gate)
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    assert torch.equal(load(folder)(TOKENS).logits, load(intact)(TOKENS).logits)


def remove(path):
    path.unlink()


def folder_instead(path):
    path.unlink()
    path.mkdir()


def pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize("spoil", [remove, folder_instead, pointer, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "model.safetensors.index.json"])
def test_a_damaged_file_is_refused_by_name(intact, tmp_path, name, spoil):
    folder = shutil.copytree(intact, tmp_path / "model")
    spoil(folder / name)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert (name if spoil is not remove else str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "bart"}, "encoder-decoder"),
        ({"model_type": "clip"}, "no model can be loaded"),
        ({"model_type": "llama", "hidden_size": "wide"}, "no model can be loaded"),
        ({"model_type": "llama", "num_attention_heads": 0}, "no model can be loaded"),
        ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "own"}, "no model can be loaded"),
        ({}, "no model can be loaded"),
        ([], "another kind"),
    ],
    ids=str,
)
def test_a_config_of_no_causal_language_model_is_refused(tmp_path, config, words):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit('a file of the model was run')", encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        load(tmp_path)


@settings(max_examples=12, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
@torch.no_grad()
def test_a_cut_file_is_refused_wherever_it_ends(intact, tmp_path_factory, share):
    folder = shutil.copytree(intact, tmp_path_factory.mktemp("cut") / "model")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=WEIGHTS):
        load(folder)
