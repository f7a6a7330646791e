"""Figure 10: 49 combinations, ranked at the highest sparsity, with the paper's best among the lines."""

from seerbench.artefacts import fig10
from seerbench.artefacts.paper_numbers import BEST_POOLING


def test_places_follow_the_loss(collect):
    frame = collect("fig10")
    highest = frame[frame.sparsity_requested == frame.sparsity_requested.max()].sort_values("place")
    assert highest.place.tolist() == list(range(1, 50))
    assert highest.y.is_monotonic_increasing
    best = fig10.draw(frame).axes[0]
    labels = [text.get_text() for text in best.get_yticklabels()]
    assert len(labels) == fig10.BEST + 1  # The synthetic loss of the paper's best is not among the lowest.
    assert any(BEST_POOLING in label for label in labels)
    # Each has its interval: fifteen lines without one once suggested an order that four documents cannot show.
    assert len(best.collections) == len(labels)
