# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Kernels: from the reference to Hopper
#
# This notebook shows block-sparse attention four times: as a definition, as a loop over lists of blocks in plain
# torch, as a portable Triton kernel, and as a kernel for the tensor cores of one GPU. Then it compares their
# measured times. The first three sections run on any machine; the times are read from rows.

# %%
import ast
import re

import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib import rc_context

from seerbench.artefacts import aggregates, colors, labels, style
from seerbench.core.block_mask import BlockMask
from seerbench.core.reference import reference_attention, repeat_kv
from seerbench.core.tolerance import error_and_budget
from seerbench.paths import ROOT
from seerbench.report import notebooks
from seerbench.rows import requests
from seerbench.rows.timings import timings

torch.manual_seed(0)
runs = notebooks.runs()


def listing(path, name):
    """Return the source of one function, read from its file as text."""
    text = (ROOT / path).read_text(encoding="utf-8")
    node = next(node for node in ast.parse(text).body if getattr(node, "name", None) == name)
    return Markdown(f"`{path}`, `{name}`\n\n```python\n{ast.get_source_segment(text, node)}\n```")


def card(path):
    """Return the docstring of a module, read from its file as text."""
    return Markdown(
        f"`{path}`\n\n```text\n{ast.get_docstring(ast.parse((ROOT / path).read_text(encoding='utf-8')))}\n```"
    )


notebooks.overview(runs).style.hide()

# %% [markdown]
# ## 1. The reference
#
# Softmax attention over the kept blocks, by definition, in float64. It builds the whole attention map, so it is
# slow and its memory grows with the square of the length. Every kernel is compared with it.

# %%
listing("seerbench/core/reference.py", "reference_attention")

# %% [markdown]
# ## 2. The block mask: lists of kept blocks
#
# A block mask says which key blocks each query block reads, for each query head. It has one count and one
# ascending list of block indices per row. The work is proportional to the number of entries: a kernel that
# follows a list never reads a skipped block.

# %%
kept = torch.tensor(
    [[1, 0, 0, 0],
     [0, 1, 0, 0],
     [1, 0, 1, 0],
     [0, 1, 0, 1]], dtype=torch.bool,
)  # fmt: skip
mask = BlockMask.from_dense(kept.expand(1, 4, 4, 4), tokens=60, block_q=16, block_k=16)
print("counts ", mask.kv_num_blocks[0, 0].tolist())
print("indices", mask.kv_indices[0, 0].tolist(), "(entries beyond a row's count are not read)")
print(f"skipped {1 - mask.density():.0%} of the causal blocks; the last block has {60 - 48} tokens")

# %% [markdown]
# ## 3. Online softmax over a list
#
# For a tile of query rows, the loop keeps the largest score so far (`m`), the sum of exponentials (`l`) and the
# output (`o`), the last two relative to `m`. If a new block of keys raises `m`, `l` and `o` are multiplied by
# `exp(old m - new m)`. The attention map is never stored. This is FlashAttention's recurrence, and every kernel
# below is this loop.


# %%
def walk(q, k, v, mask):
    """Compute block-sparse attention in plain torch: q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D]."""
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    out = torch.zeros_like(q)
    n, scale = q.shape[2], q.shape[-1] ** -0.5
    for b, h, row in torch.cartesian_prod(*map(torch.arange, mask.kv_num_blocks.shape)).tolist():
        rows = torch.arange(row * mask.block_q, min(n, (row + 1) * mask.block_q))
        m = torch.full((len(rows), 1), -1e30)  # Finite, since inf - inf is NaN in a row without a visible key.
        l, o = torch.zeros(len(rows), 1), torch.zeros(len(rows), q.shape[-1])  # noqa: E741
        for block in mask.kv_indices[b, h, row, : mask.kv_num_blocks[b, h, row]].tolist():
            keys = torch.arange(block * mask.block_k, min(n, (block + 1) * mask.block_k))
            scores = (q[b, h, rows] @ k[b, h, keys].T * scale).masked_fill(keys > rows[:, None], -torch.inf)
            larger = torch.maximum(m, scores.amax(1, keepdim=True))
            weights, alpha = (scores - larger).exp(), (m - larger).exp()
            m, o = larger, o * alpha + weights @ v[b, h, keys]
            l = l * alpha + weights.sum(1, keepdim=True)  # noqa: E741
        out[b, h, rows] = o / l.clamp(min=1e-30)
    return out


q, k, v = torch.randn(1, 4, 60, 32), torch.randn(1, 2, 60, 32), torch.randn(1, 2, 60, 32)
exact, rounded = reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, torch.float32)[0]
error, budget = error_and_budget(walk(q, k, v, mask), exact, rounded)
print(f"error {error:.2e}, budget {budget:.2e}: {'right' if error <= budget else 'wrong'}")

# %% [markdown]
# The budget is derived, not chosen: the error of a kernel against float64 may be at most twice the
# error of the same mathematics in the kernel's dtype. It needs no constant per dtype that could be loosened. Keys
# that are wrong by 2% exceed it clearly:

# %%
wrong = walk(q, k * 1.02, v, mask)
error, budget = error_and_budget(wrong, exact, rounded)
print(f"keys off by 2%: error {error:.2e}, budget {budget:.2e}: {'right' if error <= budget else 'wrong'}")

# %% [markdown]
# ## 4. Portable Triton
#
# The Triton kernel is this loop, with one program per tile of query rows. The additions save time. Programs that
# read the same keys run next to each other. Exponentials have base 2. Lists ascend, so only their last entries
# can cross the diagonal, and the first of two loops need not compare positions.

# %%
listing("kernels/block_sparse/triton.py", "_inner_loop")

# %% [markdown]
# ## 5. Hopper
#
# On an H100 or H200, a warp that alternates between loading and computing leaves the tensor cores idle. In the
# Gluon kernel, different warps load and compute:

# %%
card("kernels/block_sparse/hopper.py")

# %% [markdown]
# ## 6. Measured times
#
# All kernels were timed in the same rounds on the same inputs. *x* is the median over rounds of dense time /
# kernel time, over FlashAttention-2 where that runs. *TFLOP/s* count kept blocks only. *of dense* is that
# rate divided by the rate of the fastest dense kernel in the same cell. At 100%, a kept block costs as much
# time as in the dense kernel, and only skipping more blocks makes the kernel faster.

# %%
timed = [run for run in runs if (requests.rows(run, "cells").sweep == "kernel").any()]
on_gpu = [run for run in timed if requests.rows(run, "cells").implementation.isin(["sdpa-flash", "triton"]).any()]
run = (on_gpu or timed)[0]
cells, samples = timings(run, "kernel")
cells = cells[cells.status == "measured"]
notebooks.overview([run]).style.hide()

# %% tags=["hide-input"]
faster = aggregates.speedups(cells, samples, "attend")
median = samples.groupby(["run_id", "cell", "method"]).ms.median().rename("ms").reset_index()
keys = ["context", "method", "sparsity_requested", "sparsity_realised"]
ladder = cells.merge(median, on=["run_id", "cell", "method"])
ladder = ladder.merge(
    # A dense kernel is timed in several cells.
    faster[[*keys, "value", "low", "high", "base"]].drop_duplicates(keys),
    on=keys,
    how="left",
)
ladder["tflops"] = ladder.flops / ladder.ms / 1e9
dense_rate = ladder[ladder["mask"] == "dense"].groupby("cell").tflops.max().rename("ceiling")
ladder = ladder.join(dense_rate, on="cell")
ladder["share"] = ladder.tflops / ladder.ceiling

context = 32768 if 32768 in set(ladder.context) else ladder.context.max()
most = min(ladder.sparsity_requested.dropna(), key=lambda sparsity: abs(sparsity - 0.9))
# Of the two kinds of masks, only random ones are shown here.
ladder = ladder[ladder["mask"] != "gate-shaped"]
rungs = ladder[(ladder.context == context) & (ladder.sparsity_requested.isin([most]) | (ladder["mask"] == "dense"))]
rungs = rungs.drop_duplicates(["method"]).sort_values("ms", ascending=False)
comparison = pd.DataFrame(
    {
        "kernel": [colors.display(method) for method in rungs.method],
        "implementation": rungs.implementation,
        "skipped": rungs.sparsity_realised.map("{:.0%}".format),
        "ms": rungs.ms.map("{:.3g}".format),
        "x": [
            "the reference" if pd.isna(line.value) else f"{line.value:.2f} [{line.low:.2f}, {line.high:.2f}]"
            for line in rungs.itertuples()
        ],
        "TFLOP/s": rungs.tflops.map("{:.3g}".format),
        "of dense": rungs.share.map("{:.0%}".format),
    }
)
display(comparison.style.hide().set_caption(f"context {style.size(context)}, requested sparsity {most:.0%}"))

# %% [markdown]
# Left: the rate on kept blocks. If the line of a kernel falls towards high sparsity, a part of its
# work does not shrink with the number of blocks, probably launches, lists, and the beginning and end of each row.
# Right: the speed-up, with the ideal 1 / (1 - skipped) dashed. A kernel above the dashed line has a higher rate
# than the dense kernel that it is compared with.

# %% tags=["hide-input"]
plain = ladder[ladder.context == context]
base, kernel_of = plain.base.dropna().iloc[0], plain.drop_duplicates("method").set_index("method").implementation
with rc_context(style.STYLE):
    figure, (left, right) = style.figure(1, 2, 3.0)
    for method, line in plain[plain["mask"] != "dense"].groupby("method", sort=False):
        line = line.sort_values("sparsity_realised")
        look = {"color": colors.color(method), "marker": colors.marker(method), "label": colors.display(method)}
        left.plot(line.sparsity_realised, line.tflops, **look)
        right.plot(line.sparsity_realised, line.value, **look)
        right.fill_between(line.sparsity_realised, line.low, line.high, color=look["color"], alpha=style.BAND)
    for method, line in plain[plain["mask"] == "dense"].groupby("method", sort=False):
        left.axhline(line.tflops.median(), color=colors.color(method), linestyle=":", label=colors.display(method))
    skipped = torch.linspace(0, float(plain.sparsity_realised.max()), 50)
    right.plot(skipped, 1 / (1 - skipped), "--", color="0.6", label="1 / (1 - skipped)")
    left.set(
        xlabel="blocks skipped",
        ylabel="TFLOP/s on kept blocks",
        ylim=(0, None),
        title=f"rate, {style.size(context)}",
    )
    right.set(xlabel="blocks skipped", ylabel="speed-up (x)", title=f"over {base} ({kernel_of[base]})")
    left.legend(fontsize=5)
    right.legend(fontsize=5)
    notebooks.caption(figure, str(labels.label(run, cells, timed=True)))
notebooks.picture(figure, "Rate on kept blocks and speed-up against sparsity, one line per kernel")

# %% [markdown]
# The next table has this speed-up at each context. In short contexts the fixed cost of a launch is
# probably a larger part of the time.

# %%
table = ladder[ladder.sparsity_requested == most].assign(kernel=lambda frame: frame.method.map(colors.display))
table = table.pivot_table(index="kernel", columns="context", values="value")
table.columns = [style.size(context) for context in table.columns]
display(table.map("{:.2f}x".format).reset_index().style.hide().set_caption(f"speed-up at {most:.0%}"))

# %% [markdown]
# ## 7. The kernel that makes the training target
#
# The gate is trained to predict the dense attention map, pooled to blocks. The naive computation holds the whole
# map in memory. The training kernel takes the maximum of each block during FlashAttention's loop.

# %% tags=["hide-input"]
candidates = [each for each in runs if (requests.rows(each, "cells").sweep == "training_kernel").any()]
if candidates:
    training_run = next((each for each in candidates if each.folder == run.folder), candidates[0])
    of_training, samples_of_training = timings(training_run, "training_kernel")
    times = aggregates.latencies(of_training, samples_of_training)
    memory = of_training.set_index(["method", "context"]).peak_mib
    lines = [
        {
            "context": style.size(line.context),
            "kernel": colors.display(line.method),
            "implementation": line.implementation,
            "ms": "" if pd.isna(line.value) else f"{line.value:.3g} [{line.low:.3g}, {line.high:.3g}]",
            "peak MiB": "" if pd.isna(line.value) else f"{memory[line.method, line.context]:,.0f}",
            "reason": line.reason if isinstance(line.reason, str) else "",
        }
        for line in times.sort_values(["context", "value"]).itertuples()
    ]
    display(pd.DataFrame(lines).style.hide().set_caption(str(labels.label(training_run, of_training, timed=True))))

# %% [markdown]
# ## 8. What did not work
#
# [docs/LOG.md](../docs/LOG.md) has every experiment with its prediction and result. These are the kernel
# experiments with a negative outcome:

# %%
index = re.findall(
    r"^\| ([\d-]+) \| (.*?) \| \[(.*?)\]\(#.*\) \| - \|$",
    (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8"),
    re.M,
)
display(Markdown("\n".join(f"- {date}: {title}" for date, tags, title in index if "[kernel]" in tags)))
