"""present."""

from __future__ import annotations

from typing import Any

import pandas as pd

from seerbench.rows import bootstrap


def summary(cells: pd.DataFrame, samples: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A line a method and cell: median ms, quartiles, speed-up over `reference` with its 95% interval, TFLOP/s.

    of_dense: TFLOP/s over those of the fastest dense kernel in the same cell, the ceiling of a sparse one: at 1
    a kept block costs what it costs there.
    """
    lines = []
    for _, group in cells.groupby(["context", "cell"], sort=False):
        first = group.iloc[0]
        here = samples[(samples.cell == first.cell) & samples.stage.isin(["attend", "total"])]
        times = {}
        for name, part in here.groupby("method"):
            stage = "total" if "total" in set(part.stage) else "attend"
            times[name] = part[part.stage == stage].set_index("round").ms
        rate = {
            row.method: row.flops / times[row.method].median() / 1e9
            for row in group.itertuples()
            if row.method in times
        }
        ceiling = max(
            (rate[row.method] for row in group.itertuples() if row.mask == "dense" and row.method in rate),
            default=float("nan"),
        )
        asked = group.sparsity_requested.max()
        for row in group.itertuples():
            line = {
                "context": row.context,
                "sparsity_requested": asked,
                "sparsity_realised": row.sparsity_realised,
                "method": row.method,
                "implementation": row.implementation,
                "status": row.status,
                "reason": row.reason,
                "reference": reference,
            }
            if row.method in times:
                line |= dict(zip(("ms", "ms_q1", "ms_q3"), bootstrap.median_iqr(times[row.method])))
                line |= {"peak_mib": row.peak_mib, "tflops": rate[row.method], "rounds": len(times[row.method])}
                line["of_dense"] = rate[row.method] / ceiling
                if reference in times and row.method != reference:
                    speed = bootstrap.paired_speedup(times[reference], times[row.method])
                    line |= dict(zip(("speedup", "low", "high"), speed))
            lines.append(line)
    columns = ["ms", "ms_q1", "ms_q3", "peak_mib", "tflops", "rounds", "of_dense", "speedup", "low", "high"]
    frame = pd.DataFrame(lines)
    return frame.reindex(columns=[*frame.columns, *(name for name in columns if name not in frame)])


def table(frame: pd.DataFrame) -> str:
    """The summary for a terminal: a block a cell."""
    reference = frame.reference.iloc[0]
    lines = []
    for (context, sparsity), group in frame.groupby(["context", "sparsity_requested"], sort=False, dropna=False):
        lines.append(f"context {context}, {sparsity:.0%} of the blocks to be skipped")
        lines.append(
            f"  {'method':<22}{'skipped':>8}{'median ms':>11}{'quartiles':>20}"
            f"{'speed-up over ' + reference:>34}{'TFLOP/s':>10}{'of dense':>10}{'peak MiB':>10}"
        )
        for row in group.itertuples():
            if row.status != "measured":
                lines.append(f"  {row.method:<22}{row.status.replace('_', ' ')}: {row.reason}")
                continue
            speed = "-" if pd.isna(row.speedup) else speed_up(row)
            lines.append(
                f"  {row.method:<22}{row.sparsity_realised:>8.1%}{row.ms:>11.3f}"
                f"{f'{row.ms_q1:.3f} to {row.ms_q3:.3f}':>20}{speed:>34}{row.tflops:>10.3f}"
                f"{row.of_dense:>10.0%}{row.peak_mib:>10.1f}"
            )
    return "\n".join(lines)


def speed_up(row: Any) -> str:
    """A line of the summary's speed-up with its interval; below 1, two digits that count."""
    number, low, high = (f"{x:.2f}" if x >= 1 else f"{x:#.2g}" for x in (row.speedup, row.low, row.high))
    return f"{number}x [{low}, {high}]"


def figure(frame: pd.DataFrame, title: str) -> Any:
    """Speed-up against realised sparsity, a panel a context."""
    from matplotlib import rc_context

    from seerbench.artefacts import colors, style

    contexts = sorted(frame.context.unique())
    with rc_context(style.STYLE):
        fig, axes = style.figure(1, len(contexts), 3.0, sharey=True)
        for ax, context in zip(axes, contexts):
            here = frame[(frame.context == context) & (frame.method != frame.reference)]
            for method, rows in here.groupby("method", sort=False):
                points = rows.assign(x=rows.sparsity_realised, y=rows.speedup, source="measured")
                style.line(ax, points, colors.display(method), method)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set(title=f"context {style.size(context)}", xlabel="blocks skipped (realised)")
            ax.set_ylim(bottom=0)
            ax.legend()
        axes[0].set_ylabel(f"speed-up over {frame.reference.iloc[0]} (x)")
        style.caption(fig, frame.assign(label=title), "Bands: 95% over rounds. Below 1: slower.")
    return fig


def below(frame: pd.DataFrame, name: str, least: float) -> pd.DataFrame:
    """The cells in which `name` is slower than `least` times the reference, its whole interval below it.

    A cell in which either was not measured is among them: what could not be compared did not pass.
    """
    high = frame.high.fillna(frame.speedup)
    return frame[(frame.method == name) & ~(high >= least)]
