"""Write tiny random checkpoints in the real formats, so that tests run the paper preset offline.

Config files carry the keys of the real ones (meta-llama/Llama-3.1-8B, Meta-Llama-3-8B, mistralai/Mistral-7B-v0.3)
with small sizes; weights are random bf16 in sharded safetensors with an index; tokenizers are byte-level with the
real special tokens; gates have the names that the authors' code saves (microsoft/SeerAttention). What is
measured with them shows that the code runs, and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from seerbench.presets.load import load_preset
from seerbench.presets.preset import Preset

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 448,
}
HEAD_DIM = SIZES["hidden_size"] // SIZES["num_attention_heads"]
# The special tokens by family: (begin of text, ends of text, all of them in the order of their ids).
LLAMA = (
    "<|begin_of_text|>",
    ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
    [
        f"<|{name}|>"
        for name in ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id")
    ],
)
MISTRAL = ("<s>", ["</s>"], ["<unk>", "<s>", "</s>"])
ROPE = {  # the entry rope_scaling, with original lengths scaled down with the model
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
        "rope_type": "llama3",
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 512, "rope_type": "yarn"},
    None: None,
}
POSITIONS = {"llama3": 2048, "yarn": 2048, None: 512}  # original length times factor
CHAT = (  # the shape of Llama-3's template, without its tools
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Greedy answers have 2 to 10 tokens if the output weights of end-of-text tokens are multiplied by this number. With
# plain random weights most answers never end, and decoding them takes most of the time of a test.
ANSWERS_END = 4.0
STATE = "attn_gate_weights.pth"  # the authors' name for a file of gates
# 64 words of four letters: the look-up tasks consist of words.
SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "no")
TEXT = " ".join(first + second for first in SYLLABLES for second in SYLLABLES)


def make_tokenizer(folder: Path, family: str = "llama") -> Path:
    """Write a tokenizer of the family llama (with a chat template) or mistral, and return the folder.

    No id reaches SIZES["vocab_size"]. Begin-of-text comes first in every encoding, as in the real ones.
    """
    bos, ends, specials = {"llama": LLAMA, "mistral": MISTRAL}[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {TEXT}"] * 10, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": bos, "eos_token": ends[0]}
    config = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": POSITIONS["llama3"],
        "clean_up_tokenization_spaces": False,
    }
    if family == "llama":
        config["chat_template"] = CHAT
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", special)
    return folder


def make_llama_checkpoint(
    folder: Path, rope: str | None = "llama3", shards: int = 2, instruct: bool = False, seed: int = 0
) -> Path:
    """Write a Llama checkpoint with its tokenizer, and return the folder.

    rope: llama3 (Llama-3.1), yarn (Llama-3 extended) or None (Llama-3). The config of an `instruct` checkpoint
    lists several end-of-text tokens, as the real one does, and its answers end after a few tokens.
    """
    make_tokenizer(folder, "llama")
    ids = _ids(folder)
    ends = [ids[name] for name in LLAMA[1]]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids[LLAMA[0]],
        "eos_token_id": ends if instruct else ends[0],
        "hidden_act": "silu",
        **SIZES,
        "initializer_range": 0.02,
        "max_position_embeddings": POSITIONS[rope],
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": ROPE[rope],
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0",
        "use_cache": True,
    }
    return _checkpoint(folder, config, shards, seed, ANSWERS_END if instruct else 1.0)


def make_mistral_checkpoint(folder: Path, shards: int = 2, seed: int = 0) -> Path:
    """Write a Mistral-v0.3 checkpoint with its tokenizer: no sliding window, theta of a million."""
    make_tokenizer(folder, "mistral")
    ids = _ids(folder)
    config = {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": ids[MISTRAL[0]],
        "eos_token_id": ids[MISTRAL[1][0]],
        "hidden_act": "silu",
        **SIZES,
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0",
        "use_cache": True,
    }
    return _checkpoint(folder, config, shards, seed)


def make_gate_file(
    folder: Path, recipe: str = "v2", projection: str | None = None, block: int = 64, seed: int = 0
) -> Path:
    """Write gates for one of the checkpoints above, as the authors publish them, and return the folder.

    v2: `attn_gate_weights.pth` (a state dict of gates only) beside a config.json that names the base model.
    v1: the whole model in safetensors with an index, gates among the weights, as the first code's Trainer saved it.
    r: as v2, for decoding.
    projection: single (the authors' default) or double (the first release: also a linear on Q).
    """
    generator = torch.Generator().manual_seed(seed)
    if recipe == "r":
        return _make_decode_gates(folder, block, generator)
    projection = projection or {"v1": "double", "v2": "single"}[recipe]
    pools = {"v1": "maxmin", "v2": "maxminavg"}[recipe]
    heads = SIZES["num_attention_heads"] if projection == "single" else SIZES["num_key_value_heads"]
    gates = {}
    for layer in range(SIZES["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn.attn_gate.mask_linear_"
        gates[f"{prefix}k.weight"] = _random((heads, len(pools) // 3 * HEAD_DIM, HEAD_DIM), generator)
        if projection == "double":
            gates[f"{prefix}q.weight"] = _random((SIZES["num_attention_heads"], HEAD_DIM, HEAD_DIM), generator)
    if recipe == "v1":
        make_llama_checkpoint(folder)
        config = json.loads((folder / "config.json").read_text())
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        name = "model-00003-of-00003.safetensors"
        save_file(gates, str(folder / name), metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(gates, name)
        _write(folder / "model.safetensors.index.json", index)
        gate = {"attn_gate_type": f"Qavg_K{pools}", "gate_block_size": block, "gate_hidden_size": HEAD_DIM}
        _write(folder / "config.json", config | gate)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(gates, folder / STATE)
    config = {
        "architectures": ["SeerAttnLlamaForCausalLM"],
        "base_model": "meta-llama/Llama-3.1-8B-Instruct",
        "model_type": "llama",
        **SIZES,
        "seerattn_gate_type": f"Qavg_K{pools}",
        "seerattn_gate_block_size": block,
        "seerattn_gate_hidden_size": HEAD_DIM,
        "seerattn_last_block_dense": True,
        "seerattn_sparsity_method": "threshold",
        "seerattn_threshold": 0.002,
    }
    _write(folder / "config.json", config)
    return folder


def _make_decode_gates(folder: Path, block: int, generator: torch.Generator) -> Path:
    kv_heads = SIZES["num_key_value_heads"]
    shapes = {
        "linear_q": (kv_heads, SIZES["num_attention_heads"] // kv_heads, HEAD_DIM, HEAD_DIM),
        "linear_k": (kv_heads, 3 * HEAD_DIM, HEAD_DIM),
        "qnorm": (HEAD_DIM,),
        "knorm": (HEAD_DIM,),
    }
    gates = {
        f"model.layers.{layer}.self_attn.attn_gate.attngate_{name}.weight": _random(shape, generator)
        for layer in range(SIZES["num_hidden_layers"])
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(gates, folder / STATE)
    config = {
        "base_model": "Qwen/Qwen3-4B",
        "seerattn_q_head_pooling_type": "Qproj",
        "seerattn_k_seq_pooling_type": "Kmaxminavg",
        "seerattn_gate_block_size": block,
        "seerattn_gate_hidden_size": HEAD_DIM,
        "seerattn_use_qk_norm": True,
        "seerattn_use_rope": True,
    }
    _write(folder / "config.json", config)
    return folder


def _checkpoint(folder: Path, config: dict[str, Any], shards: int, seed: int, ends_scale: float = 1.0) -> Path:
    """Write config.json, generation_config.json and random weights in `shards` safetensors files.

    ends_scale: what the output weights of the end-of-text tokens are multiplied by.
    """
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"_from_model_config": True, **ends})
    weights = _weights(config, torch.Generator().manual_seed(seed))
    weights["lm_head.weight"][config["eos_token_id"]] *= ends_scale
    names = list(weights)
    files = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: weights[key] for key in names[shard::shards]}
        save_file(part, str(folder / name), metadata={"format": "pt"})
        files |= dict.fromkeys(part, name)
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})
    return folder


def _weights(config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Return random weights under the names that Llama and Mistral share."""
    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * HEAD_DIM
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    weights = {name: _random(shape, generator) for name, shape in shapes.items()}
    norms = ["model.norm"]
    for layer in range(config["num_hidden_layers"]):
        norms += [f"model.layers.{layer}.{name}" for name in ("input_layernorm", "post_attention_layernorm")]
    return weights | {f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms}


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (torch.randn(shape, generator=generator) * 0.1).to(torch.bfloat16)


def _ids(folder: Path) -> dict[str, int]:
    """Return text -> id of the special tokens of a folder's tokenizer."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def make_preset(tmp_path: Path, arms: list[dict[str, Any]], **tasks: dict[str, Any]) -> Preset:
    """Return a preset of two contexts, one task and one timed context, whose model and texts are in its data.

    arms: of each experiment. tasks: further experiments of tasks in this model, without model, corpus and arms.
    """
    data = tmp_path / "data"
    make_llama_checkpoint(data / "tiny")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(TEXT.split(), 800)) for _ in range(5)]
    splits = ["train", "validation", "test", "test", "test"]
    pd.DataFrame({"id": list("abcde"), "text": texts, "split": splits}).to_parquet(data / "texts.parquet")
    measured = {"model": "tiny", "corpus": "texts"}
    config = {
        "preset": "small",
        "scale": "a tiny model with random weights",
        "scale_kind": "toy",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "block": 16,
        "data": str(data),
        "corpora": {"texts": {"kind": "parquet", "path": "texts.parquet", "tokenizer": "tiny"}},
        "models": {"tiny": {"source": "tiny"}},
        "perplexity": {"contexts": measured | {"contexts": [128, 256], "documents": 3, "arms": arms}},
        "tasks": {
            "retrieval": measured
            | {"contexts": [128, 256], "examples": 4, "tasks": ["passkey"], "batch": 4, "arms": arms},
            **{name: measured | {"arms": arms} | task for name, task in tasks.items()},
        },
        "latency": {
            "rounds": 10,
            "cap_s": 0,
            "naive_limit_mib": 64,
            "shape": {"batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "block": 16},
            "sweeps": {"methods": measured | {"layer": 1, "contexts": [256], "arms": arms}},
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    return load_preset(str(tmp_path / "small.yaml"), tmp_path / "results")
