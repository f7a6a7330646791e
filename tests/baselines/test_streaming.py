"""StreamingLLM: a sink and a window."""

from seerbench.core.problem import LayerContext


def test_streaming_keeps_sink_and_window(make, qkv):
    plan = make("streaming", 0.7).plan(qkv[0], qkv[1], LayerContext()).to_dense()[0, 0]
    n = plan.shape[0]
    k = int(plan[-1].sum())
    assert plan[-1].nonzero().flatten().tolist() == [0, *range(n - k + 1, n)]
