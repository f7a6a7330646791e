# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Results: every artefact, the numbers behind it, and what they mean
#
# How much of attention can be skipped in a long prefill, what does that cost in quality, and how much time does
# it really save? This notebook answers in that order. It measures nothing: it reads rows (parquet, one fact per
# row) and computes all numbers from them. Each artefact is drawn once for every machine below that measured it;
# its caption names machine, date and commit.

# %%
import importlib
from functools import cache

import pandas as pd
from IPython.display import Markdown, display

from seerbench.artefacts import ARTEFACTS, aggregates, colors, frames, table_format
from seerbench.errors import ResultsError
from seerbench.report import notebooks
from seerbench.report import verdicts as report_verdicts

runs = notebooks.runs()
paper = frames.paper_values()
notebooks.overview(runs).style.hide()

# %% [markdown]
# A run contains what one preset measured on one machine. A small model on a CPU can tell which method finds the
# right blocks, and nothing about a GPU's speed. A run of kernels tells what time is saved, and nothing about
# quality. So read the *scale* column first.


# %% tags=["hide-input"]
@cache
def measured(name):
    """Return (run, frame) of an artefact for every machine that measured it, fresh runs before published ones."""
    found, machines = [], set()
    for run in runs:
        machine = tuple(run.table("runs").device.unique())
        if machine in machines:
            continue
        try:
            found.append((run, importlib.import_module(f"seerbench.artefacts.{name}").collect(run, paper)))
        except ResultsError:
            continue  # this run has no rows for it
        machines.add(machine)
    return found


def show(name):
    """Draw an artefact with its notes, once per machine."""
    entry, module = ARTEFACTS[name], importlib.import_module(f"seerbench.artefacts.{name}")
    for run, frame in measured(name):
        if entry.kind == "figure":
            display(notebooks.picture(module.draw(frame), f"{name}: {entry.title}; {run.folder.name}"))
            continue
        for source in ("measured", "paper"):
            if not (frame.source == source).any():
                continue
            block = module.render(frame[frame.source == source])
            said = [column for column in block if not block[column].isin([table_format.ABSENT, ""]).all()]
            display(block[said].style.hide().set_caption(f"{entry.title}: {source}"))
        display(Markdown("\n".join(f"- {note}" for note in [*module.remarks(frame), *table_format.notes(frame)])))
    if not measured(name):
        print(f"no run here has rows for {name}")


# %% [markdown]
# ## What is lost when blocks are skipped
#
# Figure 4 shows perplexity against sparsity. Table 1 has the same numbers, with the baselines at equal
# sparsity. Perplexities of different documents differ far more than a method changes any one of them, so
# compare the *loss*: nats per token over dense on the same documents. 0.01 nats is 1% in perplexity.

# %%
show("fig4")
# %%
show("table1")

# %% [markdown]
# Usually the question is the reverse one: how much can be skipped? Below, for each method and context, the
# highest sparsity whose loss is at most 0.02 nats with its whole 95% interval. An empty cell: none of the
# measured sparsities.

# %%
BEARABLE = 0.02  # nats per token, 2% in perplexity; choose your own

for run, frame in measured("table1"):
    known = frame[(frame.source == "measured") & (frame.metric == "perplexity") & frame.delta.notna()]
    fine = known[(known.delta_high <= BEARABLE) & (known.method != "dense")]
    fine = fine.assign(method=[colors.display(method, gate) for method, gate in zip(fine.method, fine.gate)])
    furthest = fine.pivot_table(index="method", columns="context", values="sparsity_realised", aggfunc="max")
    shares = furthest.map(lambda share: "" if pd.isna(share) else f"{share:.0%}").reset_index()
    display(shares.style.hide().set_caption(f"{run.folder.name}: skipped at a loss of at most {BEARABLE} nats"))

# %% [markdown]
# Perplexity averages over all tokens, and most tokens need only nearby blocks. Retrieval tasks need one far
# block, and show what perplexity does not.

# %%
show("table2")
# %% [markdown]
# ## Are they the right blocks?
#
# Recall compares the chosen blocks with the oracle's: those with the most attention. *Kept mass* weighs each
# block by its attention. A method can have low recall and yet lose little, if the missed blocks have little
# weight. The notebook `gates` shows single heads.

# %%
show("recall")
# %%
show("fig7")
# %% [markdown]
# ## What makes a good gate
#
# Figure 10 compares all 49 poolings of Q and K. Figure 9 asks whether the gate needs RoPE beyond its training
# length. Table 3 asks whether training gate and model together keeps more quality than training the gate
# afterwards. Look at the intervals before believing an order: the cell below counts how many poolings cannot be
# distinguished from the best one.

# %%
show("fig10")
for _, frame in measured("fig10"):
    known = frame[(frame.source == "measured") & frame.y.notna()]
    for sparsity, group in known.groupby("sparsity_requested"):
        best = group.loc[group.y.idxmin()]
        alike = (group.low <= best.high).sum()
        print(f"at {sparsity:.0%}: best {best.gate}; the intervals of {alike} of {len(group)} reach its own")

# %%
show("ablation")

# %%
show("fig9")
# %%
show("table3")
# %% [markdown]
# ## What time is saved
#
# There are three different questions. *Kernel*: sparse attention alone, with given blocks. *Method*: choosing
# the blocks included. *End to end*: the whole prefill, with the parts that sparse attention does not shorten.
# Each speed-up is the median over rounds of dense / method within the round, where dense is FlashAttention-2 if
# it runs and torch's own dense kernel otherwise.

# %%
show("fig1")
# %%
show("fig6")
# %%
show("fig5")
# %%
show("methods")
# %%
show("table4")
# %%
show("fig8")
# %% [markdown]
# ### From which sparsity on is it faster?
#
# For each run, sweep, context and method: the lowest requested sparsity whose speed-up has its whole interval
# above 1, and the speed-up at the highest measured sparsity. "Never" is an answer too: in short contexts there
# is little to save.

# %% tags=["hide-input"]
SWEEPS = {"kernel": "attend", "methods": "total", "ttft": "ttft"}

lines = []
for run in runs:
    cells, samples = run.table("cells"), run.table("samples")
    for sweep, stage in SWEEPS.items():
        here = cells[cells.sweep == sweep]
        if here.empty:
            continue
        speed = aggregates.speedups(here, samples[samples.run_id.isin(here.run_id)], stage)
        speed = speed[(speed.status == "measured") & speed.sparsity_requested.notna()]
        for (context, method), group in speed.groupby(["context", "method"], sort=False):
            pays, most = group[group.low > 1], group.loc[group.sparsity_requested.idxmax()]
            interval = f"{most.value:.2f}x [{most.low:.2f}, {most.high:.2f}]"
            lines.append(
                {
                    "run": run.folder.name,
                    "sweep": sweep,
                    "context": context,
                    "method": colors.display(method),
                    "over": most.base,
                    "pays from": f"{pays.sparsity_requested.min():.0%}" if len(pays) else "never",
                    "at most": f"{most.sparsity_requested:.0%}: {interval}",
                }
            )
crossing = pd.DataFrame(lines, columns=["run", "sweep", "context", "method", "over", "pays from", "at most"])
order = {sweep: place for place, sweep in enumerate(SWEEPS)}
crossing = crossing.sort_values(["run", "sweep", "context"], key=lambda x: x.map(order) if x.name == "sweep" else x)
display(crossing[~crossing.method.str.contains("gate-shaped")].style.hide())

# %% [markdown]
# ## Loss against time
#
# Both on the same model, text and masks: what a method loses against what it saves, with and without the time
# to choose the blocks. Better is lower and further right. If a run has no context with both, nothing is drawn.

# %%
show("pareto")

# %% [markdown]
# ## The paper's claims
#
# Each sentence of the paper with a number or an ordering in it, judged by code (`seerbench/report/verdicts.py`)
# from the rows of the run that reaches the longest context. "Not reproduced" includes undecided claims: an
# interval that contains the bound.

# %%
verdicts = report_verdicts.judge(runs)
display(pd.Series([one.verdict for one in verdicts]).value_counts().rename("claims").to_frame())
pd.DataFrame(
    [{"claim": f"{one.id}: {one.claim}", "verdict": one.shown, "finding": one.finding} for one in verdicts]
).style.hide().set_properties(**{"white-space": "normal", "min-width": "9rem", "vertical-align": "top"})

# %% [markdown]
# ## What is not here
#
# Artefacts that no run above has rows for, and the rows that they need:

# %%
for name in ARTEFACTS:
    if not measured(name):
        needs = ", ".join(f"{table}/{part}" for table, part in ARTEFACTS[name].needs)
        print(f"{name} ({ARTEFACTS[name].title}): needs {needs}")
