"""Score tasks: look-ups and LongBench questions, answered greedily (Table 2).

data/lookup_tasks.py and data/longbench.py make the examples; steps/accuracy.py calls the functions here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from seerbench.data import longbench, lookup_parts
from seerbench.errors import ModelError, Refused
from seerbench.measure.arm import Arm
from seerbench.measure.generation import NOT_A_NUMBER, skipped_by_decoding
from seerbench.models.hugging_face import attention_method


@torch.no_grad()
def retrieval(
    model: Any,
    tokenizer: Any,
    examples: list[lookup_parts.Example],
    arms: Iterable[Arm],
    batch: int,
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Let every arm answer look-ups: correct if every token of the answer is right.

    The method prefills the prompt, and the answer is decoded greedily, as the arm says. If the answer is inside the
    prompt, it is scored there: each of its tokens must have the highest logit, given those before it. A decoded
    answer of several tokens also has a score, the share of them that are right. If a method refuses, or the model's
    output is not a number, the row has the reason and no mark.

    Args:
        model: a Hugging Face model.
        tokenizer: the model's own tokenizer.
        examples: look-ups of one task and one length.
        arms: the methods with their labels.
        batch: the number of examples in one forward pass. Realised sparsities are the mean over them.
        progress: a bar that advances once per example.

    Returns:
        Rows of the table `tasks`, without run_id, experiment, model, corpus and bucket.
    """
    rows = []
    for arm in arms:
        for start in range(0, len(examples), batch):
            batched = examples[start : start + batch]
            outcomes: list[dict[str, Any]]
            try:
                with attention_method(model, arm.method, decode=arm.decode) as record:
                    predicted = predictions(model, batched)
                arm.require_request(record.mean_sparsity())
                skipped = {
                    "sparsity_realised": record.mean_sparsity(),
                    "decode_sparsity": skipped_by_decoding(record),
                }
                outcomes = [
                    skipped | _outcome(tokenizer, example, answer)
                    for example, answer in zip(batched, predicted, strict=True)
                ]
            except Refused as refusal:
                outcomes = [{"reason": str(refusal)}] * len(batched)
            for place, (example, outcome) in enumerate(zip(batched, outcomes, strict=True)):
                row = {
                    **arm.labels(),
                    **arm.decode_labels(),
                    "task": example.task,
                    "context": example.context,
                    "example": start + place,
                    "distance": example.distance,
                    "asking_rows": asking_rows(example, arm.method.block_q or arm.method.block),
                }
                rows.append(row | outcome)
            if progress is not None:
                progress.update(len(batched))
    return rows


def _outcome(tokenizer: Any, example: lookup_parts.Example, predicted: np.ndarray | None) -> dict[str, Any]:
    """Return the prediction with its mark, or the reason why there is none."""
    if predicted is None:
        return {"reason": NOT_A_NUMBER}
    right = predicted == example.answer
    outcome = {"correct": bool(right.all()), "prediction": tokenizer.decode(predicted.tolist())}
    if len(right) > 1 and example.answer_start >= example.prefilled:
        outcome["score"] = float(right.mean())
    return outcome


def asking_rows(example: lookup_parts.Example, block: int | None) -> int | None:
    """Return how many rows of the prompt are in the block row that predicts the answer's first token.

    Args:
        example: a look-up.
        block: queries per block; None for a method without blocks.

    Returns:
        None without blocks, and for a question that is fed after the prompt.
    """
    asking = example.answer_start - 1
    if block is None or asking >= example.prefilled:
        return None
    first = asking // block * block
    return min(example.prefilled, first + block) - first


def predictions(model: Any, examples: list[lookup_parts.Example]) -> list[np.ndarray | None]:
    """Return the tokens that a model gives as the answer of each example, int64 [answer_length].

    None stands for an answer with a logit that is not a number. Raises Refused as the method in the model does.

    Args:
        model: a Hugging Face model.
        examples: of one task and one length.
    """
    device = next(model.parameters()).device
    one = examples[0]
    tokens = torch.from_numpy(np.stack([example.tokens for example in examples])).long().to(device)
    if one.answer_start >= one.prefilled:
        logits = _decoded(model, tokens, one.prefilled, one.answer_start, one.answer_length, one.given)
    else:
        # Examples of one window have the same tokens, which run once.
        windows, window = tokens.unique(dim=0, return_inverse=True)
        hidden = model.model(windows, use_cache=False).last_hidden_state
        places = torch.tensor([[example.answer_start - 1] for example in examples], device=device)
        places = places + torch.arange(one.answer_length, device=device)
        logits = model.lm_head(hidden[window[:, None], places])
    wrong = logits.isnan().any(-1).any(-1).tolist()
    answers = logits.argmax(-1).cpu().numpy()
    return [None if is_wrong else answer for is_wrong, answer in zip(wrong, answers, strict=True)]


def _decoded(model: Any, tokens: Tensor, prefilled: int, start: int, length: int, given: bool) -> Tensor:
    """Return the logits of the tokens that follow a prompt, [B, length, vocabulary].

    Args:
        model: a Hugging Face model.
        tokens: int64 [B, N], of which no token from `start` on is read unless the answer is given.
        prefilled: the first tokens, which run in one forward pass.
        start: the place of the first predicted token. Tokens between the prompt and it are fed one by one.
        length: number of tokens to predict.
        given: whether the tokens themselves are fed after each prediction, and not what was predicted.
    """
    cache = DynamicCache(config=model.config)

    def last_logits(fed: Tensor) -> Tensor:
        # The cache is the fourth argument in all versions of transformers; its name differs between them.
        return model(fed, None, None, cache, use_cache=True, logits_to_keep=1).logits

    logits = [last_logits(tokens[:, :prefilled])]
    for place in range(prefilled, start):
        logits = [last_logits(tokens[:, place : place + 1])]
    for place in range(start, start + length - 1):
        logits.append(last_logits(tokens[:, place : place + 1] if given else logits[-1].argmax(-1)))
    return torch.cat(logits, 1)


@torch.no_grad()
def answers(
    model: Any,
    tokenizer: Any,
    questions: Iterable[longbench.Question],
    arms: Iterable[Arm],
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Answer each LongBench question under each arm, greedily and at batch 1, and mark the answer from 0 to 1.

    The prompt runs through the method; the tokens of the answer attend densely, as in the paper, or as the arm
    says. Where a method refuses a prompt, or the model's output is not a number, the row has the reason and no
    mark. Raises ModelError for a model with too few positions.

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
                **arm.decode_labels(),
                "task": question.task,
                "context": prompt.shape[1],
                "bucket": question.bucket,
                "example": question.number,
                "definition": longbench.VERSION,
                "cut": cut,
            }
            try:
                with attention_method(model, arm.method, decode=arm.decode) as record:
                    answer = _greedy(model, tokenizer, prompt, question.task)
                arm.require_request(record.mean_sparsity())
                row["sparsity_realised"] = record.mean_sparsity()
                row["decode_sparsity"] = skipped_by_decoding(record)
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
