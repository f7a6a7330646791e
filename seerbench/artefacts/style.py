"""How every figure looks: one style, one colour and marker a method, one caption with its labels.

Figures are plain matplotlib `Figure` objects, made without pyplot: no global state, no window. The
palette is Okabe and Ito's (2008), told apart by colour-blind readers, with a few of Paul Tol's.
Measured points are filled and joined by solid lines; the paper's are hollow and dashed.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.hashsalt": "seerbench",  # element ids that do not change from run to run
}
styled = rc_context(STYLE)  # decorates every `draw`

BAND = 0.15  # opacity of an interval
WIDTH = 7.0  # inches: two columns of a paper

# method -> (name, colour, marker), in the order of every legend and table.
METHODS: dict[str, tuple[str, str, str]] = {
    "dense": ("Dense", "#000000", "o"),
    "fa2": ("FlashAttention-2", "#000000", "h"),
    "fa3": ("FlashAttention-3", "#444444", "p"),
    "fa4": ("FlashAttention-4", "#666666", "*"),
    "cudnn": ("cuDNN", "#888888", "8"),
    "flash-attn": ("FlashAttention-2, its package", "#222222", "h"),
    "flex": ("FlexAttention", "#AAAAAA", "p"),
    "seer": ("SeerAttention", "#D55E00", "o"),
    "seer-v2": ("SeerAttention v2", "#B36A00", "o"),
    "seer-128": ("SeerAttention, 128", "#8A3C00", "o"),
    "moa": ("MoA", "#009E73", "^"),
    "minference": ("MInference", "#0072B2", "s"),
    "minference-aligned": ("MInference, whole blocks", "#4477AA", "D"),
    "minference-searched": ("MInference, searched", "#004C7A", "s"),
    "minference-v1": ("MInference, v1 mix", "#66AADD", "s"),
    "minference-upstream": ("MInference, its package", "#99C7E8", "s"),
    "flexprefill": ("FlexPrefill", "#AA4499", "<"),
    "xattention": ("XAttention", "#117733", ">"),
    "flashprefill": ("FlashPrefill", "#AA3377", "H"),
    "streaming": ("StreamingLLM", "#56B4E9", "v"),
    "oracle": ("Oracle top-k (upper bound)", "#CC79A7", "D"),
    "random": ("Random blocks (lower bound)", "#999999", "X"),
    "block_sparse": ("Block-sparse kernel", "#E69F00", "P"),
    "block_sparse-128": ("Block-sparse kernel, 128", "#8C6D1F", "P"),
    "fa4-sparse": ("FlashAttention-4 sparse", "#6A3D9A", "*"),
    "fa4-sparse-128": ("FlashAttention-4 sparse, 128", "#B294C7", "*"),
    "pooled": ("Pooled-map kernel", "#882255", "d"),
    "naive": ("Naive torch", "#999933", "<"),
}
OTHERS = ("#332288", "#117733", "#44AA99", "#AA4499", "#661100", "#6699CC")  # third parties' methods
OTHER_MARKERS = (">", "H", "p", "8")


def known(method: str) -> tuple[str, str, str] | None:
    """The entry of METHODS; "flexprefill-128" is FlexPrefill at blocks of 128, "seer+mean" has means for blocks."""
    if method in METHODS:
        return METHODS[method]
    for mark, said in (("+mean", " with means"), ("+fa4", " on FlashAttention-4")):
        if (base := known(method.replace(mark, "")) if mark in method else None) is not None:
            return base[0] + said, base[1], base[2]
    base, _, block = method.rpartition("-")
    if base in METHODS and block.isdigit():
        return f"{METHODS[base][0]}, {block}", *METHODS[base][1:]
    return None


def display(method: str, gate: str | None = None) -> str:
    """The method's name for a legend or a table, with its gate or plan where it has one.

    Of MoA's plan files the budget is left out, which the column or axis of sparsities has.
    """
    name = entry[0] if (entry := known(method)) else method
    if method == "moa" and isinstance(gate, str):
        gate = re.sub(r"-(kv)?\d\.\d\d$", "", gate)
    return f"{name} ({gate})" if isinstance(gate, str) and gate else name


def colour(method: str) -> str:
    """The method's colour, the same in all figures; an unknown method's follows from its name."""
    return entry[1] if (entry := known(method)) else OTHERS[_digest(method) % len(OTHERS)]


def marker(method: str) -> str:
    """The method's marker."""
    return (
        entry[2] if (entry := known(method)) else OTHER_MARKERS[_digest(method) // len(OTHERS) % len(OTHER_MARKERS)]
    )


def rank(method: str) -> int:
    """Its place in legends and tables; variants stand with their method, unknown methods come last."""
    names = list(METHODS)
    base = method.partition("+")[0]
    for name in (method, base, base.rpartition("-")[0]):
        if name in METHODS:
            return names.index(name)
    return len(names)


def _digest(method: str) -> int:
    return int(hashlib.sha256(method.encode()).hexdigest()[:8], 16)


def shades(base: str, count: int) -> list[tuple[float, float, float]]:
    """`count` steps from a light tint of `base` to a dark shade of it: ordered lines of one method."""
    from matplotlib.colors import to_rgb

    rgb, steps = np.array(to_rgb(base)), np.linspace(-0.55, 0.45, count) if count > 1 else [0.0]
    return [tuple(rgb + (1 - rgb) * -step if step < 0 else rgb * (1 - step)) for step in steps]


def size(tokens: float) -> str:
    """8192 -> "8k"; lengths that are no multiple of 1024 stay in tokens."""
    tokens = int(tokens)
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def figure(rows: int, columns: int, height: float, **options: object) -> tuple[Figure, np.ndarray]:
    """A figure of the full width with a grid of axes, flattened."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    return fig, np.atleast_1d(fig.subplots(rows, columns, **options)).ravel()


def context_axis(ax: Axes, contexts: Sequence[float]) -> None:
    """A log-2 axis with a tick at each length that was used."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted({float(context) for context in contexts})))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(round(value))))
    ax.set_xlabel("context (tokens)")


def log_axis(ax: Axes) -> None:
    """A log-10 y axis with plain numbers: 1, 2, 5, 10 ..."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def line(
    ax: Axes,
    points: pd.DataFrame,
    label: str,
    method: str,
    *,
    color: object = None,
    linestyle: str | None = None,
    fill: bool | None = None,
) -> None:
    """One series of `points` (x, y, low, high, source, status): line, markers, interval, unmeasured cells.

    A cell without a value is a cross on the x axis; the caption gives its reason. Hollow means the
    paper's number unless `fill` says otherwise.
    """
    points = points.sort_values("x")
    known = points[points.y.notna()]
    paper = (points.source == "paper").all()
    filled = not paper if fill is None else fill
    color = color or colour(method)
    ax.plot(
        known.x,
        known.y,
        color=color,
        marker=marker(method),
        markerfacecolor=color if filled else "white",
        markersize=6 if paper else STYLE["lines.markersize"],
        linestyle=linestyle or ("--" if paper else "-"),
        label=label,
    )
    if known.low.notna().any():
        ax.fill_between(known.x, known.low, known.high, color=color, alpha=BAND, linewidth=0)
    unknown = points[points.y.isna() & points.x.notna()]
    if len(unknown):
        where = ax.get_xaxis_transform()
        ax.plot(unknown.x, np.full(len(unknown), 0.02), "x", color=color, transform=where, clip_on=False)


def unmeasured(frame: pd.DataFrame, most: int = 3) -> list[str]:
    """A sentence a reason that a cell is empty: "MInference at 8k: refused (head_dim 48)"."""
    empty = frame[~frame.status.isin(["measured", "printed"])]
    said = []
    for (status, reason), cells in empty.groupby(["status", "reason"], sort=False, dropna=False):
        names = ", ".join(dict.fromkeys(display(method) for method in cells.method))
        contexts = ", ".join(size(context) for context in sorted(cells.context.dropna().unique()))
        at = f" at {contexts}" if contexts else ""
        because = f" ({reason})" if isinstance(reason, str) and reason else ""
        said.append(f"{names}{at}: {str(status).replace('_', ' ')}{because}")
    if len(said) > most:
        said = [*said[:most], f"{len(said) - most} more reasons stand in the CSV"]
    return [f"x on the axis: {sentence}" for sentence in said]


def caption(fig: Figure, frame: pd.DataFrame, *notes: str) -> None:
    """Under the panels: what is shown, whose numbers they are, and why cells are empty."""
    lines = [*notes, *frame.label.dropna().unique(), *unmeasured(frame)]
    wrapped = "\n".join(textwrap.fill(text, 140, subsequent_indent="    ") for text in lines)
    fig.supxlabel(wrapped, fontsize=6, color="0.35", x=0.01, ha="left", linespacing=1.4)


def say(ax: Axes, reason: str) -> None:
    """An empty panel says why it is empty."""
    ax.set_axis_off()
    place = {"ha": "center", "va": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.5, textwrap.fill(reason, 36), color="0.35", fontsize=6, **place)


@styled
def image(fig: Figure, kind: str) -> bytes:
    """The figure as "svg" or "png", the same bytes each time: no date, no version, fixed ids."""
    content = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    fig.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()
