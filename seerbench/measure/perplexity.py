"""Measure perplexity: the loss of a model on evaluation windows with each method in its attention layers.

    perplexity            the loss of a prefill at batch 1, as in the paper
    decoded_perplexity    the loss of a window's last tokens, decoded one by one after a prefill of the others

steps/accuracy.py calls them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.measure.generation import Prefilled, SideBySide, prefill, skipped_by_decoding
from seerbench.methods.decode_protocol import DecodeMethod
from seerbench.methods.registry import create
from seerbench.models.hugging_face import attention_method
from seerbench.models.likelihood import window_nll


@torch.no_grad()
def perplexity(
    model: Any,
    windows: Mapping[str, np.ndarray],
    arms: Iterable[Arm],
    progress: tqdm | None = None,
    scored: int | None = None,
) -> list[dict[str, Any]]:
    """Return the loss of each window under each arm, in nats per token: one row per arm and document.

    The perplexity of a corpus is exp of the mean of these losses over its documents. Where a method refuses, or the
    loss is not finite, the row has the reason and no loss.

    Args:
        model: a Hugging Face model.
        windows: token ids [N] by document, as data.windows.evaluation_windows returns them.
        arms: the methods with their labels.
        progress: a bar that advances once per row.
        scored: the number of tokens at the end of a window over which the loss is averaged; None averages over all
            but the first.

    Returns:
        Rows of the table `perplexity`, without run_id, experiment, model and corpus.
    """
    rows = []
    device = next(model.parameters()).device
    for arm in arms:
        for document, window in windows.items():
            tokens = torch.from_numpy(window).long().to(device)
            row = _row(arm, document, window, scored or len(window) - 1)
            try:
                with attention_method(model, arm.method) as record:
                    nll = window_nll(model, tokens, scored=scored)
                arm.require_request(record.mean_sparsity())
                row |= {"sparsity_realised": record.mean_sparsity()} | _outcome(nll)
            except Refused as refusal:
                row |= {"status": "refused", "reason": str(refusal)}
            rows.append(row)
            if progress is not None:
                progress.update()
    return rows


def _row(arm: Arm, document: str, window: np.ndarray, tokens: int) -> dict[str, Any]:
    """Return a row without its outcome."""
    return {
        **arm.labels(),
        "recipe": arm.recipe,
        "document": document,
        "context": len(window),
        "tokens": tokens,
        "sparsity_realised": None,
        "nll": None,
        "reason": None,
    }


def _outcome(nll: float) -> dict[str, Any]:
    if math.isfinite(nll):
        return {"nll": nll, "status": "measured"}
    return {"status": "failed", "reason": f"the model's loss is not a number ({nll})"}


@torch.no_grad()
def decoded_perplexity(
    model: Any,
    windows: Mapping[str, np.ndarray],
    arms: Iterable[Arm],
    decoded: int,
    batch: int = 1,
    progress: tqdm | None = None,
) -> list[dict[str, Any]]:
    """Return the loss of the last tokens of each window under each arm, decoded one by one, in nats per token.

    The arm's method prefills all but the last `decoded` + 1 tokens. Those, except the last, are then fed one by
    one, decoded as the arm says, and each predicts the next token of the window (teacher forcing). Refusals and
    losses that are not finite are as in `perplexity`.

    Args:
        model: a Hugging Face model.
        windows: token ids [N] by document.
        arms: the methods with their labels; each says how it decodes.
        decoded: the number of tokens at the end of a window over which the loss is averaged.
        batch: the number of windows that are decoded together. `decode_sparsity` is the mean over them.
        progress: a bar that advances once per row.

    Returns:
        Rows of the table `perplexity`, without run_id, experiment, model and corpus.
    """
    rows = []
    documents = list(windows)
    for arm in arms:
        for start in range(0, len(documents), batch):
            together = documents[start : start + batch]
            outcomes: dict[str, dict[str, Any]] = {}
            prefilled: list[Prefilled] = []
            for document in together:
                try:
                    found, sparsity = prefill(model, arm, windows[document][: -decoded - 1])
                    prefilled.append(found)
                    outcomes[document] = {"sparsity_realised": sparsity}
                except Refused as refusal:
                    outcomes[document] = {"status": "refused", "reason": str(refusal)}
            running = [document for document in together if "reason" not in outcomes[document]]
            if running:
                ends = [windows[document][-decoded - 1 :] for document in running]
                losses, skipped = _decoded_nll(model, prefilled, ends, arm.decode)
                for document, nll in zip(running, losses, strict=True):
                    outcomes[document] |= {"decode_sparsity": skipped} | _outcome(nll)
            for document in together:
                row = _row(arm, document, windows[document], decoded) | arm.decode_labels()
                rows.append(row | outcomes[document])
            if progress is not None:
                progress.update(len(together))
    return rows


def _decoded_nll(
    model: Any, prefilled: list[Prefilled], ends: Sequence[np.ndarray], method: DecodeMethod[Any] | None
) -> tuple[list[float], float | None]:
    """Return the mean loss of each text's end, and the share of the blocks that decoding skipped.

    Args:
        model: a Hugging Face model.
        prefilled: the texts before their ends; the list is emptied.
        ends: int [tokens + 1] of each text. The first token is fed and not predicted.
        method: the method for decoding.
    """
    fed = torch.from_numpy(np.stack(ends)).long().to(prefilled[0].logits.device)
    total = torch.zeros(len(fed), dtype=torch.float64, device=fed.device)
    with attention_method(model, create("dense"), decode=method) as record:
        texts = SideBySide(model, prefilled, fed.shape[1] - 1)
        for place in range(fed.shape[1] - 1):
            logits = texts.step(fed[:, place : place + 1])
            total += F.cross_entropy(logits.float(), fed[:, place + 1], reduction="none")
    return (total / (fed.shape[1] - 1)).tolist(), skipped_by_decoding(record)
