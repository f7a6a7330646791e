"""The form of figures: reasons of empty cells in the caption."""

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
    sentences = style.unmeasured(frame, most=3)
    assert len(sentences) == 4
    assert "2 more" in sentences[-1]


def test_contexts_are_short():
    assert [style.size(tokens) for tokens in (512, 1024, 1500, 131072)] == ["512", "1k", "1500", "128k"]
