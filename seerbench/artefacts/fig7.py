"""Figure 7: the true pooled attention map of single heads, and the map that the gate predicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from seerbench.artefacts import frames, labels, style
from seerbench.errors import MissingRows
from seerbench.rows.store import Run

FLOOR = 1e-3  # The palest color stands for this share of a row, and for all smaller shares.


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per block of each recorded head: target and prediction, in rows that sum to 1."""
    rows = run.table("maps")
    if rows.empty:
        raise MissingRows("maps", "maps", "maps PRESET", run.folder)
    rows = rows.assign(
        source="measured", method="seer", status="measured", reason=None, label=str(labels.label(run, rows))
    )
    columns = ["document", "block", "layer", "head", "row", "column", "target", "predicted"]
    rows = rows.sort_values(["layer", "head", "row", "column"], ignore_index=True)
    return frames.tidy(rows.drop(columns="run_id"), extra=columns)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one column per head, with the true map above and the gate's below, on one color scale."""
    heads = list(frame.groupby(["layer", "head"], sort=True))
    fig, axes = style.figure(
        2, len(heads), min(6.0, 0.9 + 11.0 / len(heads)), sharex=True, sharey=True, squeeze=False
    )
    drawn = None
    for column, ((layer, head), blocks) in enumerate(heads):
        for ax, name in ((axes[column], "target"), (axes[len(heads) + column], "predicted")):
            drawn = ax.imshow(_square(blocks, name), cmap="magma_r", norm=LogNorm(FLOOR, 1))
            ax.grid(False)
            ax.spines[["top", "right"]].set_visible(True)
        axes[column].set_title(f"layer {layer:.0f}, head {head:.0f}")
        axes[len(heads) + column].set_xlabel("key block")
    axes[0].set_ylabel("true map\nquery block")
    axes[len(heads)].set_ylabel("gate\nquery block")
    fig.colorbar(drawn, ax=list(axes), label="share of the row", shrink=0.8)
    first = frame.iloc[0]
    style.caption(
        fig,
        frame,
        f"{first.model}, gate {first.gate}, {style.size(first.context)} tokens in blocks of {first.block:.0f}. "
        "Paper: Figure 7 prints no values.",
    )
    return fig


def _square(blocks: pd.DataFrame, name: str) -> np.ndarray:
    """Return the map of one head [query blocks, key blocks], at least FLOOR, and NaN above the diagonal."""
    columns = int(blocks[["row", "column"]].to_numpy().max()) + 1
    square = np.full((columns, columns), np.nan)
    square[blocks.row.astype(int), blocks.column.astype(int)] = blocks[name].clip(lower=FLOOR)
    square[np.triu_indices(columns, 1)] = np.nan
    return square
