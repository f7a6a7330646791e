# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Two methods, side by side
#
# Which of two methods loses less, which is faster, and which finds what a prompt asks for? Both are compared on the
# same documents, in the same timed rounds and at equal sparsity, so that the differences have intervals of their
# own, far narrower than those of either method. The notebook measures nothing: it reads rows.

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import HTML, display

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style, table2, table_format
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows
from seerbench.report import artefact_sections, notebooks
from seerbench.rows import bootstrap, requests
from seerbench.rows.equal_sparsity import nll_at, realised, settings
from seerbench.rows.gate_ref import PAPER_GATE

runs = notebooks.runs()

# %% [markdown]
# ## The two names
#
# Names are those of `seerbench list`. `seer` has the paper's gate; `seer:v2` has the gate set v2. Write two others
# and run the notebook again: in Jupyter (with jupytext installed), or with
# `seerbench notebook notebooks/compare_methods.py`.

# %%
FIRST, SECOND = "seer", "streaming"


# %% tags=["hide-input"]
def only(rows, name):
    """Return the rows of one of the two methods, with one gate and where the last rows are not dense."""
    method, _, gate_set = name.partition(":")
    rows = rows[(rows.method == method) & rows.sparsity_requested.notna()]
    gates = rows.gate.map(gate_sets.set_of)
    if (gates == PAPER_GATE).any() or gate_set:
        rows = rows[gates == (gate_set or PAPER_GATE)]
    return rows[rows.gate.isna() | rows.gate.isin(rows.gate.head(1))]


def verdict(low, high, better_below, first_wins, second_wins):
    """Return which method wins by an interval of their difference or ratio."""
    if low <= better_below <= high:
        return "undecided"
    return first_wins if high < better_below else second_wins


def shown(name):
    method, _, gate_set = name.partition(":")
    return colors.display(method, gate_set)


def table(lines, none):
    """Show lines as a table, or say that there are none."""
    display(HTML(artefact_sections.table(pd.DataFrame(lines))) if lines else HTML(f"<p>{none}</p>"))


ONE, TWO = shown(FIRST), shown(SECOND)

# %% [markdown]
# ## Which loses less?
#
# *Difference*: the loss of the first minus that of the second, in nats per token, paired by document [95%
# interval]. It is at the sparsity that the second realised; the first is interpolated between its own measured
# sparsities.


# %% tags=["hide-input"]
def losses(run):
    """Return one line per text, context and sparsity that both methods cover in one run."""
    rows = requests.rows(run, "perplexity")
    rows = rows[rows.experiment == "contexts"] if len(rows) else rows
    lines = []
    if rows.empty:
        return lines
    for (corpus, context), group in rows.groupby(["corpus", "context"], sort=True):
        first, second = only(group, FIRST), only(group, SECOND)
        dense = group[(group.method == "dense") & (group.status == "measured")].set_index("document").nll
        for setting in settings(second):
            sparsity = realised(setting)
            nll, other = nll_at(first, sparsity), setting.set_index("document").nll
            if nll is None or dense.empty:
                continue
            estimate, low, high = bootstrap.paired_delta(other, nll)
            lines.append(
                {
                    "text": corpus,
                    "context": style.size(context),
                    "skipped": f"{sparsity:.0%}",
                    "verdict": verdict(low, high, 0, f"{ONE} loses less", f"{TWO} loses less"),
                    "difference": table_format.number(estimate, low, high, sign=True),
                    ONE: table_format.number(*bootstrap.paired_delta(dense, nll), sign=True),
                    TWO: table_format.number(*bootstrap.paired_delta(dense, other), sign=True),
                }
            )
    return lines


found = next(((run, lines) for run in runs if (lines := losses(run))), (None, []))
print("run:", found[0].folder.name if found[0] else "none")
table(found[1], f"No run here has losses of {ONE} and {TWO} at a common sparsity.")

# %% [markdown]
# ## Which is faster?
#
# Each time includes the choice of blocks. *Ratio*: the time of the second over that of the first in the same rounds
# [95% interval]; above 1 the first is faster. Speed-ups are over the fastest dense kernel of the machine.


# %% tags=["hide-input"]
def times(run):
    """Return one line per context and requested sparsity at which one run timed both methods in one cell."""
    try:
        cells, samples = frames.timings(run, "methods")
    except MissingRows:
        return []
    faster = aggregates.speedups(cells, samples, "total", "fastest")
    cells = cells[cells.status == "measured"]
    total = samples[samples.stage == "total"].set_index("round")
    lines = []
    for (_, run_id, cell), group in cells.groupby(["context", "run_id", "cell"], sort=True):
        methods = {name: group[group.method == name.partition(":")[0]] for name in (FIRST, SECOND)}
        if any(len(one) != 1 for one in methods.values()):
            continue
        one, two = (methods[name].iloc[0] for name in (FIRST, SECOND))
        here = total[(total.run_id == run_id) & (total.cell == cell)]
        ms = [here.ms[here.method == entry.method] for entry in (one, two)]
        estimate, low, high = bootstrap.paired_speedup(ms[1], ms[0])
        line = {
            "context": style.size(one.context),
            "verdict": verdict(-high, -low, -1, f"{ONE} is faster", f"{TWO} is faster"),
            "ratio": f"{table_format.number(estimate, low, high)}x",
        }
        for entry, name in ((one, ONE), (two, TWO)):
            same = faster[(faster.method == entry.method) & (faster.context == entry.context)]
            same = same[(same.sparsity_requested == entry.sparsity_requested) & same.value.notna()]
            speed = f"{same.value.iloc[0]:.2f}x {colors.display(same.base.iloc[0])}" if len(same) else "-"
            line[name] = f"{entry.sparsity_realised:.0%} skipped: {speed}"
        lines.append(line)
    return lines


found = next(((run, lines) for run in runs if (lines := times(run))), (None, []))
print("run:", found[0].folder.name if found[0] else "none")
table(found[1], f"No run here timed {ONE} and {TWO} in the same rounds.")

# %% [markdown]
# ## Which finds what the prompt asks for?
#
# Percent of look-ups answered correctly, mean over the tasks [95% interval]. Compare lines of one protocol only:
# where the last rows are dense, the rows that ask read everything.


# %% tags=["hide-input"]
def lookups(run):
    """Return one line per bucket, protocol and sparsity of both methods and of dense attention."""
    try:
        frame = table2.collect(run, paper_values())
    except MissingRows:
        return []
    frame = frame[(frame.source == "measured") & (frame.task == table2.MEAN) & frame.reach.isna()]
    both = [only(frame, name) for name in (FIRST, SECOND)]
    if any(part.value.notna().sum() == 0 for part in both):
        return []
    chosen = pd.concat([frame[frame.method == "dense"], *both])
    chosen = chosen[chosen.value.notna()].sort_values(["context", "last_rows_dense"], kind="stable")
    return [
        {
            "bucket": entry.bucket,
            "method": table_format.method_name(entry),
            "last rows": "dense" if entry.last_rows_dense else "sparse",
            "skipped": f"{entry.sparsity_realised:.0%}",
            "right, %": table_format.number(entry.value, entry.low, entry.high),
        }
        for _, entry in chosen.iterrows()
    ]


found = next(((run, lines) for run in runs if (lines := lookups(run))), (None, []))
print("run:", found[0].folder.name if found[0] else "none")
table(found[1], f"No run here has look-ups of {ONE} and {TWO}.")

# %% [markdown]
# ## Both in one picture
#
# The loss of both over the share of skipped blocks, at the longest context of the first run that has both.


# %% tags=["hide-input"]
@style.styled
def drawn(run):
    """Return the figure of one run, or None if it lacks one of the two."""
    rows = requests.rows(run, "perplexity")
    rows = rows[rows.experiment == "contexts"] if len(rows) else rows
    parts = {name: only(rows, name) for name in (FIRST, SECOND)} if len(rows) else {}
    if not parts or any(part[part.status == "measured"].empty for part in parts.values()):
        return None
    fig, (ax,) = style.figure(1, 1, 3.0)
    longest = min(part.context.max() for part in parts.values())
    dense = rows[(rows.method == "dense") & (rows.context == longest)]
    for name, part in parts.items():
        cells = aggregates.perplexities(part[part.context == longest], dense)
        cells = cells.rename(columns={"value": "y"}).assign(x=cells.sparsity_realised)
        style.line(ax, style.losses(cells), shown(name), name.partition(":")[0])
    ax.set(xlabel="blocks skipped (realised)", ylabel="loss over dense (nats per token)", title=style.size(longest))
    ax.legend()
    notebooks.caption(fig, str(labels.label(run, rows)))
    return fig


figure = next((fig for run in runs if (fig := drawn(run)) is not None), None)
notebooks.picture(figure, f"loss of {ONE} and {TWO} over sparsity") if figure else None
