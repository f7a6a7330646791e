"""Present a comparison: the findings in words, a summary of the timings, a table for the terminal, a figure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd

from seerbench.compare.trials import Finding
from seerbench.rows import bootstrap
from seerbench.rows.schema import DISTURBED

# Columns of the summary that only measured rows have.
NUMBERS = ("ms", "ms_q1", "ms_q3", "peak_mib", "tflops", "rounds", "of_dense", "speedup", "low", "high")


def explain(findings: Iterable[Finding]) -> str:
    """Return the findings in words: the first one of each guess.

    If a common mistake is recognised, only recognised findings are shown: the other trials then fail for the same
    reason, and their own guesses would mislead.
    """
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.guess, finding)
    recognised = [finding for finding in first.values() if finding.recognised]
    return "\n".join(map(describe, recognised or first.values()))


def describe(finding: Finding) -> str:
    """Return a finding in four lines: the trial, the error, the place and the guess."""
    problem = finding.trial.problem
    return "\n".join(
        (
            f"{finding.trial.title}: {problem.context} tokens, batch {problem.batch}, blocks of {problem.block_q}, "
            f"{problem.q_heads} query over {problem.kv_heads} key/value heads of {problem.head_dim}, "
            f"{problem.dtype}",
            f"    error  {finding.error:.2e}, allowed {finding.budget:.2e}",
            f"    where  {finding.where}",
            f"    guess  {finding.guess}",
        )
    )


def summary(
    cells: pd.DataFrame, samples: pd.DataFrame, reference: str, inputs: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return one line per method and cell, with the median time and the speed-up over a reference method.

    Columns besides those of `cells`: ms (the median), ms_q1 and ms_q3 (the quartiles), tflops (TFLOP/s), of_dense
    (tflops divided by that of the fastest dense kernel in the cell: at 1, a kept block costs what it costs there),
    speedup with low and high (95% interval over rounds), rounds (their number), and the inputs in words.

    Args:
        cells: rows of the table `cells`.
        samples: their samples; the stage total counts where a method has it, else attend.
        reference: the method that speed-ups are over.
        inputs: cell -> its inputs in words, for cells whose context and sparsity do not say all.
    """
    lines = []
    for (_, cell), group in cells.groupby(["context", "cell"], sort=False):
        here = samples[(samples.cell == group.cell.iloc[0]) & samples.stage.isin(["attend", "total"])]
        times = {}
        for name, timed in here.groupby("method"):
            stage = "total" if "total" in set(timed.stage) else "attend"
            times[name] = timed[timed.stage == stage].set_index("round").ms
        rates = {
            row.method: row.flops / times[row.method].median() / 1e9
            for row in group.itertuples()
            if row.method in times
        }
        dense_rates = [
            rates[row.method] for row in group.itertuples() if row.mask == "dense" and row.method in rates
        ]
        fastest_dense = max(dense_rates, default=float("nan"))
        requested = group.sparsity_requested.max()
        for row in group.itertuples():
            line = {
                "cell": cell,
                "inputs": (inputs or {}).get(str(cell), ""),
                "context": row.context,
                "sparsity_requested": requested,
                "sparsity_realised": row.sparsity_realised,
                "method": row.method,
                "implementation": row.implementation,
                "status": row.status,
                "reason": row.reason,
                "reference": reference,
            }
            if row.method in times:
                ms = times[row.method]
                line |= dict(zip(("ms", "ms_q1", "ms_q3"), bootstrap.median_iqr(ms)))
                line |= {"peak_mib": row.peak_mib, "tflops": rates[row.method], "rounds": len(ms)}
                line["of_dense"] = rates[row.method] / fastest_dense
                if reference in times and row.method != reference:
                    speedup = bootstrap.paired_speedup(times[reference], ms)
                    line |= dict(zip(("speedup", "low", "high"), speedup))
            lines.append(line)
    frame = pd.DataFrame(lines)
    return frame.reindex(columns=[*frame.columns, *(name for name in NUMBERS if name not in frame)])


def table(frame: pd.DataFrame) -> str:
    """Return the summary as text for a terminal: one block of lines per cell."""
    reference = frame.reference.iloc[0]
    lines = []
    for _, group in frame.groupby("cell", sort=False):
        lines.append(heading(group.iloc[0]))
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


def heading(row: Any) -> str:
    """Return what the cell of a line of the summary measures: context, requested sparsity, inputs."""
    asked = "" if pd.isna(row.sparsity_requested) else f", {row.sparsity_requested:.0%} of the blocks to be skipped"
    return f"context {row.context}{asked}{', ' * bool(row.inputs)}{row.inputs}"


def speed_up(row: Any) -> str:
    """Return the speed-up of a line of the summary with its interval; below 1, with two significant digits."""
    number, low, high = (f"{x:.2f}" if x >= 1 else f"{x:#.2g}" for x in (row.speedup, row.low, row.high))
    return f"{number}x [{low}, {high}]"


def figure(frame: pd.DataFrame, title: str) -> Any:
    """Return a figure of speed-up against realised sparsity, one panel per context.

    On random inputs a kernel is a line. Captured masks have no order, so there it is one point per mask.
    """
    from matplotlib import rc_context  # imported here: matplotlib is an optional dependency

    from seerbench.artefacts import colors, style

    contexts, captured = sorted(frame.context.unique()), frame.inputs.ne("").any()
    with rc_context(style.STYLE):
        fig, axes = style.figure(1, len(contexts), 3.0, sharey=True)
        for ax, context in zip(axes, contexts):
            here = frame[(frame.context == context) & (frame.method != frame.reference)]
            for method, rows in here.groupby("method", sort=False):
                points = rows.assign(x=rows.sparsity_realised, y=rows.speedup, source="measured")
                if captured:
                    _points(ax, points[points.y.notna()], str(method))
                else:
                    style.line(ax, points, colors.display(method), method)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set(title=f"context {style.size(context)}", xlabel="blocks skipped (realised)")
            ax.set_ylim(bottom=0)
            ax.legend()
        axes[0].set_ylabel(f"speed-up over {frame.reference.iloc[0]} (x)")
        what = "One point per mask; bars" if captured else "Bands"
        style.caption(fig, frame.assign(label=title), f"{what}: 95% over rounds. Below 1: slower.")
    return fig


def _points(ax: Any, points: pd.DataFrame, method: str) -> None:
    """Draw the speed-ups of one kernel with their intervals; `points` is a frame with x, y, low and high."""
    from seerbench.artefacts import colors

    intervals = [points.y - points.low, points.high - points.y]
    look = {"color": colors.color(method), "fmt": colors.marker(method), "markersize": 4, "elinewidth": 0.8}
    ax.errorbar(points.x, points.y, yerr=intervals, label=colors.display(method), **look)


def below(frame: pd.DataFrame, name: str, limit: float) -> pd.DataFrame:
    """Return the lines of the summary in which a method failed a speed limit.

    It fails where the whole interval of its speed-up is below the limit, and where it or the reference was not
    measured. Lines that are `not_judged` are not among them.

    Args:
        frame: the summary.
        name: the method.
        limit: the smallest speed-up over the reference that passes.
    """
    high = frame.high.fillna(frame.speedup)
    return frame[(frame.method == name) & ~(high >= limit)].drop(index=not_judged(frame, name).index)


def not_judged(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the lines of a method that have no speed-up because it or the reference was disturbed.

    The column `reason` says by what.

    Args:
        frame: the summary.
        name: the method.
    """
    reasons: dict[Hashable, str] = {}
    for _, cell in frame.groupby("cell"):
        compared = cell[cell.method.isin([name, cell.reference.iloc[0]])]
        disturbed = compared[compared.status == DISTURBED]
        if len(disturbed):
            lines = compared[(compared.method == name) & compared.status.isin(["measured", DISTURBED])]
            reasons |= dict.fromkeys(lines.index, disturbed.reason.iloc[0])
    return frame.loc[list(reasons)].assign(reason=list(reasons.values()))
