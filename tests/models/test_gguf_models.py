"""Test that a GGUF file becomes the model and tokenizer that were written into it, and that others are refused."""

import pytest
import tiny_gguf
import torch

from seerbench.data.tokens import load_tokenizer
from seerbench.errors import ModelError
from seerbench.models.gguf_models import convert
from seerbench.models.sources import load


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a model, and the folder that its GGUF file was converted to."""
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny_gguf.make_gguf(folder / "tiny.gguf")
    (folder / "model").mkdir()
    convert(folder / "tiny.gguf", folder / "model", "tiny.gguf of tiny", "cure")
    return model, folder / "model"


def test_the_model_is_the_one_that_was_written(made):
    model, folder = made
    loaded = load(folder, dtype="float32")
    assert loaded.config.tie_word_embeddings
    assert loaded.config.rope_parameters["rope_theta"] == 100000
    assert "quantization_config" not in loaded.config.to_dict()
    assert loaded.config.weights_from == "tiny.gguf of tiny, dequantised (tensors: 14 Q4_1, 5 F32, 1 Q8_0)"
    tokens = torch.arange(3, 103)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_the_tokenizer_is_the_one_that_was_written(made):
    written, loaded = tiny_gguf.make_tokenizer(), load_tokenizer(made[1])
    for text in ("bade figo 20481, kula?\n\n  ünïcode", "a <eos> b"):
        assert loaded(text).input_ids == written(text).input_ids
        assert loaded.decode(loaded(text).input_ids) == text
    assert len(loaded("2048").input_ids) == 4
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<bos>", "<eos>", "<pad>")
    said = loaded.apply_chat_template([{"role": "user", "content": "bade"}], tokenize=False)
    assert said == "<user>bade"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "qwen2"}, "holds the architecture qwen2, and only llama is supported; name another file"),
        ({"pre": "llama-bpe"}, "has the tokenizer gpt2/llama-bpe, and only gpt2/smollm is supported"),
        ({"extra": "blk.0.attn_q.bias"}, "such as blk.0.attn_q.bias"),
        ({"extra": "rope_freqs.weight"}, "such as rope_freqs.weight"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, changes, told):
    tiny_gguf.make_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ModelError) as raised:
        convert(tmp_path / "tiny.gguf", tmp_path, "origin", "name another file")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_scaled_rope_is_refused(tmp_path):
    tiny_gguf.make_gguf(tmp_path / "tiny.gguf", scaling=tiny_gguf.gguf.RopeScalingType.YARN)
    with pytest.raises(ModelError, match="scales RoPE"):
        convert(tmp_path / "tiny.gguf", tmp_path, "origin", "cure")


@pytest.mark.parametrize("keep", [0, 3, 2000, -5])
def test_a_file_that_is_no_gguf_is_refused(tmp_path, keep):
    tiny_gguf.make_gguf(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "broken.gguf"
    file.write_bytes(content[:keep] if keep else b"text, not a GGUF file")
    with pytest.raises(ModelError, match=r"broken\.gguf is not readable .*; name another file"):
        convert(file, tmp_path, "origin", "name another file")
