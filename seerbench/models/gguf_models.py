"""Turn a GGUF file, as llama.cpp has it, into a model folder as transformers has it.

A GGUF file holds weights, mostly quantised, sizes and a tokenizer. Here the weights are dequantised once and stored
as bfloat16, beside config.json and tokenizer files, so that everything else loads an ordinary folder. What is not
understood is refused, since a model that is read half right gives numbers that look like a model's.

Supported is what the presets name: Llama without bias and RoPE scaling, with the tokenizer of SmolLM2 (byte-level
BPE, every digit a token). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import quants
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from seerbench.core.finite import require_finite
from seerbench.errors import ModelError
from seerbench.models.model_source import WEIGHTS_FROM
from seerbench.reading import reading

# Weight in the file -> weight of LlamaForCausalLM; those of layers follow "blk.<layer>.", "model.layers.<layer>.".
WEIGHTS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_WEIGHTS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
# Fields "llama.<key>" -> keys of LlamaConfig.
SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
SMOLLM = ("gpt2", "smollm")  # the fields that name SmolLM2's tokenizer: its model and its splitting of text
CONTROL = int(gguf.TokenType.CONTROL)
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def convert(file: Path, out: Path, origin: str, cure: str) -> None:
    """Write the model in a GGUF file as a folder: config.json, model.safetensors in bfloat16, tokenizer files.

    Args:
        file: the GGUF file.
        out: the folder to write, which must exist.
        origin: where the file comes from, kept in config.json as `weights_from` with the kinds of quantisation.
        cure: what the user can do about a file that cannot be used.

    Raises:
        ModelError: the file is no GGUF file or is damaged, or it holds another architecture or tokenizer.
    """
    with reading(file, ModelError, cure):
        content = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in content.fields.items()}
        kinds = Counter(tensor.tensor_type.name for tensor in content.tensors)
    _require_supported(file, fields, [tensor.name for tensor in content.tensors], cure)
    with reading(file, ModelError, cure):
        config = _config(fields)
        tokenizer = _tokenizer(fields)
        weights = {_name(each.name): _weight(each, config) for each in content.tensors}
    require_finite(weights.items(), str(file), cure)
    config.tie_word_embeddings = "lm_head.weight" not in weights
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    setattr(config, WEIGHTS_FROM, f"{origin}, dequantised (tensors: {counts})")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)
    config.save_pretrained(out)


def _require_supported(file: Path, fields: Mapping[str, Any], tensors: list[str], cure: str) -> None:
    """Raise ModelError for a file that holds anything but a plain Llama with SmolLM2's tokenizer."""
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{file} holds the architecture {architecture}, and only llama is supported; {cure}")
    tokenizer = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if tokenizer != SMOLLM:
        named = "/".join(map(str, tokenizer))
        raise ModelError(f"{file} has the tokenizer {named}, and only {'/'.join(SMOLLM)} is supported; {cure}")
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"{file} scales RoPE ({scaling}), and only plain RoPE is supported; {cure}")
    unknown = [name for name in tensors if name not in WEIGHTS and name.split(".", 2)[-1] not in LAYER_WEIGHTS]
    if unknown:
        raise ModelError(f"{file} has weights that a plain Llama has not, such as {unknown[0]}; {cure}")


def _config(fields: Mapping[str, Any]) -> LlamaConfig:
    """Return the transformers config of a Llama by the fields of a GGUF file."""
    sizes = {ours: fields[f"llama.{theirs}"] for theirs, ours in SIZES.items()}
    ids = {f"{name}_id": fields.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in SPECIAL_TOKENS.items()}
    return LlamaConfig(
        **sizes,
        **{name: ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        head_dim=fields.get("llama.attention.key_length", sizes["hidden_size"] // sizes["num_attention_heads"]),
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        rope_parameters={"rope_type": "default", "rope_theta": fields.get("llama.rope.freq_base", 10000.0)},
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def _name(name: str) -> str:
    """Return the name that a weight of a GGUF file has in LlamaForCausalLM."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{LAYER_WEIGHTS[rest]}"


def _weight(tensor: gguf.ReaderTensor, config: LlamaConfig) -> Tensor:
    """Return a weight as transformers has it, in bfloat16 [outputs, inputs], or [outputs] for a norm."""
    weight = quants.dequantize(tensor.data, tensor.tensor_type)
    if tensor.name.endswith("attn_q.weight"):
        weight = _halves_apart(weight, config.num_attention_heads)
    elif tensor.name.endswith("attn_k.weight"):
        weight = _halves_apart(weight, config.num_key_value_heads)
    return torch.from_numpy(np.array(weight, dtype=np.float32)).bfloat16()


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a projection [heads x head_dim, inputs] in the order of transformers' RoPE.

    RoPE turns pairs of rows. In the file the rows of a pair are neighbors; transformers has the first rows of all
    pairs of a head before the second ones.
    """
    rows, inputs = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def _tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file: byte-level BPE in which every digit is a token of its own."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in kinds if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    ids = {name: fields.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in SPECIAL_TOKENS.items()}
    named = {name: tokens[number] for name, number in ids.items() if number is not None}
    template = fields.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        chat_template=template,
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
