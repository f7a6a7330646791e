"""Captured workloads are read as they were written, and their definition computes what our reference computes."""

import json
from dataclasses import replace

import pytest
import torch

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.errors import MeasureError
from seerbench.measure import workloads
from seerbench.measure.inputs import captured_from, random_inputs
from seerbench.measure.workloads import Writer, read_workloads

CASE = AttentionProblem("cpu", "float32", 1, 4, 2, 16, 150, 32, 16)  # a tail block, and blocks that are not square
FACTS = {
    "layer": 3,
    "kv_heads": [0, 2],
    "method": "mine",
    "mask_kind": "gate",
    "gate": "long:v1",
    "requested": 0.5,
    "source": captured_from("tiny", 150, 128),
}


def random_mask(problem):
    shape = block_count(problem.context, problem.block_q), block_count(problem.context, problem.block_k)
    kept = torch.rand(1, 4, *shape) < 0.5
    kept[0, 0, 0] = False  # a row without a block
    return BlockMask.from_dense(
        kept & causal_blocks(problem.context, 32, 16), problem.context, problem.block_q, problem.block_k
    )


@pytest.fixture
def written(tmp_path):
    """Return a folder of two workloads with their inputs and masks."""
    q, k, v = random_inputs(CASE, 0)
    writer, masks = Writer(tmp_path / "captured"), {name: random_mask(CASE) for name in ("one", "two")}
    place = writer.inputs("150-layer3", q, k, v)
    for name, mask in masks.items():
        writer.mask(place, CASE, mask, name, **FACTS)
    writer.leave_out(method="other", reason="its plan is no BlockMask")
    writer.close({"run_id": "x"})
    return tmp_path / "captured", (q, k, v), masks


def test_workloads_are_read_as_they_were_written(written):
    folder, inputs, masks = written
    found = read_workloads(folder)
    assert [each.name for each in found] == ["one", "two"]
    for each in found:
        assert (each.problem, each.kv_heads, each.source) == (CASE, (0, 2), captured_from("tiny", 150, 128))
        assert (each.layer, each.method, each.gate, each.requested) == (3, "mine", "long:v1", 0.5)
        *tensors, mask = each.tensors("cpu", "float32")
        assert all(map(torch.equal, tensors, inputs))
        assert torch.equal(mask.to_dense(), masks[each.name].to_dense())
        assert each.realised == pytest.approx(1 - mask.density())
        assert each.tensors("cpu", "bfloat16")[0].dtype == torch.bfloat16
    assert json.loads((folder / "manifest.json").read_text())["left_out"][0]["method"] == "other"


def test_the_definition_says_what_is_computed(written):
    folder, inputs, masks = written
    definition = json.loads(next((folder / "definitions").rglob("*.json")).read_text())
    (lines,) = [file.read_text().splitlines() for file in (folder / "workloads").rglob("*.jsonl")]
    sizes = {name: axis.get("value") for name, axis in definition["axes"].items()}
    for line in map(json.loads, lines):
        assert line["definition"] == definition["name"]
        assert (line["solution"], line["evaluation"]) == (None, None)
        assert set(line["workload"]["inputs"]) == set(definition["inputs"])
        for name, place in line["workload"]["inputs"].items():
            tensor = workloads.load_file(folder / place["path"])[place["tensor_key"]]
            shape = [{**sizes, **line["workload"]["axes"]}[axis] for axis in definition["inputs"][name]["shape"]]
            assert list(tensor.shape) == shape
            assert str(tensor.dtype) == f"torch.{definition['inputs'][name]['dtype']}"
        assert eval(definition["constraints"][0], {}, line["workload"]["axes"])
    scope = {}
    exec(definition["reference"], scope)
    mask = masks["one"]
    output = scope["run"](*inputs, mask.kv_num_blocks, mask.kv_indices)
    torch.testing.assert_close(output.double(), reference_attention(*inputs, mask)[0], atol=1e-5, rtol=1e-4)
    assert not output[0, 0, :32].any()  # the row without a block


def test_some_of_them_are_chosen(written):
    found = read_workloads(written[0])
    assert workloads.chosen(found, [], []) == found == workloads.chosen(found, [150], [0.5])
    with pytest.raises(MeasureError, match=r"there are 0\.5 at 150"):
        workloads.chosen(found, [150], [0.9])


def test_two_masks_of_one_name_are_refused(tmp_path):
    writer = Writer(tmp_path)
    place = writer.inputs("inputs", *random_inputs(CASE, 0))
    writer.mask(place, CASE, random_mask(CASE), "one", **FACTS)
    with pytest.raises(MeasureError, match="the same name, one"):
        writer.mask(place, CASE, random_mask(CASE), "one", **FACTS)


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("manifest.json", None, "seerbench capture PRESET --out"),
        ("manifest.json", "{}", "has the format None"),
        ("manifest.json", "[", "not JSON"),
        ("workloads/block_sparse_prefill/*.jsonl", "{}\n", "has no entry 'workload'"),
        ("workloads/block_sparse_prefill/*.jsonl", None, "manifest.json has no entry"),
        ("definitions/block_sparse_prefill/*.json", None, "does not exist"),
        ("blob/workloads/block_sparse_prefill/150-layer3.safetensors", None, "does not exist"),
        ("blob/workloads/block_sparse_prefill/one.safetensors", "no tensors", "make the folder again"),
    ],
)
def test_a_damaged_folder_is_one_line(written, file, content, text):
    (path,) = written[0].glob(file)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(MeasureError, match=text):
        read_workloads(written[0])[0].tensors("cpu", "float32")


def test_tensors_that_do_not_fit_the_definition_are_refused(written):
    first = read_workloads(written[0])[0]
    with pytest.raises(MeasureError, match="do not fit the definition of the workload one"):
        replace(first, problem=replace(CASE, kv_heads=4)).tensors("cpu", "float32")
