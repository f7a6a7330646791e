"""tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seerbench.data import longbench, lookups
from seerbench.errors import ModelError, Refused
from seerbench.measure.arm import Arm
from seerbench.models.hugging_face import attention_method


@torch.no_grad()
def retrieval(
    model: Any,
    examples: list[lookups.Example],
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
            with attention_method(model, arm.method) as record:
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
                with attention_method(model, arm.method) as record:
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


def bucket_of(contexts: list[int], context: int) -> str:
    """The label of a length bucket: from the previous context (the first: from its half) to this one."""
    place = contexts.index(context)
    low = contexts[place - 1] if place else context // 2
    return f"{low}-{context}"
