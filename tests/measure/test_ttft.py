"""Test time to first token: a threshold is searched once per layer, or once if all layers are alike."""

from seerbench.core.problem import LayerContext
from seerbench.measure.sweeps.ttft import CachedThreshold
from seerbench.methods.protocol import Method


class Searches(Method):
    """A method that records in which layers it searched for its threshold."""

    name, sparsity = "searches", 0.5

    def __init__(self):
        self.searched = []

    def with_threshold_for(self, q, k, layer):
        self.searched.append(layer.index)
        return Found(layer.index)

    def attend(self, q, k, v, plan):
        return plan


class Found(Method):
    def __init__(self, at):
        self.at = at

    def plan(self, q, k, layer):
        return self.at


def test_a_threshold_is_searched_once_per_layer_or_once_for_all():
    for alike, searched, plans in ((False, [0, 1], [0, 1, 0, 1]), (True, [0], [0, 0, 0, 0])):
        method = Searches()
        cached = CachedThreshold(method, alike)
        assert [cached.plan(None, None, LayerContext(index=index)) for index in (0, 1, 0, 1)] == plans
        assert method.searched == searched
        assert cached.name == "searches"
        assert cached.attend(None, None, None, 3) == 3
