"""Figure 7: two maps per head, blank above the diagonal."""

import numpy as np

from seerbench.artefacts import fig7


def test_maps_are_blank_above_the_diagonal(collect):
    frame = collect("fig7")
    heads = frame[["layer", "head"]].drop_duplicates()
    images = [image for ax in fig7.draw(frame).axes for image in ax.images]
    assert len(images) >= 2 * len(heads)
    square = np.ma.filled(images[0].get_array().astype(float), np.nan)
    assert np.isnan(square[np.triu_indices(len(square), 1)]).all()
    assert np.nanmin(square) >= fig7.FLOOR
