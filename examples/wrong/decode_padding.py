"""Deliberately wrong: it counts blocks from the cache's first place, and padding moves a sequence's first token.

seerbench compare examples/wrong/decode_padding.py --block 16
"""

from dataclasses import replace

import torch

from seerbench.kernels.decode.reference import decode_attention

kind = "decode"


def attention(q, k, v, lists):
    """Return [B, Hq, 1, D] for q [B, Hq, 1, D], k and v [B, Hk, N, D] and CacheLists."""
    return decode_attention(q, k, v, replace(lists, first=torch.zeros_like(lists.first)))
