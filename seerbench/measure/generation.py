"""Let a model answer prompts: a sparse prefill of each one, then greedy decoding in batches, dense or sparse.

A prompt is prefilled alone, so a method plans it without padding. Decoding reads the caches of several prompts side
by side, padded on the left (`SideBySide`). data/ruler and data/question_sets.py make the prompts;
steps/prompts.py calls the functions here, and perplexity.py decodes given texts with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from seerbench.data.prompts import Prompt
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.methods.decode_protocol import CacheState, DecodeMethod
from seerbench.methods.registry import create
from seerbench.models import decode_batches
from seerbench.models.attention_function import Record, continue_from, kept_states
from seerbench.models.hugging_face import attention_method, chunked_mlps

NOT_A_NUMBER = "the model's output is not a number"


@dataclass(frozen=True)
class Prefilled:
    """A prompt that has run through a method.

    Attributes:
        cache: keys and values of its tokens, at batch 1.
        logits: of its last token, [1, vocabulary].
        tokens: their number.
        kept: what the arm's method for decoding keeps of each layer; [] without such a method.
    """

    cache: DynamicCache
    logits: Tensor
    tokens: int
    kept: list[CacheState]


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

    The prompt runs through the method; the tokens of the answer are decoded as the arm says. Where a method refuses
    a prompt, or the model's output is not a number, the row has the reason and no mark.

    Args:
        model: a Hugging Face model.
        tokenizer: the model's own.
        prompts: of one task and length.
        arms: the methods with their labels.
        batch: the number of answers that are decoded together, of one arm or of several that decode densely; the
            caches of their prompts are in memory at a time.
        progress: a bar that advances once per answer.

    Returns:
        Rows of the table `tasks`, without run_id, experiment, model and corpus.
    """
    rows = []
    for _, alike in groupby(arms, key=lambda arm: id(arm.decode)):
        asked = [(arm, prompt) for arm in alike for prompt in prompts]
        for start in range(0, len(asked), batch):
            found = _answered(model, tokenizer, asked[start : start + batch], prompts[0].new_tokens)
            rows += found
            if progress is not None:
                progress.update(len(found))
    return rows


def _answered(
    model: Any, tokenizer: Any, asked: Sequence[tuple[Arm, Prompt]], new_tokens: int
) -> list[dict[str, Any]]:
    """Return one row for each arm and prompt; the arms decode by one method."""
    outcomes: list[dict[str, Any]] = []
    prefilled: list[Prefilled] = []
    for arm, prompt in asked:
        try:
            found, sparsity = prefill(model, arm, prompt.ids)
            prefilled.append(found)
            outcomes.append({"sparsity_realised": sparsity})
        except Refused as refusal:
            outcomes.append({"reason": str(refusal)})
    texts, skipped = decode(model, tokenizer, prefilled, new_tokens, asked[0][0].decode)
    answers = iter(texts)
    rows = []
    for (arm, prompt), outcome in zip(asked, outcomes, strict=True):
        if "reason" not in outcome:
            outcome |= _marked(prompt, next(answers)) | {"decode_sparsity": skipped}
        rows.append(arm.labels() | arm.decode_labels() | _row(prompt) | outcome)
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


def prefill(model: Any, arm: Arm, ids: np.ndarray) -> tuple[Prefilled, float]:
    """Run a text, int [N], through a method; return what decoding needs, and the realised sparsity.

    Raises Refused as the methods for prefill and decoding do, and if the prefill skips another share of the blocks
    than was requested.
    """
    tokens = torch.from_numpy(ids).long()[None].to(next(model.parameters()).device)
    cache = DynamicCache(config=model.config)
    with attention_method(model, arm.method, decode=arm.decode) as record, chunked_mlps(model):
        # The cache is the fourth argument in all versions of transformers; its name differs between them.
        logits = model(tokens, None, None, cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        kept = kept_states(model) if arm.decode is not None else []
    arm.require_request(record.mean_sparsity())
    return Prefilled(cache, logits, tokens.shape[1], kept), record.mean_sparsity()


class SideBySide:
    """Texts that are decoded together: their caches, padded on the left, and what a method keeps of them.

    It is used inside a block of `attention_method` with the method for decoding by which they were prefilled.
    """

    def __init__(self, model: Any, prefilled: list[Prefilled], new_tokens: int) -> None:
        """Put prefilled texts side by side.

        Args:
            model: the model.
            prefilled: the texts. The list is emptied, so that their caches can be freed.
            new_tokens: tokens that there is room for behind each of them.
        """
        self.model = model
        width, device = max(each.tokens for each in prefilled), prefilled[0].logits.device
        self.positions = torch.tensor([[each.tokens] for each in prefilled], device=device)  # of the next token
        self.visible = torch.arange(width, device=device) >= width - self.positions
        self.cache = _side_by_side(model, prefilled, width, new_tokens)
        of_layers = zip(*(each.kept for each in prefilled), strict=True)
        self.kept = [decode_batches.joined(states) for states in of_layers]
        prefilled.clear()
        self._hand_over()

    def step(self, tokens: Tensor) -> Tensor:
        """Feed the next token of each text, int64 [B, 1]; return the logits after it, [B, vocabulary]."""
        self.visible = torch.cat([self.visible, torch.ones_like(self.visible[:, :1])], 1)
        visible, positions = self.visible.long(), self.positions
        output = self.model(tokens, visible, positions, self.cache, use_cache=True, logits_to_keep=1)
        self.positions = positions + 1
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Keep only some of the texts, by their numbers, int64 [texts]."""
        self.positions, self.visible = self.positions[rows], self.visible[rows]
        self.cache.batch_select_indices(rows)
        self.kept = [decode_batches.chosen(state, rows) for state in self.kept]
        self._hand_over()

    def _hand_over(self) -> None:
        if self.kept:
            continue_from(self.model, self.cache, self.kept)


def decode(
    model: Any,
    tokenizer: Any,
    prefilled: list[Prefilled],
    new_tokens: int,
    method: DecodeMethod[Any] | None = None,
) -> tuple[list[str | None], float | None]:
    """Return the greedy continuation of each prompt, and the share of the blocks that decoding skipped.

    An answer ends before the first token that ends a text, and has at most `new_tokens` tokens. It is None where a
    logit is not a number. The list of prefilled prompts is emptied, so that their caches can be freed. The share is
    a mean over layers, steps and prompts; it is None without a method for decoding, and if no step was made.
    """
    if not prefilled:
        return [], None
    logits, ends = torch.cat([each.logits for each in prefilled]), _ends(model, tokenizer)
    ending = torch.tensor(ends, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)  # the answers that are still decoded
    answers = torch.zeros(len(rows), new_tokens, dtype=torch.long, device=logits.device)
    wrong, ended = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool)
    with attention_method(model, create("dense"), count=method is not None, decode=method) as record:
        together = SideBySide(model, prefilled, new_tokens)
        for place in range(new_tokens):
            chosen = logits.argmax(-1, keepdim=True)
            answers[rows, place] = chosen[:, 0]
            wrong[rows] |= logits.isnan().any(-1) & ~ended
            ended |= torch.isin(chosen[:, 0], ending)
            going_on = (~ended).nonzero()[:, 0]
            if not len(going_on) or place + 1 == new_tokens:
                break
            if 2 * len(going_on) <= len(rows):  # a few long answers would carry the caches of all others along
                rows, chosen, ended = (each[going_on] for each in (rows, chosen, ended))
                together.keep(going_on)
            logits = together.step(chosen)
    texts: list[str | None] = []
    for tokens, is_wrong in zip(answers.tolist(), wrong.tolist(), strict=True):
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        texts.append(None if is_wrong else tokenizer.decode(tokens[:end], skip_special_tokens=True))
    return texts, skipped_by_decoding(record)


def skipped_by_decoding(record: Record) -> float | None:
    """Return the share of the blocks that decoding skipped; None if nothing was decoded by a method."""
    return record.mean_decode_sparsity() if record.decode_density else None


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
