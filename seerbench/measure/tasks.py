"""Score tasks: look-ups with teacher forcing, and LongBench questions answered greedily (Table 2).

data/lookups.py and data/longbench.py make the examples; steps/accuracy.py calls the functions here.
"""

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

NOT_A_NUMBER = "the model's output is not a number"


@torch.no_grad()
def retrieval(
    model: Any,
    examples: list[lookups.Example],
    arms: Iterable[Arm],
    batch: int,
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Score look-ups under each arm: correct if every answer token, given those before it, has the highest logit.

    Where a method refuses, or the model's output is not a number, the row has the reason and no mark.

    Args:
        model: a Hugging Face model.
        examples: look-ups of one task and one length.
        arms: the methods with their labels.
        batch: the number of examples in one forward pass. Realised sparsity is the mean over them.
        progress: a bar that advances once per example.

    Returns:
        Rows of the table `tasks`, without run_id, experiment, model, corpus and bucket.
    """
    rows = []
    device = next(model.parameters()).device
    for arm in arms:
        for start in range(0, len(examples), batch):
            batched = examples[start : start + batch]
            tokens = torch.from_numpy(np.stack([example.tokens for example in batched])).long().to(device)
            reason = None
            try:
                with attention_method(model, arm.method) as record:
                    hidden = model.model(tokens, use_cache=False).last_hidden_state
            except Refused as refusal:
                reason = str(refusal)
            for place, example in enumerate(batched):
                row = {
                    **arm.labels(),
                    "task": example.task,
                    "context": example.context,
                    "example": start + place,
                    "distance": example.distance,
                    "reason": reason,
                }
                rows.append(row)
                if reason is not None:
                    continue
                first, end = example.answer_start, example.answer_start + example.answer_length
                logits = model.lm_head(hidden[place, first - 1 : end - 1])
                row["sparsity_realised"] = record.mean_sparsity()
                if logits.isnan().any():
                    row["reason"] = NOT_A_NUMBER
                else:
                    row["correct"] = bool((logits.argmax(-1) == tokens[place, first:end]).all())
            if progress is not None:
                progress.update(len(batched))
    return rows


@torch.no_grad()
def answers(
    model: Any,
    tokenizer: Any,
    questions: Iterable[longbench.Question],
    arms: Iterable[Arm],
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Answer each LongBench question under each arm, greedily and at batch 1, and mark the answer from 0 to 1.

    The prompt runs through the method; the tokens of the answer attend densely, as in the paper. Where a method
    refuses a prompt, or the model's output is not a number, the row has the reason and no mark. Raises ModelError
    for a model with too few positions.

    Args:
        model: a Hugging Face model.
        tokenizer: the model's own tokenizer.
        questions: what data.longbench.read_examples returns.
        arms: the methods with their labels.
        progress: a bar that advances once per answer.

    Returns:
        Rows of the table `tasks`, without run_id, experiment, model and corpus.
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
                    answer = _greedy(model, tokenizer, prompt, question.task)
                row["sparsity_realised"] = record.mean_sparsity()
                if answer is None:
                    row["reason"] = NOT_A_NUMBER
                else:
                    row |= {"prediction": answer, "score": longbench.score(question, answer)}
            except Refused as refusal:
                row["reason"] = str(refusal)
            rows.append(row)
            if progress is not None:
                progress.update()
    return rows


def _greedy(model: Any, tokenizer: Any, prompt: Tensor, task: str) -> str | None:
    """Return the model's greedy continuation of a prompt [1, N], without special tokens; None if a logit is NaN."""
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=longbench.TASKS[task].new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,  # an instruct model's own sampling settings, which have no effect here
        top_p=None,
        pad_token_id=tokenizer.eos_token_id,
        output_logits=True,
        return_dict_in_generate=True,
        **longbench.stops(task, tokenizer),
    )
    if any(logits.isnan().any() for logits in output.logits):
        return None
    return tokenizer.decode(output.sequences[0, prompt.shape[1] :], skip_special_tokens=True)


def bucket_of(contexts: list[int], context: int) -> str:
    """Return the label of a length bucket: from the previous context (for the first, half of it) to this one."""
    place = contexts.index(context)
    low = contexts[place - 1] if place else context // 2
    return f"{low}-{context}"
