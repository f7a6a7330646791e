"""Test MoA's search: gradients through a model, plans that run in it, and plans without a model."""

import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seerbench.baselines.moa import block_density, save_plan, window_blocks
from seerbench.errors import ConfigError
from seerbench.kernels.flex_attention import masked_attention
from seerbench.methods.protocol import Method
from seerbench.methods.registry import create
from seerbench.models.hugging_face import attention_method
from seerbench.models.likelihood import window_nll
from seerbench.search import moa, moa_solver

BLOCK = 16


class Pushed(Method):
    """Dense attention that adds `push` to the output of one layer."""

    name, sparsity = "pushed", None

    def __init__(self, layer, push):
        self.layer, self.push = layer, push

    def refuses(self, problem):
        return None

    def plan(self, q, k, layer):
        self.index = layer.index

    def attend(self, q, k, v, plan):
        out = masked_attention(q, k, v)
        return out + self.push if self.index == self.layer else out


def test_the_gradient_is_that_of_the_answer_s_loss(model, windows):
    """Compare dLoss / dOutput of each layer with finite differences; check that no parameter gets a gradient."""
    tokens, answer = torch.from_numpy(windows[64][0]).long()[None], 8
    seen = {}
    moa.backward_through(model, tokens, answer, lambda layer, q, k, v, grad: seen.update({layer: grad}))
    assert list(seen) == [1, 0]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())

    def loss(layer, push):
        with torch.no_grad(), attention_method(model, Pushed(layer, push)):
            hidden = model.model(tokens, use_cache=False).last_hidden_state[0, -answer - 1 : -1]
            return F.cross_entropy(model.lm_head(hidden), tokens[0, -answer:]).item()

    for layer, grad in seen.items():
        push = 0.02 * grad / grad.norm()
        change = loss(layer, push) - loss(layer, -push)
        assert change == pytest.approx(2 * 0.02 * grad.norm().item(), rel=0.05)


@pytest.fixture
def quick(monkeypatch):
    """Solve few programs, and none of them for long."""
    monkeypatch.setattr(moa_solver, "INTERVALS", 1)
    monkeypatch.setattr(moa_solver, "MANY_COLUMNS", 50)
    monkeypatch.setattr(moa_solver, "MAX_NODES", (20, 1))


@pytest.mark.usefixtures("quick")
def test_moa_s_plans_of_a_model_run_in_it(model, windows, tmp_path):
    budgets = [(None, 0), (0.5, 0), (0.6, 2)]
    plans = moa.moa_plans(model, windows, windows[256], budgets, BLOCK)
    for (sparsity, dense_rows), plan in plans.items():
        assert plan.alphas.shape == plan.betas.shape == (2, 4)
        for layer in range(2):
            assert len(set(zip(plan.alphas[layer], plan.betas[layer]))) <= 2
        most = [bound + moa_solver.UNIFORM_EXCESS for bound in plan.provenance["most"]]
        assert all(have <= bound + 1e-6 for have, bound in zip(plan.provenance["reached"], most))
        save_plan(tmp_path / "moa.json", plan.alphas, plan.betas, plan.provenance)
        method = create("moa", plan=tmp_path / "moa.json", sparsity=sparsity, block=BLOCK)
        method.last_rows_dense = dense_rows
        text = torch.from_numpy(np.concatenate(windows[256])).long()[None]
        with torch.no_grad(), attention_method(model, method) as record:
            model.model(text, use_cache=False)
        if sparsity:  # A sparsity bounds the share of kept blocks.
            assert 1 - record.mean_sparsity() == pytest.approx(plan.provenance["reached"][3], abs=1e-6)
    assert plans[None, 0].provenance["bound"] == "KV density"
    again = moa.moa_plans(model, windows, windows[256], budgets[1:2], BLOCK)
    assert np.array_equal(again[0.5, 0].alphas, plans[0.5, 0].alphas)


@pytest.mark.usefixtures("quick")
def test_moa_s_plan_is_no_worse_than_streaming_llm_on_the_validation_text(model, windows, monkeypatch):
    """Compare with StreamingLLM itself, where the programs find plans that are worse than any uniform one."""
    real, worse = moa._validation_loss, []

    def loss(model, texts, rules, block, sparsity, dense_rows):
        is_uniform = len({tuple(rule) for rule in rules.reshape(-1, 2)}) == 1
        worse.append(is_uniform)
        return real(model, texts, rules, block, sparsity, dense_rows) + (0 if is_uniform else 1)

    monkeypatch.setattr(moa, "_validation_loss", loss)
    for sparsity in (0.5, 0.6):
        plan = moa.moa_plans(model, windows, windows[256], [(sparsity, 0)], BLOCK)[sparsity, 0]
        assert plan.provenance["streaming_validated"]
        assert plan.provenance["chosen"] == "uniform"
        streaming = create("streaming", sparsity=sparsity, block=BLOCK)
        streaming.attend = lambda q, k, v, mask: masked_attention(q, k, v, mask)
        with torch.no_grad(), attention_method(model, streaming):
            texts = [torch.from_numpy(window).long() for window in windows[256]]
            want = np.mean([window_nll(model, text) for text in texts])
        assert plan.provenance["validation_nll"] <= want + 1e-6
    assert set(worse) == {True, False}


def test_a_warning_that_another_thread_made_an_error_costs_no_plan(monkeypatch):
    """Turn warnings into errors, as another thread may: the plan is solved again; other errors are still raised."""

    def choose(costs, limits):
        if threading.current_thread() is threading.main_thread():
            return [limits]
        warnings.simplefilter("error")
        if limits == "wrong":
            raise ConfigError("no plan")
        warnings.warn("about to change", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(moa_solver, "choose_rules", choose)
    before = list(warnings.filters)
    assert moa.choose_in_parallel([([], "a"), ([], "b")]) == [["a"], ["b"]]
    assert warnings.filters == before
    with pytest.raises(ConfigError, match="no plan"):
        moa.choose_in_parallel([([], "a"), ([], "wrong")])


def test_a_random_plan_stands_for_no_model():
    plan = moa.random_plan(8, 64, 0, None)
    assert plan.provenance["influence"] == "random"
    assert plan.alphas.shape == (1, 8)
    assert len(set(zip(plan.alphas[0], plan.betas[0]))) == 2  # Heads differ, as in a searched plan.


@pytest.mark.parametrize(("sparsity", "dense_rows"), [(0.35, 0), (0.5, 0), (0.9, 0), (0.9, 2)])
def test_a_random_plan_realises_its_sparsity_from_8k_to_128k(sparsity, dense_rows):
    for heads in (4, 32):
        plan = moa.random_plan(heads, 64, 0, sparsity, dense_rows)
        for tokens in (8192, 16384, 32768, 131072):
            windows = window_blocks(plan.alphas[0], plan.betas[0], tokens, 64, sparsity, dense_rows)
            assert block_density(windows).mean() == pytest.approx(1 - sparsity, abs=0.02)
