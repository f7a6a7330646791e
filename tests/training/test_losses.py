"""Test that the loss of tokens, computed in chunks, equals the loss of all logits at once."""

import torch
import torch.nn.functional as F

from seerbench.training.losses import token_losses


def test_token_losses_equal_full_cross_entropy_with_gradients():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (37,), generator=generator)
    scale = torch.rand(37, generator=generator)
    full = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected = torch.autograd.grad((full * scale).sum(), (hidden, weight))
    for chunk in (8, 37, 100):
        losses = token_losses(hidden, weight, labels, chunk)
        torch.testing.assert_close(losses, full)
        torch.testing.assert_close(torch.autograd.grad((losses * scale).sum(), (hidden, weight)), expected)
