"""Charts: numbers of an artefact as points with intervals on two axes.

An artefact whose numbers a reader wants to explore has `chart(frame) -> Chart`. The report draws it, so that each
mark can be pointed at (report/interactive.py). A chart holds the numbers of the frame and computes none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from seerbench.artefacts import style, table_format

LINEAR, LOG2, LOG10, SYMLOG = "linear", "log2", "log10", "symlog"
# The columns of `Chart.points`. `panel`: which points are shown together. `name`: of a line. `note`: what a reader
# must know of one point beside its place. The others are as in frames.COLUMNS.
POINTS = ["panel", "source", "name", "method", "note", "x", "x_low", "x_high", "y", "low", "high"]


@dataclass(frozen=True)
class Axis:
    """Describe an axis: what it shows, its scale, and how one of its numbers is written with its interval.

    scale: one of LINEAR, LOG2, LOG10 and SYMLOG, which is logarithmic but for numbers below style.LINEAR_BELOW.
    """

    title: str
    scale: str
    text: Callable[[float, float, float], str]
    tick: Callable[[float], str] = "{:g}".format


@dataclass(frozen=True)
class Chart:
    """Hold points (the columns of POINTS) with their axes. how: a sentence that says which direction is better."""

    x: Axis
    y: Axis
    how: str
    points: pd.DataFrame


def _percent(share: float, low: float, high: float) -> str:
    return f"{share:.0%} of the blocks skipped"


def _times(value: float, low: float, high: float) -> str:
    return f"{value:.3g}x dense [{low:.3g}, {high:.3g}]" if low == low else f"{value:.3g}x dense"


def _nats(value: float, low: float, high: float) -> str:
    return f"loss {table_format.number(value, low, high, sign=True)} nats per token"


def _score(percent: float, low: float, high: float) -> str:
    return f"{table_format.number(percent, low, high)}% right"


def _tokens(context: float, low: float, high: float) -> str:
    return f"context {style.size(context)}"


SKIPPED = Axis("blocks skipped (realised)", LINEAR, _percent, "{:.0%}".format)
SPEED_UP = Axis("speed-up over dense", LOG2, _times, "{:g}x".format)
LOSS = Axis("loss over dense (nats per token)", SYMLOG, _nats)

SCORE = Axis("score (%)", LINEAR, _score)
CONTEXT = Axis("context (tokens)", LOG2, _tokens, style.size)


def scores(frame: pd.DataFrame, place: pd.Series, last_rows: pd.Series) -> Chart:
    """Return scores in percent over the share of skipped blocks, with one panel per place and protocol.

    last_rows: whether the last block rows of a line are sparse or dense. It is empty for dense methods, which are
    in the panels of both protocols.
    """
    parts = []
    for rows in last_rows[last_rows != ""].unique():
        shown = last_rows.isin([rows, ""])
        parts.append(points(frame[shown], panel=place[shown] + f", last rows {rows}"))
    return Chart(SKIPPED, SCORE, "Right skips more and up is better.", pd.concat(parts, ignore_index=True))


def points(frame: pd.DataFrame, **columns: pd.Series | list[str] | str) -> pd.DataFrame:
    """Return the points of a chart: the columns of POINTS, from `columns` and otherwise from the frame.

    By default a line is a method, x is the realised sparsity, y the value and the note the requested sparsity.
    Points without a place are left out.
    """
    values = {name: frame[name] for name in POINTS if name in frame}
    values.setdefault("x", frame.sparsity_realised)
    values.setdefault("y", frame.value if "value" in frame else None)
    values["name"] = [table_format.method_name(entry) for _, entry in frame.iterrows()]
    values["note"] = frame.sparsity_requested.map(lambda share: "" if share != share else f"{share:.0%} requested")
    found = pd.DataFrame(values | columns, index=frame.index).reindex(columns=POINTS)
    return found[found.x.notna() & found.y.notna()].reset_index(drop=True)
