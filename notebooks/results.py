# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Results: every artefact, the numbers behind it, and what they mean
#
# SeerBench asks one question: how much attention can be skipped in a long prefill, at what loss, and how much
# time does that save? The answers come first, then what they rest on. The notebook measures nothing: it reads rows
# (parquet, one fact per row) and computes every number from them. Each artefact is drawn from one run: the one that
# the notebook was executed for, or else the published run of the strongest scale. Its caption names machine, date
# and commit.

# %% tags=["hide-input"]
import importlib
from functools import cache

import pandas as pd
from IPython.display import HTML, Markdown, display

from seerbench.artefacts import ARTEFACTS, aggregates, colors, table_format
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows
from seerbench.report import artefact_sections, claims_section, notebooks, verdicts
from seerbench.rows.timings import timings

own, published = notebooks.own_run(), notebooks.published()
runs = notebooks.own_first(own, published)
paper = paper_values()
notebooks.overview(runs).style.hide()

# %% [markdown]
# A run has what one preset measured on one machine. A small model on a CPU shows which method finds
# the right blocks; it says nothing about the speed of a GPU. A run of kernels shows how much time is saved, and
# nothing about loss. The column *scale* says what the numbers of a run are about.


# %% tags=["hide-input"]
@cache
def measured(name):
    """Return (run, frame) pairs: the frame of an artefact from every machine that measured it, fresh runs first."""
    pairs, machines = [], set()
    for run in runs:
        machine = tuple(run.table("runs").device.unique())
        if machine in machines:
            continue
        try:
            pairs.append((run, importlib.import_module(f"seerbench.artefacts.{name}").collect(run, paper)))
        except MissingRows:
            continue
        machines.add(machine)
    return pairs


def show(name, every=False):
    """Draw an artefact with its notes, from the first run that has it or from every one; long tables are folded."""
    entry, module = ARTEFACTS[name], importlib.import_module(f"seerbench.artefacts.{name}")
    pairs = measured(name)
    for run, frame in pairs if every else pairs[:1]:
        if entry.kind == "figure":
            display(notebooks.picture(module.draw(frame), f"{name}: {entry.title}; {run.folder.name}"))
            continue
        for table in artefact_sections.tables(name, frame):
            display(HTML(table))
        notes = [*module.remarks(frame), *table_format.notes(frame)]
        display(Markdown("\n".join(f"- {note}" for note in notes)))
    if not pairs:
        print(f"no run here has rows for {name}")
    elif len(pairs) > 1 and not every:
        others = ", ".join(run.folder.name for run, _ in pairs[1:])
        display(Markdown(f"Other runs have it too: {others}. `show({name!r}, every=True)` draws all of them."))


# %% [markdown]
# ## Loss against time
#
# This figure shows loss against speed-up on the same model, text and masks, with and without the time of block
# selection. Points further right and lower are better. It needs a run with both at one context.

# %%
show("pareto")

# %% [markdown]
# ### How far can I go?
#
# The next tables have, for each method and context, the highest realised sparsity at which the whole 95% interval
# of the loss is at most 0.02 nats per token. In an empty cell, no measured sparsity meets that.

# %%
ACCEPTABLE = 0.02  # nats per token, 2% of perplexity; choose your own

for run, frame in measured("table1"):
    rows = frame[(frame.source == "measured") & (frame.metric == "perplexity") & frame.delta.notna()]
    rows = rows[(rows.delta_high <= ACCEPTABLE) & (rows.method != "dense")]
    rows = rows.assign(method=[colors.display(method, gate) for method, gate in zip(rows.method, rows.gate)])
    highest = rows.pivot_table(index="method", columns="context", values="sparsity_realised", aggfunc="max")
    shares = highest.map(lambda share: "" if pd.isna(share) else f"{share:.0%}").reset_index()
    title = f"{run.folder.name}: blocks skipped at a loss of at most {ACCEPTABLE} nats per token"
    display(shares.style.hide().set_caption(title))

# %% [markdown]
# ### From which sparsity is it faster?
#
# For each run, sweep, context and method, the next table has the lowest requested sparsity at which the whole
# interval of the speed-up is above 1, and the speed-up at the highest measured sparsity. "Never" means that no
# measured sparsity is faster.

# %% tags=["hide-input"]
SWEEPS = {"kernel": "attend", "methods": "total", "ttft": "ttft"}

lines = []
for run in runs:
    cells, samples = timings(run)
    for sweep, stage in SWEEPS.items():
        # Of the two kinds of masks, only random ones are shown here.
        of_sweep = cells[(cells.sweep == sweep) & (cells["mask"] != "gate-shaped")]
        if of_sweep.empty:
            continue
        speed = aggregates.speedups(of_sweep, samples[samples.run_id.isin(of_sweep.run_id)], stage)
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
                    "at the highest": f"{most.sparsity_requested:.0%}: {interval}",
                }
            )
crossing = pd.DataFrame(lines, columns=["run", "sweep", "context", "method", "over", "pays from", "at the highest"])
order = {sweep: place for place, sweep in enumerate(SWEEPS)}
crossing = crossing.sort_values(["run", "sweep", "context"], key=lambda x: x.map(order) if x.name == "sweep" else x)
display(HTML(artefact_sections.table(crossing)))

# %% [markdown]
# ## What is lost when blocks are skipped
#
# Figure 4 shows perplexity against the share of skipped blocks. Table 1 has these numbers with the baselines at
# equal sparsity. The perplexities of documents differ far more than a method changes any of them, so compare the
# *loss*: nats per token above dense on the same documents. 0.01 nats per token are 1% of perplexity.

# %%
show("fig4")
# %%
show("table1")

# %%
show("losses")

# %% [markdown]
# A loss says little if the model would not miss its distant text. The next figure scores the same
# tokens with more and more text before them.

# %%
show("context_use")

# %% [markdown]
# Perplexity is an average over all tokens, and most tokens depend mainly on nearby ones. Look-up
# tasks need one distant block. Which rows are sparse decides what they show: where the last rows are dense, the
# rows that ask read everything, and a simple look-up says little about the choice of blocks. Compare only methods
# of one protocol; a name says so where the last rows are dense.

# %%
show("table2")
# %% [markdown]
# RULER asks at any length, and its needles have a depth. The maps show where a method still finds them; the table
# has all tasks, of which variable tracking and word counts need more than the rows that ask.

# %%
show("needle")
# %%
show("ruler")
# %% [markdown]
# ## Are they the right blocks?
#
# *Recall* is the share of the oracle's blocks, those with the largest weights, that a method keeps. *Kept mass* is
# the share of the attention map in the blocks that it keeps. A method can have a low recall and still lose
# little, if the blocks that it misses hold little attention. The notebook `gates` shows single heads.

# %%
show("recall")
# %%
show("fig7")
# %% [markdown]
# ## What makes a good gate
#
# Figure 10 compares all 49 poolings of Q and K. Figure 9 compares gates with and without RoPE beyond their training
# length. Table 3 compares training gate and model together with training the gate afterwards. An ordering means
# nothing where intervals overlap: the next cell counts the poolings whose interval overlaps that of the best one.

# %%
show("fig10")
for _, frame in measured("fig10"):
    rows = frame[(frame.source == "measured") & frame.y.notna()]
    for sparsity, group in rows.groupby("sparsity_requested"):
        best = group.loc[group.y.idxmin()]
        overlapping = (group.low <= best.high).sum() - 1
        print(f"at {sparsity:.0%}: best {best.gate}; {overlapping} of {len(group) - 1} others overlap its interval")

# %%
show("ablation")
# %%
show("budget")

# %%
show("fig9")
# %%
show("table3")
# %% [markdown]
# ## What time is saved
#
# Three times are often confused. *Kernel* is the sparse attention alone, for given blocks. *Method* includes
# block selection. *End to end* is the whole prefill, with the parts that sparse attention cannot shorten. Each
# speed-up is the median over rounds of dense time / method time, over FlashAttention-2 where that runs and over
# torch's own dense kernel elsewhere.

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
# ## Decoding
#
# A new token may read some blocks of the cache instead of all. The first figure shows how much faster a step of one
# layer is, the second what is lost. How the prompt was prefilled is a choice of its own; where a line does not say
# otherwise, the prefill is dense.

# %%
show("decode")
# %%
show("decode_quality")
# %% [markdown]
# ## The paper's claims
#
# A claim is a sentence of the paper with a number or an ordering. Code judges each claim from all runs
# (`seerbench/report/verdicts.py`): the run of the strongest scale decides, and what the others say is listed below.
# *Contradicted* means that the measured interval excludes what the paper says. *Undecided* means that it does not,
# or that a part of what the claim speaks of was not measured.

# %% tags=["claims", "hide-input"]
display(HTML(claims_section.section(verdicts.judge(published, own))))

# %% [markdown]
# ## What is not here
#
# These artefacts have no rows in any run above. Each line says which rows they need.

# %%
for name in ARTEFACTS:
    if not measured(name):
        needs = ", ".join(f"{table}/{part}" for table, part in ARTEFACTS[name].needs)
        print(f"{name} ({ARTEFACTS[name].title}): needs {needs}")
