# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Gates: which blocks they choose, and which they miss
#
# A gate reads pooled Q and K and predicts which key blocks each query block will need. It is trained on the
# *target*: the attention map of the dense model, pooled to blocks by their maximum and normalised in each row.
# This notebook shows single heads: the target, the gate's prediction, the blocks that it finds at a sparsity,
# and the attention in the blocks that it misses. It measures nothing; it reads the rows of `seerbench maps` and
# `seerbench recall`.

# %%
import textwrap
from itertools import pairwise

import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import rc_context
from matplotlib.colors import ListedColormap, LogNorm

from seerbench.artefacts import colors, frames, style
from seerbench.core.top_k import top_k_count
from seerbench.report import notebooks

runs = notebooks.runs()
run, maps = notebooks.with_rows(runs, "maps")
notebooks.overview([run]).style.hide()

# %% [markdown]
# ## Pick a head
#
# The run stored the maps of these heads. Change `LAYER`, `HEAD` and the sparsity below and run the notebook
# again.

# %%
heads = maps[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"]).to_numpy().tolist()
print("recorded (layer, head):", ", ".join(f"({layer}, {head})" for layer, head in heads))

LAYER, HEAD = heads[-1]
SPARSITY = 0.7


# %% tags=["hide-input"]
def square(blocks, column):
    """Turn the rows of one head into a map [query block, key block] that is 0 above the diagonal."""
    n = int(blocks[["row", "column"]].to_numpy().max()) + 1
    values = np.zeros((n, n))
    values[blocks.row, blocks.column] = blocks[column]
    return np.tril(values)


def chosen(values, sparsity):
    """Apply the paper's top-k rule: each row keeps its k best visible blocks; ties go to the lower index."""
    n = len(values)
    seen = np.tril(np.ones((n, n), bool))
    ranks = np.argsort(np.argsort(np.where(seen, -values, np.inf), axis=1, kind="stable"), axis=1, kind="stable")
    return (ranks < top_k_count(n, sparsity)) & seen


def look(layer, head, sparsity):
    """Return target, prediction, and the choices of both for one head."""
    blocks = maps[(maps.layer == layer) & (maps["head"] == head)]
    target, predicted = square(blocks, "target"), square(blocks, "predicted")
    return target, predicted, chosen(target, sparsity), chosen(predicted, sparsity)


target, predicted, wanted, found = look(LAYER, HEAD, SPARSITY)
one = maps.iloc[0]
about = (
    f"layer {LAYER}, head {HEAD}; gate {one.gate}; {one.context} tokens in blocks of {one.block}; {one.document}"
)

# %% [markdown]
# Left and middle: the share of each row's attention in each block, on one logarithmic scale. Right: the choice
# at the sparsity above. *Found*: kept by both. *Missed*: kept by the target only. *Needless*: kept by the gate
# only.

# %% tags=["hide-input"]
with rc_context(style.STYLE):
    figure, axes = style.figure(1, 3, 2.9, sharex=True, sharey=True)
    for ax, values, title in zip(axes, (target, predicted), ("target", "gate")):
        shown = np.where(np.tri(len(values), dtype=bool), np.clip(values, 1e-3, 1), np.nan)
        drawn = ax.imshow(shown, cmap="magma_r", norm=LogNorm(1e-3, 1))
        ax.set(title=title, xlabel="key block")
    outcome = np.where(wanted & found, 1, np.where(wanted, 2, np.where(found, 3, np.nan)))
    colours = ["#009E73", "#D55E00", "#BBBBBB"]
    axes[2].imshow(outcome, cmap=ListedColormap(colours), vmin=1, vmax=3, interpolation="nearest")
    axes[2].set(title=f"choice at {SPARSITY:.0%}", xlabel="key block")
    for colour, name in zip(colours, ("found", "missed", "needless")):
        axes[2].plot([], [], "s", color=colour, label=name)
    axes[2].legend(loc="upper right")
    axes[0].set_ylabel("query block")
    for ax in axes:
        ax.grid(False)
    figure.colorbar(drawn, ax=list(axes[:2]), shrink=0.7, label="share of the row")
    notebooks.caption(figure, f"{about}. {frames.label(run, maps)}")
notebooks.picture(figure, f"Target, gate and choice of {about}")

# %% [markdown]
# ## Where are blocks missed?
#
# *Recall* is the share of the target's blocks that the gate finds. *Mass* is the share of a row's pooled
# attention in the missed blocks. Both are shown against the distance from the diagonal. They tell a gate that
# cannot see far blocks from one that leaves out blocks of little weight.

# %% tags=["hide-input"]
distance = np.subtract.outer(np.arange(len(target)), np.arange(len(target)))
edges = np.unique(np.append(2 ** np.arange(0, np.ceil(np.log2(len(target))) + 1), [0, 1]).astype(int))
lines = []
for low, high in pairwise(edges):
    here = (distance >= low) & (distance < high)
    count = (wanted & here).sum()
    lines.append(
        {
            "blocks from the diagonal": f"{low}" if high == low + 1 else f"{low} to {high - 1}",
            "wanted": count,
            "found": (wanted & found & here).sum() / count if count else np.nan,
            "missed mass": target[wanted & ~found & here].sum() / target.sum(),
        }
    )
by_distance = pd.DataFrame(lines)
display(by_distance.style.hide().format({"found": "{:.0%}", "missed mass": "{:.2%}"}, na_rep="none wanted"))

# %% tags=["hide-input"]
with rc_context(style.STYLE):
    figure, (left, right) = style.figure(1, 2, 2.6)
    places = np.arange(len(by_distance))
    left.bar(places, by_distance.found, color="#009E73")
    left.set_xticks(places, by_distance["blocks from the diagonal"], rotation=30)
    left.set(xlabel="blocks from the diagonal", ylabel="share found", ylim=(0, 1))
    rows = np.arange(len(target))
    missed = (target * (wanted & ~found)).sum(1) / np.maximum(target.sum(1), 1e-12)
    kept = (target * found).sum(1) / np.maximum(target.sum(1), 1e-12)
    right.plot(rows, kept, color="#0072B2", label="kept by the gate")
    right.plot(
        rows, (target * wanted).sum(1) / np.maximum(target.sum(1), 1e-12), color="black", label="kept by the target"
    )
    right.plot(rows, missed, color="#D55E00", label="missed")
    right.set(xlabel="query block", ylabel="share of the row's mass", ylim=(0, 1.02))
    right.legend()
    notebooks.caption(figure, f"{about}; {SPARSITY:.0%} asked for")
notebooks.picture(figure, f"Blocks found by distance and mass kept by row, {about}")

# %% [markdown]
# Recall and kept mass of every head that was stored. A head with low recall and high kept mass misses blocks
# that hardly count. A head with both low is where the loss comes from.

# %% tags=["hide-input"]
lines = []
for layer, head in heads:
    t, _, w, f = look(layer, head, SPARSITY)
    far = w & (distance >= max(1, len(t) // 4))
    lines.append(
        {
            "layer": layer,
            "head": head,
            "recall": (w & f).sum() / w.sum(),
            "recall, far quarter": (far & f).sum() / far.sum() if far.any() else np.nan,
            "mass kept by the gate": t[f].sum() / t.sum(),
            "mass kept by the target": t[w].sum() / t.sum(),
        }
    )
of_heads = pd.DataFrame(lines)
display(of_heads.style.hide().format("{:.0%}", subset=list(of_heads.columns[2:]), na_rep="none wanted"))

# %% [markdown]
# ## All heads, all documents
#
# The maps are of one document. The recall rows cover every layer and head over several documents, for each
# method at equal sparsities, compared with the oracle (the top-k rule on the true map). An untrained gate and
# fixed patterns show how much one gets without training.


# %% tags=["hide-input"]
def heat(rows, value):
    """Return the means over documents as [layer, head]."""
    return rows.pivot_table(index="layer", columns="head", values=value, aggfunc="mean")


run_of_recall, recall = notebooks.with_rows(runs, "recall")
asked = sorted(recall.sparsity_requested.dropna().unique())
at = min(asked, key=lambda sparsity: abs(sparsity - SPARSITY))
here = recall[(recall.sparsity_requested == at) & (recall.context == recall.context.max())]
names = {
    key: colors.display(*key)
    for key in here[["method", "gate"]].drop_duplicates().itertuples(index=False, name=None)
}
with rc_context(style.STYLE):
    figure, axes = style.figure(2, len(names), 3.2, sharex=True, sharey=True, squeeze=False)
    for column, ((method, gate), name) in enumerate(names.items()):
        same_gate = here.gate == gate if isinstance(gate, str) else here.gate.isna()
        for line, value in enumerate(("recall", "mass")):
            ax = axes[line * len(names) + column]
            drawn = ax.imshow(
                heat(here[(here.method == method) & same_gate], value),
                vmin=0,
                vmax=1,
                cmap="viridis",
                aspect="auto",
            )
            ax.grid(False)
            ax.locator_params(integer=True)
        axes[column].set_title(textwrap.fill(name, 14, break_long_words=False), fontsize=6)
        axes[len(names) + column].set_xlabel("head")
    axes[0].set_ylabel("recall\nlayer")
    axes[len(names)].set_ylabel("kept mass\nlayer")
    figure.colorbar(drawn, ax=list(axes), shrink=0.8)
    about_rows = (
        f"{at:.0%} asked for, context {style.size(here.context.max())}. {frames.label(run_of_recall, here)}"
    )
    notebooks.caption(figure, about_rows)
notebooks.picture(figure, "Recall and kept mass by layer and head, one column per method")

# %% [markdown]
# The heads in which the trained gates lose most, by kept mass. Pick these above, if their maps were stored.

# %%
trained = here[(here.method == "seer") & ~here.gate.str.contains("untrained", na=True)]
worst = (
    trained.groupby(["gate", "layer", "head"])[["recall", "mass", "sparsity_realised"]].mean().sort_values("mass")
)
display(worst.head(8).reset_index().style.hide().format("{:.0%}", subset=["recall", "mass", "sparsity_realised"]))

# %% [markdown]
# Documents differ too. Below: the mean over layers and heads of each document, with the spread within a
# document as a line. If the documents of a gate are scattered widely, it has learned some texts and not others.

# %% tags=["hide-input"]
by_document = here.groupby(["method", "gate", "document"], dropna=False)[["recall", "mass"]].mean().reset_index()
with rc_context(style.STYLE):
    figure, axes = style.figure(1, 2, 2.4)
    for ax, value in zip(axes, ("recall", "mass")):
        for place, (method, gate) in enumerate(names):
            same_gate = by_document.gate == gate if isinstance(gate, str) else by_document.gate.isna()
            points = by_document[(by_document.method == method) & same_gate][value]
            ax.plot([points.min(), points.max()], [place, place], color=colors.colour(method), linewidth=0.8)
            ax.plot(points, np.full(len(points), place), colors.marker(method), color=colors.colour(method))
        ax.set_yticks(range(len(names)), names.values())
        ax.set_xlabel({"recall": "recall", "mass": "kept mass"}[value])
    axes[1].set_yticklabels([])
    notebooks.caption(figure, about_rows)
notebooks.picture(figure, "Recall and kept mass of each document, one line per method")
