"""Table 3: perplexity after the context was extended with YaRN: dense, with gates trained after it, and jointly."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, paper_numbers, style, table_format
from seerbench.rows.store import Run

RECIPES = {"yarn": "YaRN, dense", "post": "gates trained after YaRN", "joint": "YaRN with SeerAttention"}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per corpus, recipe and sparsity; the delta of each is against the dense YaRN model."""
    rows = frames.as_in_paper(frames.experiments(run, "perplexity", "yarn", "perplexity"))
    dense = rows[(rows.method == "dense") & (rows.recipe == "yarn")]
    measured = aggregates.perplexities(rows, dense).assign(label=str(labels.label(run, rows)))
    printed = paper_numbers.printed(paper, "table3")
    frame = frames.tidy(printed, measured, _gaps(printed, measured))
    frame.loc[frame.method == "dense", "sparsity_requested"] = 0.0
    order = frame.recipe.map(lambda recipe: list(RECIPES).index(recipe) if recipe in RECIPES else len(RECIPES))
    frame = frame.assign(order=order, from_run=frame.source != "paper")
    by = ["from_run", "corpus", "context", "order", "sparsity_requested"]
    return frame.sort_values(by, kind="stable", ignore_index=True).drop(columns=["order", "from_run"])


def _gaps(printed: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Return one empty line per recipe and sparsity of the paper that the run did not measure."""
    wanted = printed[["method", "recipe", "sparsity_requested"]].drop_duplicates()
    wanted = wanted[wanted.method != "dense"]
    have = set(zip(measured.recipe, measured.sparsity_requested.round(3)))
    places = measured[["corpus", "context"]].drop_duplicates()
    gaps = wanted[[(line.recipe, round(line.sparsity_requested, 3)) not in have for line in wanted.itertuples()]]
    return gaps.merge(places, how="cross").assign(
        source="measured", status="missing", reason="not measured", label=measured.label.iloc[0]
    )


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per corpus and recipe, with one column per requested sparsity."""
    frame = frame.assign(
        recipe_name=[RECIPES.get(recipe, recipe) for recipe in frame.recipe], length=frame.context.map(style.size)
    )
    lines = {"source": "source", "corpus": "corpus", "length": "context", "recipe_name": "recipe"}
    return table_format.grid(frame, lines, "sparsity_requested", _perplexity, lambda sparsity: f"{sparsity:.2f}")


def _perplexity(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else table_format.in_brackets(entry.sparsity_realised)
    text = table_format.number(entry.value, entry.low, entry.high) + realised
    if entry.method == "dense" or pd.isna(entry.get("delta")):
        return text
    return f"{text}, {table_format.number(entry.delta, entry.delta_low, entry.delta_high, sign=True)}"


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells."""
    return [
        "Columns are requested sparsities. Cells: perplexity [95% bootstrap interval over documents] (realised "
        "sparsity), then nats per token above the dense YaRN model on the same documents [95% paired interval]."
    ]
