"""Define what a method is: `Method`, the base class of all methods, and `Plan`, what a method decides.

A method computes causal prefill attention in two steps: `plan` decides which keys each query reads, `attend`
computes attention over them. A timing measures both, and the two together. A dense method plans nothing (None).

    Method       every hook that the suite calls, with its default
    BlockSparse  the base of methods whose plan is a BlockMask: `attend` is our block-sparse kernel
    Plan         what a plan can say of itself; BlockMask and TileMask are plans

Letters in shapes: B batch, Hq query heads, Hk key/value heads, N tokens, D head dimension, nq and nk blocks of
queries and keys.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.reference import reference_attention
from seerbench.methods.mask_kernels import BlockSparseKernel


class Plan(Protocol):
    """Result of `Method.plan` for one layer and input. Only `density` is required.

    A plan class may inherit from Plan for the defaults: they return None, which means that the plan has no answer.
    """

    def density(self) -> float:
        """Return the share of the causal blocks that is computed, averaged over batch and heads."""
        ...

    def head_density(self) -> Tensor | None:
        """Return the density of each head, float64 [B, Hq]."""
        return None

    def flops(self, head_dim: int) -> float | None:
        """Return the floating-point operations of the two matrix products over what is computed, whole batch.

        Without an answer they are the density times those of dense attention.
        """
        return None

    def to_dense(self) -> Tensor | None:
        """Return the blocks of which any key is read, bool [B, Hq, nq, nk]."""
        return None

    def to_token_mask(self) -> Tensor | None:
        """Return the pairs of query and key that are computed, causality included, bool [B, Hq, N, N].

        `attend` is checked against attention over these pairs before anything is timed; without an answer it is
        timed unchecked.
        """
        return None


# The class of a method's plans; a dense method has the plan None.
PlanT = TypeVar("PlanT", bound=Plan | None)


class Method(Generic[PlanT]):
    """Base class of all methods. `plan` and `attend` must be defined, everything else has a default.

    A subclass becomes known under a name by `@register` (registry.py).

    Attributes:
        name, cites, needs, fidelity: the card; `register` sets them.
        sparsity: the requested share of causal blocks to skip; None if the method takes no such request.
        block: keys per block, and queries per block unless `block_q` differs; None without blocks of its own.
        block_q: queries per block where they are not `block`.
        configuration: name of the plan file or configuration that decides the plan; rows record it.
        model_layers: number of layers of the model that the gates, plan or patterns are for; None for any model.
        variant: suffix of the method's name in timings, for a configuration other than the usual one.
        settings: names of the constructor's other arguments that a preset may set.
        corrects_skipped: whether `attend` also adds something for skipped keys; `exact` then says what.
        takes_padding: whether `attend` honours a padding mask. Without it, a model with padding plans each sequence
            by itself and runs masked dense attention over the plans' pairs, which skips nothing.
        takes_query_offset: whether the queries may be the last of N keys instead of all of them.
        decodes: whether one query per sequence may be attended with a cache of keys and values.
        takes_forced_blocks: whether `plan` can be told blocks that must be kept.
        last_rows_dense: number of block rows at the end that read every key. `LastRowsDense` (wrappers.py) sets it;
            a method that keeps dense rows by itself sets its own number.
        takes_last_rows: whether `plan` keeps these rows dense, within the budget of a requested sparsity. For other
            methods the wrapper adds them to the plan.
        threshold: smallest score of a block that is kept, for a method that takes it in place of a sparsity.
        spread: how a requested sparsity is spread over a layer: "row" gives every row of every head as many blocks,
            "layer" takes one threshold for all of them; None for a method that does not have the choice.
        forced: whether block 0 and the diagonal are kept for certain, inside the budget; None as for `spread`.
    """

    name: str
    cites: str
    needs: tuple[str, ...]
    fidelity: str

    sparsity: float | None = None
    block: int | None = None
    block_q: int | None = None
    configuration: str | None = None
    model_layers: int | None = None
    variant: str | None = None
    settings: tuple[str, ...] = ()

    corrects_skipped: bool = False
    takes_padding: bool = False
    takes_query_offset: bool = False
    decodes: bool = False
    takes_forced_blocks: bool = False
    last_rows_dense: int = 0
    takes_last_rows: bool = False
    threshold: float | None = None
    spread: str | None = None
    forced: bool | None = None

    def implementation(self, problem: AttentionProblem) -> str:
        """Return the name under which rows record the kernel that `attend` runs for `problem`."""
        return self.name

    def refuses(self, problem: AttentionProblem) -> str | None:
        """Return why this method cannot run `problem`, or None if it can.

        A method never falls back to another kernel: the reason becomes a row.
        """
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> PlanT:
        """Decide which keys each query reads.

        Args:
            q: queries [B, Hq, N, D] after RoPE.
            k: keys [B, Hk, N, D] after RoPE.
            layer: the layer's index and, inside a model, q and k before RoPE.

        Returns:
            A BlockMask or another Plan; None if nothing is skipped.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define plan")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: PlanT) -> Tensor:
        """Compute attention over what `plan` returned.

        Args:
            q: queries [B, Hq, N, D] after RoPE.
            k: keys [B, Hk, N, D] after RoPE.
            v: values [B, Hk, N, D].
            plan: the result of `plan` for these q and k.

        Returns:
            The output [B, Hq, N, D] in q's dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define attend")

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> Method[PlanT]:
        """Return this method at the threshold that meets its requested sparsity on q and k.

        A method that meets a requested sparsity by searching for a threshold returns a copy that has the
        threshold and no request; the search then runs before the clock starts. Others return themselves.

        Args:
            q: queries [B, Hq, N, D] after RoPE.
            k: keys [B, Hk, N, D] after RoPE.
            layer: as in `plan`.
        """
        return self

    def score(self, q: Tensor, k: Tensor, layer: LayerContext) -> Tensor | None:
        """Return the scores from which `select` makes the plan, or None if the plan has no such step.

        A method with both is timed with "score" and "select" as further stages (Figure 5). The arguments are
        those of `plan`.
        """
        return None

    def select(self, scores: Tensor, tokens: int) -> PlanT:
        """Return the plan that follows from the result of `score` for `tokens` tokens."""
        raise NotImplementedError(f"{type(self).__name__} does not define select")

    def exact(self, q: Tensor, k: Tensor, v: Tensor, plan: PlanT, dtype: torch.dtype) -> Tensor | None:
        """Return by definition what `attend` should return, [B, Hq, N, D] computed in `dtype`.

        The default is attention over the plan's pairs, or None where the plan cannot say them. A method that
        sets `corrects_skipped` must define its own. The other arguments are those of `attend`.
        """
        if plan is None:
            return reference_attention(q, k, v, None, dtype)[0]
        pairs = plan.to_token_mask()
        return None if pairs is None else reference_attention(q, k, v, pairs, dtype)[0]


class BlockSparse(BlockSparseKernel, Method[BlockMask]):
    """Base class of methods whose plan is a BlockMask: our block-sparse kernel attends.

    A subclass defines `plan`, and sets `block`, the tokens per block of its masks, when it is made.
    """

    block: int


def selection_columns(method: Method[Any]) -> dict[str, Any]:
    """Return the columns of rows that say how a method selects: last_rows_dense, threshold, spread, forced."""
    names = ("last_rows_dense", "threshold", "spread", "forced")
    return {name: getattr(method, name) for name in names}


def realised_sparsity(plan: Plan | None) -> float:
    """Return the share of the causal blocks that `plan` skips; 0 for None, which is dense."""
    return 0.0 if plan is None else 1.0 - plan.density()
