"""Write and read captured workloads: q, k and v of a model's layers, and the block masks that methods plan there.

A folder of workloads is a data set in the format of FlashInfer-Bench (FlashInfer Trace): `definitions/` says what
is computed, `workloads/` names the tensors of each case, which are in safetensors files below `blob/`.
`manifest.json` holds what that format has no place for. docs/capture.md describes both.

steps/capture.py writes folders, `seerbench compare --masks` reads them.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.errors import MeasureError
from seerbench.measure.inputs import InputSource
from seerbench.reading import read_json, read_utf8, reading
from seerbench.writing import write_bytes

FORMAT = 1  # The version of the format of manifest.json.
OPERATION = "block_sparse_prefill"  # `op_type` in FlashInfer-Bench's words
CURE = "make the folder again with `seerbench capture`"
# What is computed, in plain torch: `reference` of a definition.
REFERENCE = '''\
import torch

BLOCK_Q, BLOCK_K = {block_q}, {block_k}


def run(q, k, v, kv_num_blocks, kv_indices):
    """Attend causally to the keys of the listed blocks; a query without such a key gives zeros."""
    o = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    positions = torch.arange(q.shape[2], device=q.device)
    for batch, head, row in torch.cartesian_prod(*map(torch.arange, kv_num_blocks.shape)).tolist():
        listed = kv_indices[batch, head, row, : kv_num_blocks[batch, head, row]]
        queries = positions[row * BLOCK_Q : (row + 1) * BLOCK_Q]
        keys = positions[torch.isin(positions // BLOCK_K, listed)]
        scores = q[batch, head, queries].float() @ k[batch, head // group, keys].float().T / q.shape[3] ** 0.5
        scores = scores.masked_fill(keys > queries[:, None], -torch.inf)
        weights = scores.softmax(-1).nan_to_num(0)
        o[batch, head, queries] = (weights @ v[batch, head // group, keys].float()).to(o.dtype)
    return o
'''


@dataclass(frozen=True)
class Workload:
    """One block mask, and the q, k and v on which a method planned it.

    Attributes:
        name: the workload's name in its folder: context, layer, method and requested sparsity.
        layer: the index of the layer.
        kv_heads: the indices of its key/value heads, in the layer; their query heads are all of the group.
        method: the method that planned, as timings name it.
        mask_kind: the column `mask` of the table `cells`.
        gate: the gate, plan file or configuration that decides the plan, if there is one.
        requested: the requested sparsity, over all heads of the layer; None for a method without one.
        realised: the share of the causal blocks that the mask skips, over these heads.
        source: the model.
        problem: shape, block size and dtype; its device is "cpu".
        files: the files of (q, k, v) and of the mask.
    """

    name: str
    layer: int
    kv_heads: tuple[int, ...]
    method: str
    mask_kind: str
    gate: str | None
    requested: float | None
    realised: float
    source: InputSource
    problem: AttentionProblem
    files: tuple[Path, Path] = field(compare=False)

    def tensors(self, device: str, dtype: str) -> tuple[Tensor, Tensor, Tensor, BlockMask]:
        """Return q [B, Hq, N, D], k and v [B, Hk, N, D], and the mask, on a device.

        dtype: of q, k and v, to which they are rounded. Raises MeasureError for files that are missing or damaged.
        """
        inputs, lists = self.files
        problem = self.problem
        with reading(inputs, MeasureError, CURE):
            found = load_file(inputs)
            q, k, v = (found[name].to(device, getattr(torch, dtype)) for name in ("q", "k", "v"))
        with reading(lists, MeasureError, CURE):
            found = load_file(lists)
            counts, indices = (found[name].to(device) for name in ("kv_num_blocks", "kv_indices"))
        mask = BlockMask(counts, indices, problem.context, problem.block_q, problem.block_k)
        of_tensors = AttentionProblem.of(q, k, problem.block_q, problem.block_k)
        if tuple(counts.shape[:2]) != q.shape[:2] or asdict(of_tensors) != asdict(problem) | {
            "device": of_tensors.device,
            "dtype": dtype,
        }:
            raise MeasureError(
                f"{inputs} and {lists} do not fit the definition of the workload {self.name}; {CURE}"
            )
        return q, k, v, mask


class Writer:
    """Write workloads into a new folder; `close` writes the manifest, without which nothing reads the folder.

    folder: the folder, which is empty or does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, dict[str, Any]] = {}
        self.left_out: list[dict[str, Any]] = []
        self.lines: dict[str, list[str]] = {}

    def inputs(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> str:
        """Write q [B, Hq, N, D], k and v [B, Hk, N, D] of a layer; return the path of the file in the folder."""
        return self._tensors(name, {"q": q, "k": k, "v": v})

    def mask(self, inputs: str, problem: AttentionProblem, mask: BlockMask, name: str, **facts: Any) -> None:
        """Write a mask as a workload, and its definition.

        Args:
            inputs: the path that `inputs` returned.
            problem: the shape of q, k and v; its block size is the mask's.
            mask: the mask, of the same batch and heads.
            name: the workload's name.
            **facts: the attributes `layer` to `source` of a Workload, apart from `realised`.
        """
        if any(name == fact["name"] for fact in self.facts.values()):
            raise MeasureError(f"two methods of the sweep have the same name, {name}; leave one out of the preset")
        lists = {"kv_num_blocks": mask.kv_num_blocks, "kv_indices": mask.kv_indices}
        path = self._tensors(name, lists)
        definition = definition_of(problem)
        write_bytes(self.folder / "definitions" / OPERATION / f"{definition['name']}.json", _json(definition))
        content = b"".join((self.folder / file).read_bytes() for file in (inputs, path))
        # The name is part of it, since two methods may plan the same mask.
        identity = str(uuid.uuid5(uuid.NAMESPACE_OID, name + hashlib.sha256(content).hexdigest()))
        places = dict.fromkeys(("q", "k", "v"), inputs) | dict.fromkeys(lists, path)
        workload = {
            "uuid": identity,
            "axes": {
                "batch": problem.batch,
                "tokens": problem.context,
                "query_blocks": mask.kv_num_blocks.shape[2],
                "width": mask.kv_indices.shape[3],
            },
            "inputs": {
                key: {"type": "safetensors", "path": file, "tensor_key": key} for key, file in places.items()
            },
        }
        line = {"definition": definition["name"], "workload": workload, "solution": None, "evaluation": None}
        self.lines.setdefault(definition["name"], []).append(json.dumps(line))
        self.facts[identity] = {"name": name, **facts, "realised": 1 - mask.density()}

    def leave_out(self, **facts: Any) -> None:
        """Record in the manifest that a mask is not there; `facts` say which, and the reason."""
        self.left_out.append(facts)

    def close(self, run: Mapping[str, Any]) -> None:
        """Write the lists of workloads, then the manifest; `run` is a row of the table `runs`."""
        for name, lines in self.lines.items():
            write_bytes(self.folder / "workloads" / OPERATION / f"{name}.jsonl", "\n".join([*lines, ""]).encode())
        manifest = {"format": FORMAT, "run": run, "workloads": self.facts, "left_out": self.left_out}
        write_bytes(self.folder / "manifest.json", _json(manifest))

    def _tensors(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        path = f"blob/workloads/{OPERATION}/{name}.safetensors"
        write_bytes(self.folder / path, to_safetensors({key: x.cpu().contiguous() for key, x in tensors.items()}))
        return path


def definition_of(problem: AttentionProblem) -> dict[str, Any]:
    """Return the definition of a problem in FlashInfer-Bench's schema: axes, tensors, a reference."""
    sizes = {name: getattr(problem, name) for name in ("q_heads", "kv_heads", "head_dim", "block_q", "block_k")}
    shape = "h{q_heads}_kv{kv_heads}_d{head_dim}_q{block_q}_k{block_k}".format(**sizes)
    axes = {name: {"type": "const", "value": size} for name, size in sizes.items()}
    axes |= {name: {"type": "var"} for name in ("batch", "tokens", "query_blocks", "width")}
    tensor, lists = ["batch", "q_heads", "tokens", "head_dim"], ["batch", "q_heads", "query_blocks"]
    of_keys = {"shape": ["batch", "kv_heads", "tokens", "head_dim"], "dtype": problem.dtype}
    return {
        "name": f"{OPERATION}_{shape}_{problem.dtype}",
        "op_type": OPERATION,
        "description": (
            "Causal attention of a prefill over lists of key blocks: each query block of each query head reads the "
            "first kv_num_blocks entries of its row of kv_indices, which ascend. Scores are divided by the square "
            "root of head_dim."
        ),
        "tags": ["stage:prefill"],
        "axes": axes,
        "constraints": [f"query_blocks == (tokens + {sizes['block_q'] - 1}) // {sizes['block_q']}"],
        "inputs": {
            "q": {"shape": tensor, "dtype": problem.dtype},
            "k": of_keys,
            "v": of_keys,
            "kv_num_blocks": {"shape": lists, "dtype": "int32"},
            "kv_indices": {"shape": [*lists, "width"], "dtype": "int32"},
        },
        "outputs": {"o": {"shape": tensor, "dtype": problem.dtype}},
        "reference": REFERENCE.format(**sizes),
    }


def is_capture(folder: Path) -> bool:
    """Return whether a folder has a manifest, so that a new capture may replace it."""
    return (folder / "manifest.json").is_file()


def read_workloads(folder: Path) -> list[Workload]:
    """Return the workloads of a folder, in the order in which they were captured; no tensor is read.

    Raises MeasureError for a folder without a manifest, or with files that are missing or damaged.
    """
    if not is_capture(folder):
        raise MeasureError(
            f"{folder} has no captured workloads (no manifest.json); `seerbench capture PRESET --out {folder}` "
            "makes them"
        )
    manifest = read_json(folder / "manifest.json", MeasureError, CURE)
    if manifest.get("format") != FORMAT:
        raise MeasureError(
            f"{folder} has the format {manifest.get('format')}, and this version reads {FORMAT}; {CURE}"
        )
    lines = {}
    for file in sorted((folder / "workloads" / OPERATION).glob("*.jsonl")):
        text = read_utf8(file, MeasureError, CURE)
        with reading(file, MeasureError, CURE):
            for line in map(json.loads, text.splitlines()):
                lines[line["workload"]["uuid"]] = line
    with reading(folder / "manifest.json", MeasureError, CURE):
        return [_workload(folder, lines[identity], facts) for identity, facts in manifest["workloads"].items()]


def chosen(workloads: Iterable[Workload], contexts: Iterable[int], sparsities: Iterable[float]) -> list[Workload]:
    """Return the workloads at some contexts and requested sparsities; no context or sparsity stands for all.

    Raises MeasureError if none is left.
    """
    all_of_them, contexts, sparsities = list(workloads), set(contexts), set(sparsities)
    found = [
        each
        for each in all_of_them
        if (not contexts or each.problem.context in contexts) and (not sparsities or each.requested in sparsities)
    ]
    if not found:
        there = sorted({(each.problem.context, each.requested or 0.0) for each in all_of_them})
        have = ", ".join(f"{sparsity:g} at {context}" for context, sparsity in there)
        raise MeasureError(f"no mask is captured at these contexts and sparsities; there are {have or 'none'}")
    return found


def _workload(folder: Path, line: Mapping[str, Any], facts: Mapping[str, Any]) -> Workload:
    """Return a workload from its line in `workloads/` and its facts in the manifest."""
    definition = read_json(folder / "definitions" / OPERATION / f"{line['definition']}.json", MeasureError, CURE)
    axes, inputs = line["workload"]["axes"], line["workload"]["inputs"]
    sizes = {name: axis["value"] for name, axis in definition["axes"].items() if axis["type"] == "const"}
    problem = AttentionProblem(
        "cpu", definition["inputs"]["q"]["dtype"], axes["batch"], context=axes["tokens"], **sizes
    )
    files = folder / inputs["q"]["path"], folder / inputs["kv_indices"]["path"]
    given = {"kv_heads": tuple(facts["kv_heads"]), "source": InputSource(**facts["source"])}
    return Workload(**{**facts, **given}, problem=problem, files=files)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, default=asdict) + "\n").encode()
