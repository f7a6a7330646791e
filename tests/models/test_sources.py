"""Test that checkpoints in the formats of real ones are loaded: several files, Llama-3.1's RoPE, Mistral."""

import json

import pytest
import standins
import torch

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
