# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Gates: which blocks they choose, and which they miss
#
# A gate reads pooled Q and K and predicts which key blocks each query block needs. It is trained on the *target*:
# the attention map of the dense model, reduced to one number per block by its maximum and normalised in each row.
# This notebook shows single heads: the target, the gate's prediction, which of the target's blocks the gate keeps
# at a sparsity, and how much attention the missed blocks hold. It measures nothing; it reads the rows of `seerbench
# maps` and `seerbench recall`.

# %%
import textwrap
from itertools import pairwise

import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import rc_context
from matplotlib.colors import ListedColormap, LogNorm

from seerbench.artefacts import colors, gate_sets, labels, style
from seerbench.core.top_k import top_k_count
from seerbench.report import notebooks
from seerbench.rows.gate_ref import UNTRAINED

runs = notebooks.runs()
run, maps = notebooks.with_rows(runs, "maps")
notebooks.overview([run]).style.hide()

# %% [markdown]
# ## Pick a head
#
# The run recorded the maps of these heads. Choose a head and a sparsity in the next cell, and run the notebook
# again: in Jupyter (with jupytext installed), or with `seerbench notebook notebooks/gates.py`.

# %%
heads = maps[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"]).to_numpy().tolist()
print("recorded (layer, head):", ", ".join(f"({layer}, {head})" for layer, head in heads))

LAYER, HEAD = heads[-1]
SPARSITY = 0.7


# %% tags=["hide-input"]
def square(blocks, column):
    """Return a column of one head's rows as a map [query block, key block], with 0 above the diagonal."""
    count = int(blocks[["row", "column"]].to_numpy().max()) + 1
    values = np.zeros((count, count))
    values[blocks.row, blocks.column] = blocks[column]
    return np.tril(values)


def chosen(values, sparsity):
    """Apply the paper's top-k rule: each row keeps its k best causal blocks; of equal ones, the first."""
    count = len(values)
    causal = np.tril(np.ones((count, count), bool))
    order = np.argsort(np.where(causal, -values, np.inf), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    return (ranks < top_k_count(count, sparsity)) & causal


def look(layer, head, sparsity):
    """Return the target and the prediction of one head, and the blocks that the top-k rule keeps of each."""
    blocks = maps[(maps.layer == layer) & (maps["head"] == head)]
    target, predicted = square(blocks, "target"), square(blocks, "predicted")
    return target, predicted, chosen(target, sparsity), chosen(predicted, sparsity)


target, predicted, wanted, kept = look(LAYER, HEAD, SPARSITY)
first = maps.iloc[0]
place = f"{first.context} tokens in blocks of {first.block}; {first.document}"
head_label = f"layer {LAYER}, head {HEAD}; gate {first.gate}; {place}"

# %% [markdown]
# Left and middle: the share of its row that each block holds, on one logarithmic scale. Right: the blocks that are
# kept at the sparsity above. Found: kept by the gate and by the target. Missed: kept only by the target. Needless:
# kept only by the gate.

# %% tags=["hide-input"]
with rc_context(style.STYLE):
    figure, axes = style.figure(1, 3, 2.9, sharex=True, sharey=True)
    for ax, values, title in zip(axes, (target, predicted), ("target", "gate")):
        visible = np.where(np.tri(len(values), dtype=bool), np.clip(values, 1e-3, 1), np.nan)
        drawn = ax.imshow(visible, cmap="magma_r", norm=LogNorm(1e-3, 1))
        ax.set(title=title, xlabel="key block")
    outcome = np.where(wanted & kept, 1, np.where(wanted, 2, np.where(kept, 3, np.nan)))
    outcomes = {"found": "#009E73", "missed": "#D55E00", "needless": "#BBBBBB"}
    axes[2].imshow(outcome, cmap=ListedColormap(list(outcomes.values())), vmin=1, vmax=3, interpolation="nearest")
    axes[2].set(title=f"kept blocks at {SPARSITY:.0%}", xlabel="key block")
    for name, color in outcomes.items():
        axes[2].plot([], [], "s", color=color, label=name)
    axes[2].legend(loc="upper right")
    axes[0].set_ylabel("query block")
    for ax in axes:
        ax.grid(False)
    figure.colorbar(drawn, ax=list(axes[:2]), shrink=0.7, label="share of the row")
    notebooks.caption(figure, f"{head_label}. {labels.label(run, maps)}")
notebooks.picture(figure, f"Target, prediction and kept blocks of {head_label}")

# %% [markdown]
# ## Where are blocks missed?
#
# *Recall* is the share of the target's blocks that the gate also keeps. *Missed mass* is the share of the pooled
# attention that the missed blocks hold. By distance from the diagonal, the two distinguish a gate that misses
# distant blocks from one that only leaves out blocks with little attention.

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
            "found": (wanted & kept & here).sum() / count if count else np.nan,
            "missed mass": target[wanted & ~kept & here].sum() / target.sum(),
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
    row_mass = np.maximum(target.sum(1), 1e-12)
    for blocks, color, name in (
        (kept, "#0072B2", "kept by the gate"),
        (wanted, "black", "kept by the target"),
        (wanted & ~kept, "#D55E00", "missed"),
    ):
        right.plot(np.arange(len(target)), (target * blocks).sum(1) / row_mass, color=color, label=name)
    right.set(xlabel="query block", ylabel="share of the row's mass", ylim=(0, 1.02))
    right.legend()
    notebooks.caption(figure, f"{head_label}; requested sparsity {SPARSITY:.0%}")
notebooks.picture(figure, f"Blocks found by distance and mass kept by row, {head_label}")

# %% [markdown]
# The next table has one line per recorded head. If a head has a low recall and a high kept mass, the blocks that it
# misses hold little attention. If both are low, the head loses attention and probably contributes to the loss.

# %% tags=["hide-input"]
lines = []
for layer, head in heads:
    of_head, _, by_target, by_gate = look(layer, head, SPARSITY)
    far = by_target & (distance >= max(1, len(of_head) // 4))
    lines.append(
        {
            "layer": layer,
            "head": head,
            "recall": (by_target & by_gate).sum() / by_target.sum(),
            "recall, more than a quarter away": (far & by_gate).sum() / far.sum() if far.any() else np.nan,
            "mass kept by the gate": of_head[by_gate].sum() / of_head.sum(),
            "mass kept by the target": of_head[by_target].sum() / of_head.sum(),
        }
    )
of_heads = pd.DataFrame(lines)
display(of_heads.style.hide().format("{:.0%}", subset=list(of_heads.columns[2:]), na_rep="none wanted"))

# %% [markdown]
# ## All heads, all documents
#
# The maps are of one document. The recall rows have every layer and head over several documents, for each method at
# the same sparsities. They compare with the oracle, which applies the top-k rule to the true map. An untrained gate
# and fixed patterns show the recall that needs no training.


# %% tags=["hide-input"]
def heat(rows, value):
    """Return the means over documents as a table [layer, head]."""
    return rows.pivot_table(index="layer", columns="head", values=value, aggfunc="mean")


run_of_recall, recall = notebooks.with_rows(runs, "recall", status="measured")
recall = recall[recall.task.isna()]  # windows of text, not of look-ups
at = min(recall.sparsity_requested.dropna().unique(), key=lambda sparsity: abs(sparsity - SPARSITY))
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
    context = style.size(here.context.max())
    recall_label = f"requested sparsity {at:.0%}, context {context}. {labels.label(run_of_recall, here)}"
    notebooks.caption(figure, recall_label)
notebooks.picture(figure, "Recall and kept mass by layer and head, one column per method")

# %% [markdown]
# These are the heads at which the trained gates keep the least mass. Pick them above if their maps were recorded.

# %%
trained = here[(here.method == "seer") & ~gate_sets.is_set(here.gate, UNTRAINED)]
worst = (
    trained.groupby(["gate", "layer", "head"])[["recall", "mass", "sparsity_realised"]].mean().sort_values("mass")
)
display(worst.head(8).reset_index().style.hide().format("{:.0%}", subset=["recall", "mass", "sparsity_realised"]))

# %% [markdown]
# Documents differ too. Each marker below is the mean of one document over layers and heads; the line spans all
# documents of a method. If the markers of a gate scatter widely, it predicts some texts better than others.

# %% tags=["hide-input"]
by_document = here.groupby(["method", "gate", "document"], dropna=False)[["recall", "mass"]].mean().reset_index()
with rc_context(style.STYLE):
    figure, axes = style.figure(1, 2, 2.4)
    for ax, value in zip(axes, ("recall", "mass")):
        for place, (method, gate) in enumerate(names):
            same_gate = by_document.gate == gate if isinstance(gate, str) else by_document.gate.isna()
            points = by_document[(by_document.method == method) & same_gate][value]
            ax.plot([points.min(), points.max()], [place, place], color=colors.color(method), linewidth=0.8)
            ax.plot(points, np.full(len(points), place), colors.marker(method), color=colors.color(method))
        ax.set_yticks(range(len(names)), names.values())
        ax.set_xlabel({"recall": "recall", "mass": "kept mass"}[value])
    axes[1].set_yticklabels([])
    notebooks.caption(figure, recall_label)
notebooks.picture(figure, "Recall and kept mass of each document, one line per method")
