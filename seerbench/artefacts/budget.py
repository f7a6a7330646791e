"""Figure beyond the paper: the loss of a gate over the number of tokens that it was trained on.

The gates of the jobs JOBS differ in the number of training steps alone. If the loss still falls at the largest
budget, part of it is due to too short a training. If it does not, more training would not help.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style
from seerbench.errors import MissingRows
from seerbench.rows import bootstrap
from seerbench.rows.gate_ref import UNTRAINED
from seerbench.rows.store import Run

# Gate jobs of these names train their sets with the same settings, for longer and longer (config/README.md).
JOBS = ("sixteenth", "quarter", "long", "longer")
UNGATED = ("oracle", "streaming")  # Methods without training, drawn as horizontal lines.


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per gate and requested sparsity: tokens of training (x) and nats per token above dense (y).

    The series is the gate set; only sets with at least two budgets are there. `delta` is the loss minus that of the
    same set at its smallest budget, paired by document. Methods of UNGATED have no x. Raises MissingRows if the
    experiment `gates` has no gate set with two budgets.
    """
    rows = frames.experiment(run, "perplexity", "gates", "perplexity")
    rows = rows[rows.context == rows.context.max()]
    cells = aggregates.perplexities(rows, aggregates.dense_rows(run, rows))
    cells = cells[cells.sparsity_requested.notna() & ((cells.status != "measured") | cells.delta.notna())]
    job, series = cells.gate.map(gate_sets.job_of), cells.gate.map(gate_sets.set_of)
    tokens = tokens_of(run)
    cells = cells.assign(series=series, x=[tokens.get(key) for key in zip(job, series)]).astype({"x": float})
    gates = cells[(cells.method == "seer") & job.isin(JOBS) & (series != UNTRAINED) & cells.x.notna()]
    gates = gates[gates.groupby("series").x.transform("nunique") > 1]
    if gates.empty:
        what = "a gate set with two training budgets in the experiment 'gates'"
        raise MissingRows("perplexity", what, "perplexity PRESET gates", run.folder)
    ungated = cells[cells.method.isin(UNGATED) & cells.sparsity_requested.isin(gates.sparsity_requested)]
    frame = pd.concat([gates, ungated.assign(series=ungated.method.map(colors.display))], ignore_index=True)
    frame = frame.drop(columns=["value", "low", "high"])
    frame = frame.rename(columns={"delta": "y", "delta_low": "low", "delta_high": "high"})
    frame = frame.join(_changes(frame, rows))
    frame = frame.assign(metric="loss", unit="nats", label=str(labels.label(run, rows)))
    return frames.tidy(frame.sort_values(["sparsity_requested", "x", "series"], kind="stable"))


def tokens_of(run: Run) -> dict[tuple[str, str], int]:
    """Return (gate job, gate set) -> the number of tokens that the gate was trained on."""
    training = run.table("training")
    return training[training.kind == "distill"].groupby(["name", "recipe"]).tokens.max().to_dict()


def _changes(cells: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `delta` of `collect`, with the index of those cells whose set has a smaller budget."""
    measured = rows[(rows.status == "measured") & (rows.method == "seer")]
    nll = {key: group.set_index("document").nll for key, group in measured.groupby(["gate", "sparsity_requested"])}
    changes = {}
    for (_, sparsity), of_set in cells[cells.x.notna()].groupby(["series", "sparsity_requested"]):
        known = of_set[of_set.status == "measured"].sort_values("x")
        for place, gate in list(known.gate.items())[1:]:
            changes[place] = bootstrap.paired_delta(nll[known.gate.iloc[0], sparsity], nll[gate, sparsity])
    return pd.DataFrame.from_dict(changes, orient="index", columns=aggregates.DELTAS)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per sparsity, with one line per gate set and a horizontal one per method without training."""
    sparsities = sorted(frame.sparsity_requested.unique())
    fig, axes = style.figure(1, len(sparsities), 3.2)
    gates = frame[frame.x.notna()]
    names = sorted(gates.series.unique())
    tints = dict(zip(names, colors.shades(colors.color("seer"), len(names))))
    for ax, sparsity in zip(axes, sparsities):
        for name, points in gates[gates.sparsity_requested == sparsity].groupby("series"):
            style.line(ax, points, f"gate set {name}", "seer", color=tints[str(name)])
        level = frame[frame.x.isna() & frame.y.notna() & (frame.sparsity_requested == sparsity)]
        for entry in level.itertuples():
            color = colors.color(entry.method)
            ax.axhline(entry.y, color=color, linestyle=":", label=entry.series)
            ax.axhspan(entry.low, entry.high, color=color, alpha=style.BAND / 2, linewidth=0)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sorted(gates.x.unique())))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: _millions(tokens)))
        ax.set(title=f"{sparsity:.0%} skipped (requested)", xlabel="tokens of training")
    axes[0].set_ylabel("loss over dense (nats per token)")
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    place = f"{', '.join(frame.corpus.unique())} at {style.size(frame.context.max())}"
    style.caption(
        fig,
        frame,
        f"{place}: loss above dense on the same documents. Gates of one line differ in the length of their "
        "training alone. Bands: 95% intervals over documents, paired with dense. The paper has no such figure.",
        _largest_change(gates),
    )
    return fig


def _largest_change(gates: pd.DataFrame) -> str:
    """Return in words how the loss of each set changes from its smallest budget to its largest."""
    texts = []
    for (name, sparsity), points in gates.groupby(["series", "sparsity_requested"]):
        points = points.sort_values("x")
        last = points.iloc[-1]
        if pd.notna(last.delta):
            interval = f"{last.delta:+.4f} [{last.delta_low:+.4f}, {last.delta_high:+.4f}]"
            budgets = f"{_millions(points.x.iloc[0])} to {_millions(last.x)}"
            texts.append(f"{name} at {sparsity:.0%}, {budgets}: {interval}")
    return f"Change of the loss on the same documents, in nats per token: {'; '.join(texts)}."


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.3g}M"
