"""Figure 7: the true pooled attention map of a head, and what the gate says of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from seerbench.artefacts import frames, style
from seerbench.rows.store import Run

FLOOR = 1e-3  # of a row's mass: paler than this is nothing


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a block of each head that the run kept: target and predicted, rows summing to 1."""
    rows = run.table("maps")
    if rows.empty:
        raise frames.unmeasured(run, "maps", "maps", "maps PRESET")
    rows = rows.assign(
        source="measured", method="seer", status="measured", reason=None, label=frames.label(run, rows)
    )
    keep = ["document", "block", "layer", "head", "row", "column", "target", "predicted"]
    rows = rows.sort_values(["layer", "head", "row", "column"], ignore_index=True)
    return frames.tidy(rows.drop(columns="run_id"), extra=keep)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """A column a head; the truth above, the gate below, one colour scale."""
    heads = list(frame.groupby(["layer", "head"], sort=True))
    fig, axes = style.figure(
        2, len(heads), min(6.0, 0.9 + 11.0 / len(heads)), sharex=True, sharey=True, squeeze=False
    )
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
    one = frame.iloc[0]
    style.caption(
        fig,
        frame,
        f"{one.model}, gate {one.gate}, {style.size(one.context)} tokens in blocks of {one.block:.0f}. "
        "Paper: Figure 7 prints no values.",
    )
    return fig


def _square(blocks: pd.DataFrame, name: str) -> np.ndarray:
    """[rows, columns]; blank above the diagonal, the palest colour for what is below FLOOR."""
    columns = int(blocks[["row", "column"]].to_numpy().max()) + 1
    square = np.full((columns, columns), np.nan)
    square[blocks.row.astype(int), blocks.column.astype(int)] = blocks[name].clip(lower=FLOOR)
    square[np.triu_indices(columns, 1)] = np.nan
    return square
