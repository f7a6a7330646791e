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
from transformers.cache_utils import DynamicLayer

from seerbench.data.prompts import Prompt
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.methods.registry import create
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
        batch: the number of answers that are decoded together, of one arm or several; the caches of their prompts
            are in memory at a time.
        progress: a bar that advances once per answer.

    Returns:
        Rows of the table `tasks`, without run_id, experiment, model and corpus.
    """
    rows = []
    asked = [(arm, prompt) for arm in arms for prompt in prompts]
    for start in range(0, len(asked), batch):
        outcomes: list[dict[str, Any]] = []
        prefilled: list[Prefilled] = []
        for arm, prompt in asked[start : start + batch]:
            try:
                found, sparsity = prefill(model, arm, prompt)
                prefilled.append(found)
                outcomes.append({"sparsity_realised": sparsity})
            except Refused as refusal:
                outcomes.append({"reason": str(refusal)})
        answers = iter(decode(model, tokenizer, prefilled, prompts[0].new_tokens))
        for (arm, prompt), outcome in zip(asked[start : start + batch], outcomes, strict=True):
            if "reason" not in outcome:
                outcome |= _marked(prompt, next(answers))
            rows.append(arm.labels() | _row(prompt) | outcome)
        if progress is not None:
            progress.update(len(outcomes))
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
    """Return the greedy continuation of each prompt, decoded with dense attention.

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
    cache = _side_by_side(model, prefilled, width, new_tokens)
    prefilled.clear()
    rows = torch.arange(len(logits), device=device)  # the answers that are still decoded
    answers = torch.zeros(len(rows), new_tokens, dtype=torch.long, device=device)
    wrong, ended = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool)
    with attention_method(model, create("dense"), count=False):
        for place in range(new_tokens):
            chosen = logits.argmax(-1, keepdim=True)
            answers[rows, place] = chosen[:, 0]
            wrong[rows] |= logits.isnan().any(-1) & ~ended
            ended |= torch.isin(chosen[:, 0], ending)
            going_on = (~ended).nonzero()[:, 0]
            if not len(going_on) or place + 1 == new_tokens:
                break
            if 2 * len(going_on) <= len(rows):  # a few long answers would carry the caches of all others along
                state = (rows, chosen, positions, visible, ended)
                rows, chosen, positions, visible, ended = (each[going_on] for each in state)
                cache.batch_select_indices(going_on)
            visible = torch.cat([visible, torch.ones_like(visible[:, :1])], 1)
            output = model(chosen, visible.long(), positions, cache, use_cache=True, logits_to_keep=1)
            logits, positions = output.logits[:, -1], positions + 1
    texts: list[str | None] = []
    for tokens, is_wrong in zip(answers.tolist(), wrong.tolist(), strict=True):
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        texts.append(None if is_wrong else tokenizer.decode(tokens[:end], skip_special_tokens=True))
    return texts


def _side_by_side(model: Any, prefilled: Sequence[Prefilled], width: int, new_tokens: int) -> DynamicCache:
    """Return one cache of several prompts, padded on the left to `width` tokens; the single caches lose theirs."""
    joined = DynamicCache(config=model.config)
    for place in range(len(prefilled[0].cache.layers)):
        keys, values = [], []
        for each in prefilled:
            own = each.cache.layers[place]
            keys.append(own.keys)
            values.append(own.values)
            own.keys = own.values = None
        joined.layers[place] = RoomyLayer(keys, values, width, new_tokens)
    return joined


class RoomyLayer(DynamicLayer):
    """The keys and values of one layer, with room for the tokens to come: a plain one copies all in each step."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], width: int, new_tokens: int) -> None:
        """Put the keys and values of several prompts side by side.

        Args:
            keys: of each prompt, [1, Hk, N, D] with an N of its own; `values` has the same shapes.
            width: tokens to which each prompt is padded, on the left with zeros.
            new_tokens: tokens that there is room for behind them.
        """
        super().__init__()
        self.lazy_initialization(keys[0], values[0])
        self.room = [_padded(states, width, new_tokens) for states in (keys, values)]
        self.keys, self.values = (states[:, :, :width] for states in self.room)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for states, new in zip(self.room, (key_states, value_states), strict=True):
            states[:, :, start:end] = new
        self.keys, self.values = (states[:, :, :end] for states in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        tokens = self.keys.shape[2]
        self.keys = self.values = None
        self.room = [states[indices] for states in self.room]
        self.keys, self.values = (states[:, :, :tokens] for states in self.room)


def _padded(states: Sequence[Tensor], width: int, new_tokens: int) -> Tensor:
    """Return tensors [1, Hk, N, D] as one [B, Hk, width + new_tokens, D], each of them ending at `width`."""
    first = states[0]
    out = first.new_zeros(len(states), first.shape[1], width + new_tokens, first.shape[3])
    for row, one in zip(out, states, strict=True):
        row[:, width - one.shape[2] : width] = one[0]
    return out


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that end a text: those of the model's settings for generation, and EOS."""
    given = model.generation_config.eos_token_id
    return sorted({*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id} - {None})
