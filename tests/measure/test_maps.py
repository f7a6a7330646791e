"""Test gate maps: the heads that differ most are chosen, and rows hold the causal blocks of both maps."""

import torch

from measure.toy import TOKENS
from seerbench.measure.maps import gate_maps, most_different
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig


def test_the_farthest_map_comes_first_and_its_like_last():
    maps = {name: torch.tensor([float(value)]) for name, value in (("a", 0), ("b", 0.1), ("c", 10), ("d", 5))}
    assert most_different(maps, 1) == ["c"]
    assert most_different(maps, 2) == ["a", "c"]
    assert most_different(maps, 3) == ["a", "c", "d"]
    assert most_different(maps, 9) == ["a", "b", "c", "d"]


def test_each_causal_block_of_each_chosen_head_is_a_row(model):
    gates = [AttnGate(GateConfig(block=32), 4, 2, 32) for _ in range(3)]
    with torch.no_grad():
        rows = gate_maps(model, "doc", TOKENS[0, :128].numpy(), gates, count=2)
    assert len(rows) == 2 * 10  # the causal blocks of 4 x 4
    heads = {(row["layer"], row["head"]) for row in rows}
    assert len(heads) == 2
    for layer, head in heads:
        for name in ("target", "predicted"):
            here = [row for row in rows if (row["layer"], row["head"]) == (layer, head)]
            sums = [sum(row[name] for row in here if row["row"] == place) for place in range(4)]
            torch.testing.assert_close(torch.tensor(sums), torch.ones(4))
