"""Accuracy: perplexity, retrieval tasks, block recall and gate maps of a model with a method inside.

Between models and rows: each function takes arms (a method with its labels) and returns rows.
Batch 1 for perplexity, prefill only, like the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from seerbench import longbench, tasks
from seerbench.attention import Layer, Method, causal_blocks
from seerbench.gate import AttnGate, gate_scores, gate_target, select_top_k
from seerbench.kernels.pooled_attention import pooled_attention
from seerbench.models import ModelError, Refused, using, visit

TASKS: dict[str, Callable[..., list[tasks.Example]]] = {
    "passkey": tasks.passkey,
    "kv": tasks.kv,
    "cloze": tasks.cloze,
}


@dataclass(frozen=True)
class Arm:
    """One line of a table: a method, and how its rows are labelled."""

    method: Method
    gate: str | None = None  # "<gates in the config>:<set>"
    recipe: str = "none"  # none | post | yarn | joint

    def labels(self) -> dict[str, Any]:
        return {"method": self.method.name, "gate": self.gate, "sparsity_requested": self.method.sparsity}


def window_nll(model: Any, window: Tensor, chunk: int = 16_384, scored: int | None = None) -> float:
    """Mean negative log-likelihood, in nats, of the tokens after the first of a window [N].

    scored: only the last so many tokens count. Logits exist for `chunk` positions at a time, in fp32.
    """
    hidden = model.model(window[None, :-1], use_cache=False).last_hidden_state[0]
    wanted = window[1:]
    if scored is not None:
        hidden, wanted = hidden[-scored:], wanted[-scored:]
    total = 0.0
    for rows, labels in zip(hidden.split(chunk), wanted.split(chunk), strict=True):
        total += F.cross_entropy(model.lm_head(rows).float(), labels, reduction="sum").item()
    return total / len(wanted)


@torch.no_grad()
def perplexity(
    model: Any,
    windows: Mapping[str, np.ndarray],
    arms: Iterable[Arm],
    progress: tqdm | None = None,
    scored: int | None = None,
) -> list[dict[str, Any]]:
    """NLL of each window (one a document, `corpus.evaluation_windows`) under each arm.

    Perplexity is exp of the mean over documents of these means. A method that refuses gives one row
    a document with its reason. scored: as in `window_nll`.
    """
    rows = []
    device = next(model.parameters()).device
    for arm in arms:
        for document, window in windows.items():
            tokens = torch.from_numpy(window).long().to(device)
            row = {
                **arm.labels(),
                "recipe": arm.recipe,
                "document": document,
                "context": len(window),
                "tokens": scored or len(window) - 1,
                "sparsity_realised": None,
                "nll": None,
                "reason": None,
            }
            try:
                with using(model, arm.method) as record:
                    nll = window_nll(model, tokens, scored=scored)
                row |= {"nll": nll, "sparsity_realised": record.mean_sparsity(), "status": "measured"}
            except Refused as refusal:
                row |= {"status": "refused", "reason": str(refusal)}
            rows.append(row)
            if progress:
                progress.update()
    return rows


@torch.no_grad()
def retrieval(
    model: Any,
    examples: list[tasks.Example],
    arms: Iterable[Arm],
    batch: int,
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Each example under each arm, scored teacher-forced: correct when every answer token is the argmax.

    All examples have one length. Realised sparsity is the mean over the batch that an example ran in.
    """
    rows = []
    device = next(model.parameters()).device
    for arm in arms:
        for start in range(0, len(examples), batch):
            part = examples[start : start + batch]
            tokens = torch.from_numpy(np.stack([example.tokens for example in part])).long().to(device)
            with using(model, arm.method) as record:
                hidden = model.model(tokens, use_cache=False).last_hidden_state
            for number, example in enumerate(part):
                first, last = example.answer_start, example.answer_start + example.answer_length
                guess = model.lm_head(hidden[number, first - 1 : last - 1]).argmax(-1)
                rows.append(
                    {
                        **arm.labels(),
                        "task": example.task,
                        "context": example.context,
                        "example": start + number,
                        "distance": example.distance,
                        "sparsity_realised": record.mean_sparsity(),
                        "correct": bool((guess == tokens[number, first:last]).all()),
                    }
                )
            if progress:
                progress.update(len(part))
    return rows


@torch.no_grad()
def answers(
    model: Any,
    tokenizer: Any,
    questions: Iterable[longbench.Question],
    arms: Iterable[Arm],
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Each LongBench question answered under each arm, greedily, batch 1, and scored (0 to 1).

    The prompt goes through the method, the answer's own tokens are dense, as in the paper. A method that refuses
    a prompt gives a row without a score, with its reason.
    """
    device = next(model.parameters()).device
    room = model.config.max_position_embeddings - longbench.ANSWER_ROOM
    if room < longbench.ANSWER_ROOM:
        raise ModelError(f"LongBench needs a model of more than {2 * longbench.ANSWER_ROOM} positions")
    rows, arms = [], list(arms)
    for question in questions:
        ids, cut = longbench.prompt_ids(question, tokenizer, room)
        prompt = torch.from_numpy(ids).long()[None].to(device)
        for arm in arms:
            row = {
                **arm.labels(),
                "task": question.task,
                "context": prompt.shape[1],
                "bucket": question.bucket,
                "example": question.number,
                "definition": longbench.VERSION,
                "cut": cut,
            }
            try:
                with using(model, arm.method) as record:
                    said = _greedy(model, tokenizer, prompt, question.task)
                row |= {"prediction": said, "score": longbench.score(question, said)}
                row["sparsity_realised"] = record.mean_sparsity()
            except Refused as refusal:
                row["reason"] = str(refusal)
            rows.append(row)
            if progress:
                progress.update()
    return rows


def _greedy(model: Any, tokenizer: Any, prompt: Tensor, task: str) -> str:
    """What the model says after `prompt` [1, N], without special tokens."""
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=longbench.TASKS[task].new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,  # an instruct model's own sampling settings, without effect here
        top_p=None,
        pad_token_id=tokenizer.eos_token_id,
        **longbench.stops(task, tokenizer),
    )
    return tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def recall(model: Any, windows: Mapping[str, np.ndarray], arms: Iterable[Arm], block: int) -> list[dict[str, Any]]:
    """How many of the oracle's top-k blocks a method also chose, and how much of the target it keeps.

    For each document, layer, head: recall = |method & oracle| / |oracle| at the same requested
    sparsity; mass = share of the row-normalised pooled map on the blocks that the method kept.
    """
    rows, arms = [], list(arms)
    device = next(model.parameters()).device
    for document, window in tqdm(windows.items(), desc="recall", unit="doc", mininterval=1):

        def see(layer: Layer, q: Tensor, k: Tensor, v: Tensor, document: str = document) -> None:
            target = gate_target(pooled_attention(q, k, v, block)[2])
            hidden = ~causal_blocks(target.shape[-1], 1, 1, q.device)
            ranked = target.float().masked_fill(hidden, -torch.inf)
            for arm in arms:
                best = select_top_k(ranked, arm.method.sparsity, q.shape[2], block).to_dense()
                plan = arm.method.plan(q, k, layer)
                skipped = (1 - plan.head_density())[0].tolist()  # each head's own
                kept = plan.to_dense()
                hits = ((kept & best).sum((-1, -2)) / best.sum((-1, -2)))[0].tolist()
                mass = ((target * kept).sum((-1, -2)) / target.shape[-1])[0].tolist()
                for head, (hit, share, empty) in enumerate(zip(hits, mass, skipped, strict=True)):
                    rows.append(
                        {
                            **arm.labels(),
                            "context": q.shape[2],
                            "layer": layer.index,
                            "head": head,
                            "document": document,
                            "sparsity_realised": empty,
                            "recall": hit,
                            "mass": share,
                        }
                    )

        visit(model, torch.from_numpy(window).long()[None].to(device), see)
    return rows


@torch.no_grad()
def gate_maps(
    model: Any, document: str, window: np.ndarray, gates: list[AttnGate], count: int = 5
) -> list[dict[str, Any]]:
    """True and predicted maps of `count` heads of one document, one row a visible block.

    The heads are those whose true maps differ most (farthest-point order, starting from the head
    farthest from the mean map), so that a figure shows the kinds there are and not one kind five times.
    """
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    device, block = next(model.parameters()).device, gates[0].config.block

    def see(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> None:
        target = gate_target(pooled_attention(q, k, v, block)[2])[0].float().cpu()
        predicted = gate_scores(gates[layer.index], q, k, layer).softmax(-1)[0].cpu()
        for head in range(len(target)):
            found[layer.index, head] = (target[head], predicted[head])

    visit(model, torch.from_numpy(window).long()[None].to(device), see)
    rows = []
    for layer, head in most_different({key: maps[0] for key, maps in found.items()}, count):
        target, predicted = found[layer, head]
        for row, column in torch.ones_like(target).tril().nonzero().tolist():
            rows.append(
                {
                    "document": document,
                    "context": len(window),
                    "block": block,
                    "layer": layer,
                    "head": head,
                    "row": row,
                    "column": column,
                    "target": target[row, column].item(),
                    "predicted": predicted[row, column].item(),
                }
            )
    return rows


def most_different(maps: Mapping[Any, Tensor], count: int) -> list[Any]:
    """Keys of `count` maps in farthest-point order by Euclidean distance."""
    keys, stack = list(maps), torch.stack([each.flatten() for each in maps.values()])
    nearest = (stack - stack.mean(0)).norm(dim=1)
    chosen: list[int] = []
    for _ in range(min(count, len(keys))):
        pick = int(nearest.argmax())
        chosen.append(pick)
        distance = (stack - stack[pick]).norm(dim=1)
        nearest = distance if len(chosen) == 1 else torch.minimum(nearest, distance)
    return sorted(keys[index] for index in chosen)


def bucket_of(contexts: list[int], context: int) -> str:
    """The label of a length bucket: from the previous context (the first: from its half) to this one."""
    place = contexts.index(context)
    low = contexts[place - 1] if place else context // 2
    return f"{low}-{context}"
