"""Let a model answer prompts: a sparse prefill of each one, then greedy decoding with dense attention in batches.

A prompt is prefilled alone, so a method plans it without padding. Decoding reads the caches of several prompts side
by side, padded on the left. data/ruler and data/question_sets.py make the prompts; steps/prompts.py calls the
functions here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from seerbench.data.prompts import Prompt
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.models.hugging_face import attention_method, chunked_mlps

NOT_A_NUMBER = "the model's output is not a number"


@dataclass(frozen=True)
class Prefilled:
    """A prompt that has run through a method.

    Attributes:
        cache: keys and values of its tokens, at batch 1.
        logits: of its last token, [1, vocabulary].
        tokens: their number.
    """

    cache: DynamicCache
    logits: Tensor
    tokens: int


@torch.no_grad()
def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    arms: Iterable[Arm],
    batch: int,
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Answer each prompt under each arm, greedily, and mark the answer from 0 to 1.

    The prompt runs through the method; the tokens of the answer attend densely. Where a method refuses a prompt, or
    the model's output is not a number, the row has the reason and no mark.

    Args:
        model: a Hugging Face model.
        tokenizer: the model's own.
        prompts: of one task and length.
        arms: the methods with their labels.
        batch: the number of prompts that are decoded together, whose caches are in memory at a time.
        progress: a bar that advances once per answer.

    Returns:
        Rows of the table `tasks`, without run_id, experiment, model and corpus.
    """
    rows = []
    for arm in arms:
        for start in range(0, len(prompts), batch):
            batched = prompts[start : start + batch]
            outcomes: list[dict[str, Any]] = []
            prefilled: list[Prefilled] = []
            for prompt in batched:
                try:
                    found, sparsity = prefill(model, arm, prompt)
                    prefilled.append(found)
                    outcomes.append({"sparsity_realised": sparsity})
                except Refused as refusal:
                    outcomes.append({"reason": str(refusal)})
            answers = iter(decode(model, tokenizer, prefilled, batched[0].new_tokens))
            for prompt, outcome in zip(batched, outcomes, strict=True):
                if "reason" not in outcome:
                    outcome |= _marked(prompt, next(answers))
                rows.append(arm.labels() | _row(prompt) | outcome)
            if progress is not None:
                progress.update(len(batched))
    return rows


def _row(prompt: Prompt) -> dict[str, Any]:
    """Return the columns that say which prompt a row is about."""
    return {
        "task": prompt.task,
        "context": prompt.context,
        "bucket": prompt.bucket,
        "example": prompt.number,
        "distance": prompt.distance,
        "depth": prompt.depth,
        "references": json.dumps(prompt.references),
        "cut": prompt.cut,
        "definition": prompt.definition,
    }


def _marked(prompt: Prompt, answer: str | None) -> dict[str, Any]:
    """Return an answer with its mark, or the reason why there is none."""
    if answer is None:
        return {"reason": NOT_A_NUMBER}
    return {"prediction": answer, "score": prompt.score(answer)}


def prefill(model: Any, arm: Arm, prompt: Prompt) -> tuple[Prefilled, float]:
    """Run a prompt through a method; return what decoding needs, and the realised sparsity.

    Raises Refused as the method does, and where it skips another share than was requested.
    """
    tokens = torch.from_numpy(prompt.ids).long()[None].to(next(model.parameters()).device)
    cache = DynamicCache(config=model.config)
    with attention_method(model, arm.method) as record, chunked_mlps(model):
        # The cache is the fourth argument in all versions of transformers; its name differs between them.
        logits = model(tokens, None, None, cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    arm.require_request(record.mean_sparsity())
    return Prefilled(cache, logits, tokens.shape[1]), record.mean_sparsity()


def decode(model: Any, tokenizer: Any, prefilled: list[Prefilled], new_tokens: int) -> list[str | None]:
    """Return the greedy continuation of each prompt, decoded with the model's own dense attention.

    An answer ends before the first token that ends a text, and has at most `new_tokens` tokens. It is None where a
    logit is not a number. The list of prefilled prompts is emptied, so that their caches can be freed.
    """
    if not prefilled:
        return []
    width = max(each.tokens for each in prefilled)
    logits = torch.cat([each.logits for each in prefilled])
    device, ends = logits.device, _ends(model, tokenizer)
    ending = torch.tensor(ends, device=device)
    positions = torch.tensor([[each.tokens] for each in prefilled], device=device)  # of the next token
    visible = torch.arange(width, device=device) >= width - positions
    cache = _side_by_side(model, prefilled, width)
    prefilled.clear()
    chosen: list[Tensor] = []
    wrong = logits.isnan().any(-1)
    ended = torch.zeros_like(wrong)
    for place in range(new_tokens):
        if place:
            visible = torch.cat([visible, torch.ones_like(visible[:, :1])], 1)
            output = model(chosen[-1], visible.long(), positions, cache, use_cache=True, logits_to_keep=1)
            logits, positions = output.logits[:, -1], positions + 1
            wrong |= logits.isnan().any(-1) & ~ended
        chosen.append(logits.argmax(-1, keepdim=True))
        ended |= torch.isin(chosen[-1][:, 0], ending)
        if bool(ended.all()):
            break
    texts: list[str | None] = []
    for row, is_wrong in zip(torch.cat(chosen, 1).tolist(), wrong.tolist(), strict=True):
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        texts.append(None if is_wrong else tokenizer.decode(row[:end], skip_special_tokens=True))
    return texts


def _side_by_side(model: Any, prefilled: Sequence[Prefilled], width: int) -> DynamicCache:
    """Return one cache of several prompts, padded on the left to `width` tokens; the single caches lose theirs."""
    joined = DynamicCache(config=model.config)
    for layer in range(len(prefilled[0].cache.layers)):
        parts = []
        for each in prefilled:
            own = each.cache.layers[layer]
            missing = (0, 0, width - each.tokens, 0)
            parts.append([torch.nn.functional.pad(states, missing) for states in (own.keys, own.values)])
            own.keys = own.values = None
        keys, values = (torch.cat(states) for states in zip(*parts, strict=True))
        joined.update(keys, values, layer)
    return joined


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that end a text: those of the model's settings for generation, and EOS."""
    given = model.generation_config.eos_token_id
    return sorted({*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id} - {None})
