"""Common mistakes are recognised in their outputs."""

import pytest
import torch

from compare.kernels import example, findings, right, softmax
from seerbench.compare import diagnose
from seerbench.core.reference import reference_attention


def not_causal(q, k, v, mask):
    n = mask.tokens
    return softmax(
        q, k, v, mask.to_dense().repeat_interleave(16, -2)[..., :n, :].repeat_interleave(16, -1)[..., :n]
    )


def wrong_head(q, k, v, mask):
    return softmax(q, k, v, mask.to_token_mask(), group=lambda x: x.repeat(1, q.shape[1] // x.shape[1], 1, 1))


def unscaled(q, k, v, mask):
    return softmax(q, k, v, mask.to_token_mask(), scale=1.0)


def coarse(q, k, v, mask):
    return reference_attention(q, k, v, mask, torch.bfloat16)[0].float()


def overflowing(q, k, v, mask):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp() * mask.to_token_mask()
    return (weights @ v) / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def one_batch(q, k, v, mask):
    return right(q[:1], k[:1], v[:1], mask).expand_as(q)


def unwritten(q, k, v, mask):
    out = torch.empty_like(q)
    out[:, :-1] = right(q, k, v, mask)[:, :-1]
    return out


def half(q, k, v, mask):
    return right(q, k, v, mask).half()


def in_place(q, k, v, mask):
    out = right(q, k, v, mask)
    q.mul_(2)
    return out


@pytest.mark.parametrize(
    ("kernel", "guess"),
    [
        (example("wrong/ignores_mask.py"), "ignores the mask"),
        (example("wrong/tail_block.py"), "tail block"),
        (example("wrong/empty_row.py"), "NaN on a row without a block"),
        (not_causal, "not causal inside the diagonal block"),
        (wrong_head, "wrong key/value head"),
        (unscaled, "forgets to scale"),
        (coarse, "too coarse"),
        (overflowing, "overflows"),
        (one_batch, "a batch of one"),
        (unwritten, "unwritten"),
        (half, "shape and dtype"),
        (in_place, "overwrites its inputs"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_kernel_is_told_why(kernel, guess):
    first = findings(kernel)[0]
    assert guess in first.guess
    assert first.error > first.budget


def test_padding_of_the_lists_is_recognised():
    def kernel(q, k, v, mask):
        return softmax(q, k, v, diagnose.token_mask(diagnose.with_padding(mask), mask))

    assert "padding of kv_indices" in findings(kernel)[0].guess
