"""Table 3: the recipes of the run and of the paper, and the places that the run does not have."""

from seerbench.artefacts import table3


def test_each_recipe_has_its_line_and_gaps_are_named(collect):
    frame = collect("table3")
    gaps = frame[frame.status == "missing"]
    assert set(gaps.recipe) == {"post", "joint"}
    assert not {0.5, 0.9} & set(gaps.sparsity_requested)  # the synthetic run has these
    cells = table3.render(frame)
    measured = cells[cells.source == "measured"].set_index("recipe")
    assert list(measured.index) == list(table3.RECIPES.values())
    assert ", +0." in measured.loc[table3.RECIPES["post"], "0.50"]
    assert "," not in measured.loc[table3.RECIPES["yarn"], "0.00"].split("]")[-1]  # dense has no loss
