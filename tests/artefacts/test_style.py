"""The form of figures: reasons of empty cells in the caption."""

import numpy as np
import pandas as pd

from seerbench.artefacts import fig8, style


def test_unmeasured_cells_are_in_the_caption(collect):
    frame = collect("fig8")
    (sentence,) = style.unmeasured(frame)
    for text in ("Naive torch", "4k", "refused", "the map needs 512 GiB"):
        assert text in sentence
    assert sentence in fig8.draw(frame).get_supxlabel()


def test_many_reasons_are_counted():
    frame = pd.DataFrame({"status": "refused", "reason": list("abcde"), "method": "seer", "context": 1024})
    assert style.unmeasured(frame, most=3) == ["no number: SeerAttention at 1k: refused (5 reasons, in the CSV)"]


def test_only_points_with_a_place_have_a_cross():
    frame = pd.DataFrame(
        {"x": [0.9, np.nan], "status": "refused", "reason": "no", "method": "moa", "context": 1024}
    )
    crossed, without = style.unmeasured(frame)
    assert crossed.startswith("x on the axis: MoA")
    assert without.startswith("no number: MoA")


def test_names_beside_a_panel_keep_their_distance_and_order():
    places = style.spread(np.array([0.1, 0.11, 0.12, 0.97, 0.99]), 0.1)
    assert (np.diff(places) >= 0.1 - 1e-9).all()
    assert places[-1] <= 1
    assert places[0] == 0.1


def test_contexts_are_short():
    assert [style.size(tokens) for tokens in (512, 1024, 1500, 131072)] == ["512", "1k", "1500", "128k"]
