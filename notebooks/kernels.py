# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Kernels: from the definition to Hopper
#
# Block-sparse attention in five forms: the definition, a loop over lists in torch, a portable Triton kernel, a
# kernel built around the tensor cores of one GPU, and the measurements of each. The first forms run here, on
# any machine; the measurements are read from rows.

# %%
import ast
import re

import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib import rc_context

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.core.block_mask import BlockMask
from seerbench.core.reference import reference_attention, repeat_kv
from seerbench.core.tolerance import error_and_budget
from seerbench.paths import ROOT
from seerbench.report import notebooks

torch.manual_seed(0)
runs = notebooks.runs()


def listing(path, name):
    """Show the source of one function, read as text without importing it."""
    text = (ROOT / path).read_text()
    node = next(node for node in ast.parse(text).body if getattr(node, "name", None) == name)
    return Markdown(f"`{path}`, `{name}`\n\n```python\n{ast.get_source_segment(text, node)}\n```")


def card(path):
    """Show the first lines of a file, which describe it."""
    return Markdown(f"`{path}`\n\n```text\n{ast.get_docstring(ast.parse((ROOT / path).read_text()))}\n```")


notebooks.overview(runs).style.hide()

# %% [markdown]
# ## 1. The reference
#
# Softmax attention over the kept blocks, by definition, in float64. It builds the whole map, so it is slow and
# its memory grows with the square of the length. It is correct by construction, and every kernel is compared
# with it.

# %%
listing("seerbench/core/reference.py", "reference_attention")

# %% [markdown]
# ## 2. What is kept: lists
#
# A block mask says which key blocks each query block reads, for each query head: one count and one ascending
# list per row of blocks. The work is then proportional to the number of entries, and a kernel never reads what
# was skipped.

# %%
kept = torch.tensor(
    [[1, 0, 0, 0],
     [0, 1, 0, 0],
     [1, 0, 1, 0],
     [0, 1, 0, 1]], dtype=torch.bool,
)  # fmt: skip
mask = BlockMask.from_dense(kept.expand(1, 4, 4, 4), tokens=60, block_q=16, block_k=16)
print("counts ", mask.kv_num_blocks[0, 0].tolist())
print("indices", mask.kv_indices[0, 0].tolist(), "(entries beyond a row's count do not matter)")
print(f"skipped {1 - mask.density():.0%} of the causal blocks; the last block holds {60 - 48} tokens")

# %% [markdown]
# ## 3. Online softmax over a list
#
# For a tile of query rows three things are stored: the largest score so far `m`, the sum of exponentials `l`,
# and the output `o`, both relative to `m`. If a new block of keys raises `m`, the earlier sums are multiplied
# by `exp(old m - new m)`. The map is never stored. This is FlashAttention's recurrence, and every kernel below
# is this loop.


# %%
def walk(q, k, v, mask):
    """Compute block-sparse attention in plain torch: q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D]."""
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    out = torch.zeros_like(q)
    n, scale = q.shape[2], q.shape[-1] ** -0.5
    for b, h, row in torch.cartesian_prod(*map(torch.arange, mask.kv_num_blocks.shape)).tolist():
        rows = torch.arange(row * mask.block_q, min(n, (row + 1) * mask.block_q))
        m = torch.full((len(rows), 1), -1e30)  # finite: a row that sees nothing must not give inf - inf
        l, o = torch.zeros(len(rows), 1), torch.zeros(len(rows), q.shape[-1])  # noqa: E741
        for block in mask.kv_indices[b, h, row, : mask.kv_num_blocks[b, h, row]].tolist():
            keys = torch.arange(block * mask.block_k, min(n, (block + 1) * mask.block_k))
            scores = (q[b, h, rows] @ k[b, h, keys].T * scale).masked_fill(keys > rows[:, None], -torch.inf)
            larger = torch.maximum(m, scores.amax(1, keepdim=True))
            weights, shrink = (scores - larger).exp(), (m - larger).exp()
            m, o = larger, o * shrink + weights @ v[b, h, keys]
            l = l * shrink + weights.sum(1, keepdim=True)  # noqa: E741
        out[b, h, rows] = o / l.clamp(min=1e-30)
    return out


q, k, v = torch.randn(1, 4, 60, 32), torch.randn(1, 2, 60, 32), torch.randn(1, 2, 60, 32)
exact, rounded = reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, torch.float32)[0]
error, budget = error_and_budget(walk(q, k, v, mask), exact, rounded)
print(f"error {error:.2e}, budget {budget:.2e}: {'right' if error <= budget else 'wrong'}")

# %% [markdown]
# The error budget is derived, not chosen: a kernel's error against the float64 reference may be at most twice
# the error of the same mathematics in the kernel's own precision. So there is no constant per dtype that could
# be loosened. A kernel that forgets one rescaling exceeds the budget by far:

# %%
wrong = walk(q, k * 1.02, v, mask)
error, budget = error_and_budget(wrong, exact, rounded)
print(f"keys off by 2%: error {error:.2e}, budget {budget:.2e}: {'right' if error <= budget else 'wrong'}")

# %% [markdown]
# ## 4. Portable Triton
#
# The same loop, with one program per tile of query rows. The rest serves speed: programs that read the same
# keys run at the same time, exponentials have base 2, and the loop is split. Since lists ascend, only the last
# entries can cross the diagonal, and the first of the two loops compares no positions.

# %%
listing("kernels/block_sparse/triton.py", "_inner_loop")

# %% [markdown]
# ## 5. Hopper
#
# On an H100 or H200, a warp that alternates between loading and computing leaves the tensor cores idle. The
# Gluon kernel gives the two jobs to different warps:

# %%
card("kernels/block_sparse/hopper.py")

# %% [markdown]
# ## 6. The measurements
#
# All kernels in the same rounds on the same inputs. *x* is dense / kernel within a round, where dense is
# FlashAttention-2 if it runs. *TFLOP/s* count kept blocks only. *Of the dense ceiling* is that rate divided by
# the fastest dense kernel's in the same cell: at 100% the kernel needs no more time per kept block than that
# dense kernel, and only skipping more makes it faster.

# %%
timed = [run for run in runs if (run.table("cells").sweep == "kernel").any()]
on_gpu = [run for run in timed if run.table("cells").implementation.isin(["sdpa-flash", "triton"]).any()]
run = (on_gpu or timed)[0]
cells = run.table("cells")
cells = cells[(cells.sweep == "kernel") & (cells.status == "measured")]
samples = run.table("samples")
samples = samples[samples.run_id.isin(cells.run_id)]
notebooks.overview([run]).style.hide()

# %% tags=["hide-input"]
faster = aggregates.speedups(cells, samples, "attend")
median = samples.groupby(["run_id", "cell", "method"]).ms.median().rename("ms").reset_index()
keys = ["context", "method", "sparsity_requested", "sparsity_realised"]
ladder = cells.merge(median, on=["run_id", "cell", "method"])
ladder = ladder.merge(
    faster[[*keys, "value", "low", "high", "base"]].drop_duplicates(keys),  # a dense kernel is in several cells
    on=keys,
    how="left",
)
ladder["tflops"] = ladder.flops / ladder.ms / 1e9
dense_rate = ladder[ladder["mask"] == "dense"].groupby("cell").tflops.max().rename("ceiling")
ladder = ladder.join(dense_rate, on="cell")
ladder["share"] = ladder.tflops / ladder.ceiling

context = 32768 if 32768 in set(ladder.context) else ladder.context.max()
most = min(ladder.sparsity_requested.dropna(), key=lambda sparsity: abs(sparsity - 0.9))
ladder = ladder[~ladder.method.str.contains("gate-shaped")]  # the same kernels on another kind of mask: Figure 6
rungs = ladder[(ladder.context == context) & (ladder.sparsity_requested.isin([most]) | (ladder["mask"] == "dense"))]
rungs = rungs.drop_duplicates(["method"]).sort_values("ms", ascending=False)
shown = pd.DataFrame(
    {
        "rung": [colors.display(method) for method in rungs.method],
        "implementation": rungs.implementation,
        "skipped": rungs.sparsity_realised.map("{:.0%}".format),
        "ms": rungs.ms.map("{:.3g}".format),
        "x": [
            "the reference" if pd.isna(line.value) else f"{line.value:.2f} [{line.low:.2f}, {line.high:.2f}]"
            for line in rungs.itertuples()
        ],
        "TFLOP/s": rungs.tflops.map("{:.3g}".format),
        "of the dense ceiling": rungs.share.map("{:.0%}".format),
    }
)
display(shown.style.hide().set_caption(f"context {style.size(context)}, {most:.0%} asked for"))

# %% [markdown]
# Left: the rate on kept blocks. If a kernel's line falls towards high sparsity, it has work that does not
# shrink with the number of blocks: launches, lists, the beginning and end of each row. Right: the share of the
# ideal speed-up 1 / (1 - skipped), drawn dashed. A kernel above that line is more efficient per block than the
# dense kernel that it is compared with.

# %% tags=["hide-input"]
plain = ladder[ladder.context == context]
base, kernel_of = plain.base.dropna().iloc[0], plain.drop_duplicates("method").set_index("method").implementation
with rc_context(style.STYLE):
    figure, (left, right) = style.figure(1, 2, 3.0)
    for method, line in plain[plain["mask"] != "dense"].groupby("method", sort=False):
        line = line.sort_values("sparsity_realised")
        look = {"color": colors.colour(method), "marker": colors.marker(method), "label": colors.display(method)}
        left.plot(line.sparsity_realised, line.tflops, **look)
        right.plot(line.sparsity_realised, line.value, **look)
        right.fill_between(line.sparsity_realised, line.low, line.high, color=look["color"], alpha=style.BAND)
    for method, line in plain[plain["mask"] == "dense"].groupby("method", sort=False):
        left.axhline(line.tflops.median(), color=colors.colour(method), linestyle=":", label=colors.display(method))
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
    notebooks.caption(figure, frames.label(run, cells, timed=True))
notebooks.picture(figure, "Rate on kept blocks and speed-up against sparsity, one line per kernel")

# %% [markdown]
# The speed-up against the length. In short contexts the launch of the kernel is a large part of the time; in
# long ones it is not visible.

# %%
table = ladder[ladder.sparsity_requested == most].assign(rung=lambda frame: frame.method.map(colors.display))
table = table.pivot_table(index="rung", columns="context", values="value")
table.columns = [style.size(context) for context in table.columns]
display(table.map("{:.2f}x".format).reset_index().style.hide().set_caption(f"speed-up at {most:.0%}"))

# %% [markdown]
# ## 7. The kernel that makes the training target
#
# The gate learns from the dense map pooled to blocks. A naive implementation needs the whole map in memory. The
# pooled kernel takes the maximum of each block inside FlashAttention's loop.

# %% tags=["hide-input"]
trainers = [one for one in runs if (one.table("cells").sweep == "training_kernel").any()]
if trainers:
    one = next((one for one in trainers if one is run or one.folder == run.folder), trainers[0])
    of_training = one.table("cells")
    of_training = of_training[of_training.sweep == "training_kernel"]
    times = aggregates.latencies(of_training, one.table("samples"))
    memory = of_training.set_index(["method", "context"]).peak_mib
    lines = [
        {
            "context": style.size(line.context),
            "kernel": colors.display(line.method),
            "implementation": line.implementation,
            "ms": "" if pd.isna(line.value) else f"{line.value:.3g} [{line.low:.3g}, {line.high:.3g}]",
            "peak MiB": "" if pd.isna(line.value) else f"{memory[line.method, line.context]:,.0f}",
            "why not": line.reason if isinstance(line.reason, str) else "",
        }
        for line in times.sort_values(["context", "value"]).itertuples()
    ]
    display(pd.DataFrame(lines).style.hide().set_caption(frames.label(one, of_training, timed=True)))

# %% [markdown]
# ## 8. What did not work
#
# [docs/LOG.md](../docs/LOG.md) keeps every experiment with its prediction and result. The kernel experiments
# whose outcome is negative:

# %%
index = re.findall(
    r"^\| ([\d-]+) \| (.*?) \| \[(.*?)\]\(#.*\) \| - \|$", (ROOT / "docs" / "LOG.md").read_text(), re.M
)
display(Markdown("\n".join(f"- {date}: {title}" for date, tags, title in index if "[kernel]" in tags)))
