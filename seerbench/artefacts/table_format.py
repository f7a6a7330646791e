"""The form of every table: numbers with their intervals, a grid from a frame, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from seerbench.artefacts import colors, frames, gate_sets
from seerbench.rows.gate_ref import UNTRAINED

ABSENT = "-"  # Shown where the frame has no line for a place in the grid.


def number(value: float, low: float = math.nan, high: float = math.nan, sign: bool = False) -> str:
    """Return "12.34 [12.10, 12.60]", with as many digits as the width of the interval supports, at most 3.

    A number without an interval has two digits, as the paper prints them. sign: show a plus as well.
    """
    mark = "+" if sign else ""
    if math.isnan(low):
        return f"{value:{mark}.2f}"
    half_width = max((high - low) / 2, abs(value) * 1e-4, 1e-3)
    digits = min(3, max(0, 1 - math.floor(math.log10(half_width))))
    value_text, *ends = (f"{x:{mark}z.{digits}f}" for x in (value, low, high))  # z: no minus before a zero
    return f"{value_text} [{', '.join(ends)}]"


def in_brackets(share: float) -> str:
    """Return " (0.90)" for a known sparsity, and nothing for an unknown one."""
    return "" if math.isnan(share) else f" ({share:.2f})"


def requested(entry: pd.Series) -> str:
    """Return the requested sparsity of a line of a frame.

    It is "own" for a method that takes none, the threshold of a gate that selects by it, and empty for a method
    that was not measured.
    """
    if entry.method == "dense":
        return "0.00"
    if pd.notna(entry.get("threshold")):
        return f"threshold {entry.threshold:g}"
    if math.isnan(entry.sparsity_requested):
        return "" if entry.status == "missing" else "own"
    return f"{entry.sparsity_requested:.2f}"


def grid(
    frame: pd.DataFrame,
    rows: dict[str, str],
    column: str,
    cell: Callable[[pd.Series], str],
    heading: Callable[[Any], str] = str,
    noted: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return a frame of strings with one line per value of the columns `rows` and one column per value of `column`.

    rows: name of a column -> heading. cell, heading: how a line of the frame and a value of `column` are written.
    noted: the frame for which `notes` are written, where `frame` is only a part of it.
    Lines keep the order of the frame; columns are sorted if they are numbers. A place without a line holds
    ABSENT. A place that was not measured holds its status and the number of the note with its reason.
    """
    reasons = _reasons(frame if noted is None else noted)
    frame = frame[frame.reason != frames.NOT_HERE]
    values = list(dict.fromkeys(frame[column].dropna()))
    values = sorted(values) if frame[column].dtype.kind in "fi" else values
    lines = []
    for key, group in frame.groupby(list(rows), sort=False, dropna=False):
        line = dict(zip(rows.values(), ("" if pd.isna(part) else part for part in key)))
        line |= {heading(value): ABSENT for value in values}
        for _, entry in group[group[column].notna()].iterrows():
            line[heading(entry[column])] = _unmeasured(entry, reasons) or cell(entry)
        lines.append(line)
    return pd.DataFrame(lines)


def _reasons(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return each pair of status and reason for which a cell is empty, once, in the order of the frame."""
    empty = frame[~frame.status.isin(["measured", "printed", "missing"])]
    return list(dict.fromkeys((entry.status, entry.reason or "no reason given") for entry in empty.itertuples()))


def _unmeasured(entry: pd.Series, reasons: list[tuple[str, str]]) -> str | None:
    """Return what the grid holds in place of a number, or None if the line has one."""
    if entry.status in ("measured", "printed"):
        return None
    if entry.status == "missing":
        return entry.reason
    note = reasons.index((entry.status, entry.reason or "no reason given")) + 1
    return f"{entry.status.replace('_', ' ')}, note {note}"


def notes(frame: pd.DataFrame) -> list[str]:
    """Return the notes under a table: where its numbers come from, then the numbered reasons of empty cells."""
    reasons = [
        f"Note {place}: {status.replace('_', ' ')}: {reason}."
        for place, (status, reason) in enumerate(_reasons(frame), 1)
    ]
    unmeasured = frame[frame.reason == frames.NOT_HERE].method.unique()
    if len(unmeasured):
        reasons.append(f"Not in this run: {', '.join(map(colors.display, unmeasured))}.")
    absent = f"{ABSENT}: neither the paper nor this run has this number."
    return [*(f"{text}." for text in frame.label.dropna().unique()), *reasons, absent]


def method_name(entry: pd.Series) -> str:
    """Return the name of the method of a line, as tables show it."""
    return colors.display(entry.method, entry.get("gate"))


def ordered(frame: pd.DataFrame, *then: str) -> pd.DataFrame:
    """Return the lines sorted: the paper before this run, then by method, trained gates first, then by `then`."""
    keys = pd.DataFrame(
        {"block": (frame.source != "paper").astype(int), "rank": frame.method.map(colors.rank)}, frame.index
    )
    gates = frame.gate.fillna("").astype(str) if "gate" in frame else pd.Series("", frame.index)
    untrained = gate_sets.is_set(gates, UNTRAINED)
    keys = keys.assign(method=frame.method, untrained=untrained, gate=gates).join(frame[[*then]])
    return frame.loc[keys.sort_values(list(keys), kind="stable").index].reset_index(drop=True)


def markdown(title: str, cells: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return a frame of strings as a Markdown table with its title above and its notes below."""
    body = cells.to_markdown(index=False, disable_numparse=True)
    return f"**{title}**\n\n{body}\n\n" + "".join(f"- {note}\n" for note in notes)


def latex(name: str, title: str, cells: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return a frame of strings as a LaTeX table of the width of the text; it needs booktabs and graphicx."""
    styler = cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    body = styler.to_latex(hrules=True, column_format="l" * cells.shape[1])
    below = " ".join(_escaped(note) for note in notes)
    return (
        "% needs \\usepackage{booktabs,graphicx}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{_escaped(title)}}}\n\\label{{tab:{name}}}\n"
        f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body.rstrip()}%\n}}\n"
        f"\\par\\footnotesize\\raggedright {below}\n\\end{{table}}\n"
    )


def _escaped(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
