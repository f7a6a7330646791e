"""Test that the authors' gate files become ours: names are mapped, recipes recognised, and misfits refused."""

import json

import pytest
import standins
import torch
from safetensors import safe_open

from seerbench.errors import ModelError
from seerbench.kernels import flex_attention
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.gate import gate_scores
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.protocol import Method
from seerbench.methods.registry import create
from seerbench.methods.seer_decode import SeerDecode
from seerbench.models.architectures import attention_layers
from seerbench.models.hugging_face import attention_method, generate
from seerbench.models.released_gates import read_released
from seerbench.models.sources import check_gates, load

TOKENS = torch.randint(256, (1, 200), generator=torch.Generator().manual_seed(0))


def saved(folder):
    """Return every gate weight in a folder by its name in the file, for both formats."""
    if (folder / "attn_gate_weights.pth").exists():
        return torch.load(folder / "attn_gate_weights.pth", weights_only=True)
    with safe_open(str(folder / "model-00003-of-00003.safetensors"), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("recipe", "projection", "expected"),
    [
        ("v1", "double", GateConfig("avg", "maxmin", "double", block=32, recipe="v1")),
        ("v1", "single", GateConfig("avg", "maxmin", "single", block=32, recipe="v1")),
        ("v2", "single", GateConfig("avg", "maxminavg", "single", block=32, recipe="v2")),
        ("v2", "double", GateConfig("avg", "maxminavg", "double", block=32, recipe="v2")),
    ],
)
@torch.no_grad()
def test_a_released_gate_is_read_and_runs(tmp_path, monkeypatch, recipe, projection, expected):
    # Masked SDPA replaces FlexAttention, which would compile for 20 s.
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)
    folder = standins.make_gate_file(tmp_path / "gates", recipe, projection, block=32)
    gates = read_released(folder)
    assert [gate.config for gate in gates] == [expected, expected]
    names = saved(folder)
    for layer, gate in enumerate(gates):
        prefix = f"model.layers.{layer}.self_attn.attn_gate.mask_linear_"
        torch.testing.assert_close(gate.wk, names[f"{prefix}k.weight"].float(), rtol=0, atol=0)
        assert (gate.wq is None) == (f"{prefix}q.weight" not in names)
    model = load(standins.make_llama_checkpoint(tmp_path / "model"))
    check_gates(gates, tmp_path / "model")
    with attention_method(model, create("seer", gates=gates, sparsity=0.5)) as record:
        model(TOKENS)
    assert 0.3 < record.mean_sparsity() < 0.7


def test_gates_of_the_first_code_have_the_hidden_size_of_a_head(tmp_path):
    folder = standins.make_gate_file(tmp_path / "gates", "v1", block=32)
    without(folder, "gate_hidden_size")
    assert [gate.wk.shape[-1] for gate in read_released(folder)] == [standins.HEAD_DIM] * 2


def test_the_config_may_give_another_size_of_a_head_than_hidden_over_heads(tmp_path):
    folder = standins.make_gate_file(tmp_path / "gates", "v2", block=32)
    change(folder, head_dim=standins.HEAD_DIM, hidden_size=3 * standins.SIZES["hidden_size"])
    assert [gate.head_dim for gate in read_released(folder)] == [standins.HEAD_DIM] * 2
    change(folder, head_dim=None)
    with pytest.raises(ModelError, match=f"heads of {3 * standins.HEAD_DIM}"):
        read_released(folder)


@torch.no_grad()
def test_its_scores_are_those_of_the_authors_formula(tmp_path):
    """Compare with their AttnGate as written out here: pool, concatenate, project, rotate by block, multiply."""
    folder, block = standins.make_gate_file(tmp_path / "gates", "v2", block=32), 32
    gates, names = read_released(folder), saved(folder)
    model = load(standins.make_llama_checkpoint(tmp_path / "model"))
    seen = {}

    class Look(Method):
        name, sparsity = "look", None

        def refuses(self, case):
            return None

        def plan(self, q, k, layer):
            seen[layer.index] = (gate_scores(gates[layer.index], q, k, layer), layer)

        def attend(self, q, k, v, plan):
            return q

    with attention_method(model, Look()):
        model(TOKENS[:, :192])
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(0, 192, block)[None])
    for index, (scores, layer) in seen.items():
        q = layer.q_unrotated.transpose(1, 2).unflatten(1, (-1, block))  # [B, n, block, H, D], their order
        k = layer.k_unrotated.transpose(1, 2).unflatten(1, (-1, block))
        k = torch.cat([k.amax(2), k.amin(2), k.mean(2)], -1).repeat_interleave(2, dim=2)
        weight = names[f"model.layers.{index}.self_attn.attn_gate.mask_linear_k.weight"].float()
        k = torch.einsum("bshi,hio->bsho", k, weight)
        q, k = (x * cos[:, :, None] + turned(x) * sin[:, :, None] for x in (q.mean(2), k))
        expected = torch.einsum("bihd,bjhd->bhij", q, k) / standins.HEAD_DIM**0.5
        visible = torch.ones(6, 6, dtype=torch.bool).tril()
        torch.testing.assert_close(scores[..., visible], expected[..., visible])
    assert len(seen) == len(attention_layers(model))


def turned(x):
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def change(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


POINTER = b"version https://git-lfs.github.com/spec/v1\n"


def without(folder, key):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config[key]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def not_a_number(folder):
    state = torch.load(folder / standins.STATE)
    next(iter(state.values())).view(-1)[5] = torch.nan
    torch.save(state, folder / standins.STATE)


def weights_of(folder):
    return next(folder.glob("*.safetensors"))


def without_gates(folder):
    torch.save({"lm_head.weight": torch.zeros(1)}, folder / "attn_gate_weights.pth")


@pytest.mark.parametrize(
    ("spoil", "token"),
    [
        (lambda folder: change(folder, seerattn_gate_type="Qavg_Kmode"), "Qavg_Kmode"),
        (lambda folder: change(folder, seerattn_gate_hidden_size=64), "hidden size of 64"),
        (lambda folder: change(folder, num_hidden_layers=3), "gates for 2 of its 3 layers"),
        (lambda folder: change(folder, num_attention_heads=8), "heads of 8"),
        (lambda folder: change(folder, seerattn_gate_type="Qavg_Kmax"), r"is \(4, 48, 16\), not \(4, 16, 16\)"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / standins.STATE).unlink(), "model.safetensors"),
        (without_gates, "mask_linear"),
        (lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"), "JSON of another kind"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json is not UTF-8"),
        (lambda folder: change(folder, num_hidden_layers="two"), "config.json is not readable"),
        (lambda folder: change(folder, seerattn_gate_type=7), "has no gate type"),
        (lambda folder: without(folder, "num_key_value_heads"), "config.json has no entry 'num_key_value_heads'"),
        (lambda folder: without(folder, "seerattn_gate_block_size"), "has no entry 'seerattn_gate_block_size'"),
        (lambda folder: cut(folder / standins.STATE, 0), f"{standins.STATE} is empty"),
        (lambda folder: cut(folder / standins.STATE, 0.5), f"{standins.STATE} is not readable"),
        (lambda folder: (folder / standins.STATE).write_bytes(POINTER), "is a Git LFS pointer"),
        (lambda folder: torch.save([1], folder / standins.STATE), f"{standins.STATE} is not readable"),
        (not_a_number, "not finite"),
        (lambda folder: (folder / standins.STATE).write_bytes(b"gASVCwAAAAAAAABYBAAAAGV2aWw="), "is not readable"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, spoil, token):
    folder = standins.make_gate_file(tmp_path, "v2")
    spoil(folder)
    with pytest.raises(ModelError, match=token):
        read_released(folder)


@pytest.mark.parametrize(
    ("spoil", "token"),
    [
        (lambda folder: cut(weights_of(folder), 0.5), "safetensors is not readable"),
        (lambda folder: weights_of(folder).write_bytes(POINTER), "is a Git LFS pointer"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}", encoding="utf-8"),
            "no weight_map",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"x.attn_gate.y": "z"}}', encoding="utf-8"
            ),
            "z does not exist",
        ),
    ],
)
def test_gates_among_damaged_weights_are_refused(tmp_path, spoil, token):
    folder = standins.make_gate_file(tmp_path, "v1")
    spoil(folder)
    with pytest.raises(ModelError, match=token):
        read_released(folder)


def dropped(folder, word):
    state = torch.load(folder / standins.STATE)
    torch.save({name: weight for name, weight in state.items() if word not in name}, folder / standins.STATE)


def reshaped(folder):
    state = torch.load(folder / standins.STATE)
    torch.save({name: weight[..., :8] for name, weight in state.items()}, folder / standins.STATE)


@pytest.mark.parametrize(
    ("spoil", "token"),
    [
        (lambda folder: change(folder, seerattn_q_head_pooling_type="Qavg"), "Qavg_Kmaxminavg"),
        (lambda folder: change(folder, seerattn_k_seq_pooling_type="Kmode"), "Qproj_Kmode"),
        (lambda folder: change(folder, seerattn_k_seq_pooling_type="Kmax"), r"'wk': \[2, 48, 16\]"),
        (lambda folder: change(folder, seerattn_use_rope=False), "without RoPE"),
        (lambda folder: change(folder, seerattn_use_qk_norm=False), "'q_norm'"),
        (lambda folder: without(folder, "seerattn_gate_block_size"), "no entry 'seerattn_gate_block_size'"),
        (lambda folder: dropped(folder, "layers.0."), r"the layers \[1\]"),
        (lambda folder: dropped(folder, "linear_q"), "queries is missing"),
        (lambda folder: dropped(folder, "knorm"), "as its config.json needs"),
        (reshaped, r"\[2, 2, 16, 8\]"),
        (not_a_number, "not finite"),
    ],
)
def test_gates_for_decoding_that_do_not_fit_are_refused(tmp_path, spoil, token):
    folder = standins.make_gate_file(tmp_path, "r")
    spoil(folder)
    with pytest.raises(ModelError, match=token):
        read_released(folder)


def test_released_gates_for_decoding_are_read_and_run(tmp_path):
    folder = standins.make_gate_file(tmp_path / "gates", "r", block=32)
    gates, names = read_released(folder), saved(folder)
    check_gates(gates, standins.make_llama_checkpoint(tmp_path / "model"))
    assert len(gates) == 2
    for layer, gate in enumerate(gates):
        assert gate.config == DecodeGateConfig(k_pool="maxminavg", norm=True, block=32)
        assert (gate.q_heads, gate.kv_heads, gate.head_dim) == (4, 2, standins.HEAD_DIM)
        prefix = f"model.layers.{layer}.self_attn.attn_gate.attngate_"
        theirs = {"wq": "linear_q", "wk": "linear_k", "q_norm": "qnorm", "k_norm": "knorm"}
        for name, parameter in gate.named_parameters():
            assert torch.equal(parameter, names[f"{prefix}{theirs[name]}.weight"].float())
    model = load(tmp_path / "model")
    _, record = generate(model, TOKENS, create("dense"), SeerDecode(gates, budget=32), max_new_tokens=3)
    assert record.mean_decode_sparsity() > 0.3


def test_gates_of_another_model_are_refused(tmp_path):
    gates = read_released(standins.make_gate_file(tmp_path / "gates", "v2"))
    folder = standins.make_llama_checkpoint(tmp_path / "model")
    change(folder, num_hidden_layers=3)
    with pytest.raises(ModelError, match="another model"):
        check_gates(gates, folder)


def test_a_hub_id_offline_gives_the_command(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf download SeerAttention/None-such --revision main"):
        read_released("SeerAttention/None-such", "main")
