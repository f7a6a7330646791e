"""Test the likelihood of a window against the model's own loss."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.toy import OPTIONS, TOKENS, make
from seerbench.errors import ModelError
from seerbench.methods.registry import create
from seerbench.models.hugging_face import attention_method
from seerbench.models.likelihood import window_nll


@pytest.mark.parametrize("architecture", OPTIONS)
@torch.no_grad()
def test_window_nll_is_the_model_s_own_loss(architecture):
    model, window = make(architecture), TOKENS[0]
    own = model(window[None], labels=window[None]).loss.item()
    assert window_nll(model, window) == pytest.approx(own, abs=1e-5)
    logits = model(window[None, :-1]).logits[0, -7:]
    with attention_method(model, create("dense")):
        assert window_nll(model, window, chunk=13, scored=7) == pytest.approx(
            cross_entropy(logits, window[-7:]).item(), abs=1e-5
        )


def test_a_model_that_changes_its_logits_has_no_likelihood():
    model = make()
    model.register_forward_hook(lambda _module, _inputs, out: setattr(out, "logits", out.logits.tanh()))
    with pytest.raises(ModelError, match="losses would be wrong"):
        window_nll(model, TOKENS[0])
