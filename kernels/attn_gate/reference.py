"""AttnGate's kernels in plain torch, on any device: pooling, and the search for a row's k-th largest score."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import block_count


def pool_blocks(x: Tensor, block: int) -> dict[str, Tensor]:
    """Return the "max", "min" and "avg" of x [B, H, N, D] over windows of `block` tokens, each [B, H, n, D].

    A partial window at the end is pooled over its real tokens only.
    """
    n, tail = block_count(x.shape[2], block), -x.shape[2] % block
    counts = torch.full((n, 1), block, dtype=x.dtype, device=x.device)
    counts[-1] -= tail

    def windows(fill: float) -> Tensor:
        return F.pad(x, (0, 0, 0, tail), value=fill).unflatten(2, (n, block))

    return {
        "max": windows(-math.inf).amax(3),
        "min": windows(math.inf).amin(3),
        "avg": windows(0.0).sum(3) / counts,
    }


def search_top_k(scores: Tensor, k: int) -> tuple[Tensor, int]:
    """Return which of scores [n] are the k best (bool [n], ties to the lower index), and the steps that it took.

    It models the search of `select.py` for one row: scores are fp32, 0 < k < n, and none is -inf or NaN. Invariant:
    the k-th largest score is in [low, high), both sortable integer keys; count = #{s >= low} >= k and
    beyond = #{s >= high} < k.
    """
    n = len(scores)
    sample = scores[torch.arange(64) * n // 64]
    mean, deviation = sample.mean(), ((sample * sample).mean() - sample.mean() ** 2).clamp_min(0).sqrt()
    share = torch.tensor((k - 0.5) / n)  # the first guess: where k scores of a normal distribution are larger
    z = 4.91 * ((1 - share) ** 0.14 - share**0.14)
    guess, spacing = mean + deviation * z, deviation * torch.exp(z * z / 2) * math.sqrt(2 * math.pi) / n
    low, high, count, beyond, steps, reach = LOWEST_KEY, HIGHEST_KEY, n, 0, 0, 0.02 * deviation
    while count != k and high - low > 1:
        middle = key_of(guess)
        if not low < middle < high or steps > 20:
            middle = low + (high - low) // 2
        larger = int((scores >= score_of(middle)).sum())
        low, count, high, beyond = (middle, larger, high, beyond) if larger >= k else (low, count, middle, larger)
        steps += 1
        if low == LOWEST_KEY or high == HIGHEST_KEY:  # no two guesses bracket the k-th score yet
            guess = score_of(middle) + (larger - k) * spacing * 1.25 + (-reach if larger < k else reach)
            reach = 0.8 * deviation if steps == 1 else 4 * reach
        else:  # as if scores in the bracket were evenly spaced; every fourth step halves, for many ties
            part = 0.5 if steps % 4 == 3 else (count - k + 0.5) / (count - beyond)
            guess = score_of(low) + (score_of(high) - score_of(low)) * part
    kept, tied = scores > score_of(low), scores == score_of(low)
    return kept | (tied & (tied.cumsum(0) <= k - kept.sum())), steps


LOWEST_KEY = 0x00800000  # key of the lowest finite float
HIGHEST_KEY = 0xFF800001  # one past the key of infinity


def key_of(score: Tensor) -> int:
    """Return the uint32 key of a float: keys order as the floats do, and -0.0 has the key of 0.0."""
    bits = int((score.float() + 0.0).view(torch.int32)) & 0xFFFFFFFF
    return bits ^ 0xFFFFFFFF if bits >> 31 else bits | 0x80000000


def score_of(key: int) -> Tensor:
    """Return the float of a key, fp32."""
    bits = key ^ 0x80000000 if key >> 31 else key ^ 0xFFFFFFFF
    return torch.tensor(bits - (bits >> 31 << 32), dtype=torch.int32).view(torch.float32)
