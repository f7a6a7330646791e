"""The table of gates has the loss and the look-ups of each gate."""

from seerbench.artefacts import ablation


def test_loss_and_look_ups_of_each_gate(collect):
    frame = collect("ablation")
    assert set(frame.gate) == {"long:v1", "block128:v1"}
    assert set(frame.metric) == {ablation.LOSS, ablation.LOOKUPS}
    right = frame[(frame.metric == ablation.LOOKUPS) & (frame.gate == "long:v1")]
    assert 0.8 < right.value.iloc[0] < 1.0  # 0.9 of the synthetic look-ups
    cells = ablation.render(frame)
    assert cells.gate.tolist() == sorted(cells.gate)
