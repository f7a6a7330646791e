"""Time a whole model to its first token, with one method after the other in its attention layers (Table 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.measure.cells import CellTimer, Entry, Prepared, Rows, joined
from seerbench.measure.gpu_lock import exclusive
from seerbench.measure.inputs import InputSource, problem_of_model
from seerbench.measure.memory import peak_mib
from seerbench.measure.sampler import Parts, Timing
from seerbench.measure.sweeps.entries import by_sparsity, method_entry
from seerbench.methods.protocol import Method
from seerbench.models.hugging_face import attention_method, chunked_mlps


@torch.no_grad()
def ttft_sweep(
    model: Any,
    inputs: InputSource,
    tokens: Tensor,
    methods: Iterable[tuple[str, Method]],
    timing: Timing,
    run_id: str,
    block: int = 64,
    layers_alike: bool = False,
) -> Rows:
    """Time the prefill of a model, cache included, up to the logits of the last position.

    The stages are ttft and, of the same forward pass, plan and attend, each summed over the layers. What is left of
    ttft is the time of linear layers, norms, rotations and the cache. Planning happens inside the layers and
    counts; putting a method into the model and taking it out does not. MLPs work in chunks, for every method. The
    column flops stays empty, since most operations of a forward pass are not attention's.

    One untimed forward pass per method compiles, counts the skipped blocks and gives the peak memory.

    Args:
        model: a Hugging Face model.
        inputs: what the model and its tokens are.
        tokens: token ids [B, N].
        methods: (name in the rows, method) pairs. They share one cell if no two have the same name; otherwise there
            is one cell per requested sparsity (`by_sparsity`).
        timing: the number of rounds; the untimed forward pass replaces its warm-up.
        run_id: the execution that the rows belong to.
        block: the block size of methods without one of their own.
        layers_alike: whether all layers are statistically identical, as with random weights. A method that searches
            for a threshold then does so once, in the first layer; otherwise it searches in every layer.
    """
    methods = list(methods)
    problem = problem_of_model(model, tokens.shape[1], block, tokens.shape[0])

    def forward() -> Tensor:
        return model(tokens, use_cache=True, logits_to_keep=1).logits

    def entries(group: Mapping[str, Method]) -> Iterable[Entry]:
        for name, method in group.items():

            def prepare(method: Method = method) -> Prepared:
                if method.sparsity is not None:
                    method = CachedThreshold(method, layers_alike)
                if problem.device == "cpu":  # Compile first, or the record of allocations includes compilation.
                    with attention_method(model, method, count=False):
                        forward()
                with attention_method(model, method) as record:
                    peak = peak_mib(forward, problem.device)
                parts = Parts(problem.device)
                return Prepared(
                    {"ttft": forward},
                    "ttft",
                    record.mean_sparsity(),
                    inside=lambda: attention_method(model, method, count=False, part=parts.part),
                    parts=parts.take,
                    peak_mib=peak,
                    dense=not record.planned,
                )

            yield method_entry(name, method, problem, prepare)

    timer = CellTimer("ttft", problem, inputs, replace(timing, warmup=0), run_id)
    names = [name for name, _ in methods]
    cells = {None: dict(methods)} if len({*names}) == len(names) else by_sparsity(methods)
    with exclusive(problem.device), chunked_mlps(model):
        return joined(timer.measure(sparsity, entries(group)) for sparsity, group in cells.items())


class CachedThreshold(Method[Any]):
    """A method for a requested sparsity whose threshold search, if it needs one, is done once per layer.

    The search runs when a layer is planned first, outside the timed calls; later plans reuse its threshold. With
    `layers_alike`, the threshold of the first layer serves all layers.
    """

    def __init__(self, method: Method, layers_alike: bool) -> None:
        self.method, self.layers_alike = method, layers_alike
        self.at_threshold: dict[int, Method[Any]] = {}  # by layer index
        self.name, self.sparsity, self.configuration = method.name, method.sparsity, method.configuration
        self.block, self.block_q, self.corrects_skipped = method.block, method.block_q, method.corrects_skipped

    def implementation(self, problem: AttentionProblem) -> str:
        return self.method.implementation(problem)

    def refuses(self, problem: AttentionProblem) -> str | None:
        return self.method.refuses(problem)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> Any:
        """Return the plan at the threshold of this layer: q [B, Hq, N, D], k [B, Hk, N, D], both rotated."""
        place = 0 if self.layers_alike else layer.index
        if place not in self.at_threshold:
            self.at_threshold[place] = self.method.with_threshold_for(q, k, layer)
        return self.at_threshold[place].plan(q, k, layer)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        return self.method.attend(q, k, v, plan)
