"""Compare Muon's updates with those of torch.optim.Muon."""

import torch
import torch.nn.functional as F

from seerbench.training.muon import Muon


def test_muon_agrees_with_torch():
    """Check that our float32 update has the direction and size of torch.optim.Muon's bfloat16 one."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 32), (64, 32), (32, 96)):
        ours = torch.nn.Parameter(torch.randn(shape, generator=generator))
        theirs = torch.nn.Parameter(ours.detach().clone())
        first = Muon([ours], lr=0.1, weight_decay=0.02)
        second = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        start = ours.detach().clone()
        for _ in range(3):
            ours.grad = torch.randn(shape, generator=generator)
            theirs.grad = ours.grad.clone()
            first.step()
            second.step()
        a, b = ours.detach() - start, theirs.detach() - start
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.995
        assert 0.95 < (a.norm() / b.norm()).item() < 1.05
