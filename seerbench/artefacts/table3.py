"""Table 3: perplexity after extending the context with YaRN: dense, gates trained after it, gates jointly."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, frames, style, table_format
from seerbench.rows.store import Run

RECIPES = {"yarn": "YaRN, dense", "post": "gates trained after YaRN", "joint": "YaRN with SeerAttention"}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a corpus, recipe and sparsity; the delta is against the dense YaRN model for all recipes."""
    rows = frames.experiments(run, "perplexity", "yarn", "perplexity")
    dense = rows[(rows.method == "dense") & (rows.recipe == "yarn")]
    measured = aggregates.perplexities(rows, dense).assign(label=frames.label(run, rows))
    printed = frames.printed(paper, "table3")
    frame = frames.tidy(printed, measured, _gaps(printed, measured))
    frame.loc[frame.method == "dense", "sparsity_requested"] = 0.0
    order = frame.recipe.map(lambda recipe: list(RECIPES).index(recipe) if recipe in RECIPES else len(RECIPES))
    frame = frame.assign(order=order, paper=frame.source != "paper")
    by = ["paper", "corpus", "context", "order", "sparsity_requested"]
    return frame.sort_values(by, kind="stable", ignore_index=True).drop(columns=["order", "paper"])


def _gaps(printed: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """An empty line for each recipe and sparsity of the paper that the run did not measure."""
    wanted = printed[["method", "recipe", "sparsity_requested"]].drop_duplicates()
    wanted = wanted[wanted.method != "dense"]
    have = set(zip(measured.recipe, measured.sparsity_requested.round(3)))
    places = measured[["corpus", "context"]].drop_duplicates()
    gaps = wanted[[(line.recipe, round(line.sparsity_requested, 3)) not in have for line in wanted.itertuples()]]
    return gaps.merge(places, how="cross").assign(
        source="measured", status="missing", reason="not in this run", label=measured.label.iloc[0]
    )


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a corpus and recipe, one column a sparsity."""
    frame = frame.assign(
        named=[RECIPES.get(recipe, recipe) for recipe in frame.recipe], length=frame.context.map(style.size)
    )
    lines = {"source": "source", "corpus": "corpus", "length": "context", "named": "recipe"}
    return table_format.grid(frame, lines, "sparsity_requested", _perplexity, lambda sparsity: f"{sparsity:.2f}")


def _perplexity(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else table_format.share(entry.sparsity_realised)
    shown = table_format.number(entry.value, entry.low, entry.high) + realised
    if entry.method == "dense" or pd.isna(entry.get("delta")):
        return shown
    return f"{shown}, {table_format.number(entry.delta, entry.delta_low, entry.delta_high, sign=True)}"


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells."""
    return [
        "Columns are requested sparsities. Perplexity [95% bootstrap interval over documents] "
        "(realised sparsity), nats a token above the dense YaRN model on the same documents [95% paired interval]."
    ]
