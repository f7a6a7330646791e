"""How every table looks: numbers with their intervals, a grid from a frame, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import pandas as pd

from seerbench.artefacts import colors

ABSENT = "-"  # a place in the grid for which the frame has no line at all


def number(value: float, low: float = math.nan, high: float = math.nan, sign: bool = False) -> str:
    """ "12.34 [12.10, 12.60]"; the digits follow the interval, two where there is none (as printed)."""
    mark = "+" if sign else ""
    if math.isnan(low):
        return f"{value:{mark}.2f}"
    half = max((high - low) / 2, abs(value) * 1e-4, 1e-3)
    digits = min(3, max(0, 1 - math.floor(math.log10(half))))
    return f"{value:{mark}.{digits}f} [{low:{mark}.{digits}f}, {high:{mark}.{digits}f}]"


def share(value: float) -> str:
    """ " (0.90)" for a known sparsity, nothing for an unknown one."""
    return "" if math.isnan(value) else f" ({value:.2f})"


def asked(entry: pd.Series) -> str:
    """The requested sparsity; "own" for a method that takes none, nothing for a cell that was not measured."""
    if entry.method == "dense":
        return "0.00"
    if math.isnan(entry.sparsity_requested):
        return "" if entry.status == "missing" else "own"
    return f"{entry.sparsity_requested:.2f}"


def grid(
    frame: pd.DataFrame,
    rows: dict[str, str],
    column: str,
    cell: Callable[[pd.Series], str],
    heading: Callable[[Hashable], str] = str,
) -> pd.DataFrame:
    """One line for each value of the columns `rows` (name -> heading), one column for each of `column`.

    Lines keep the frame's order, columns are sorted where they are numbers. A place of which the frame
    says nothing shows ABSENT; one that was not measured shows its status and the number of its note.
    """
    reasons = _reasons(frame)
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
    empty = frame[~frame.status.isin(["measured", "printed", "missing"])]
    return list(dict.fromkeys((entry.status, entry.reason or "no reason given") for entry in empty.itertuples()))


def _unmeasured(entry: pd.Series, reasons: list[tuple[str, str]]) -> str | None:
    if entry.status in ("measured", "printed"):
        return None
    if entry.status == "missing":
        return entry.reason
    place = reasons.index((entry.status, entry.reason or "no reason given")) + 1
    return f"{entry.status.replace('_', ' ')}, note {place}"


def notes(frame: pd.DataFrame) -> list[str]:
    """Whose numbers they are, then the numbered reasons of empty cells."""
    reasons = [
        f"Note {place}: {status.replace('_', ' ')}: {reason}."
        for place, (status, reason) in enumerate(_reasons(frame), 1)
    ]
    blank = f"{ABSENT}: a cell that neither the paper nor this run has."
    return [*(f"{text}." for text in frame.label.dropna().unique()), *reasons, blank]


def method(entry: pd.Series) -> str:
    """The method as a table names it."""
    return colors.display(entry.method, entry.get("gate"))


def ordered(frame: pd.DataFrame, *then: str) -> pd.DataFrame:
    """The paper's block first, then the measured one; methods in their order, then by `then`."""
    keys = pd.DataFrame(
        {"block": (frame.source != "paper").astype(int), "rank": frame.method.map(colors.rank)}, frame.index
    )
    gates = frame.gate.fillna("").astype(str) if "gate" in frame else pd.Series("", frame.index)
    keys = keys.assign(method=frame.method, bare=gates.str.contains("untrained"), gate=gates).join(frame[[*then]])
    return frame.loc[keys.sort_values(list(keys), kind="stable").index].reset_index(drop=True)


def markdown(title: str, shown: pd.DataFrame, notes: Sequence[str]) -> str:
    """The table as GitHub shows it, notes below."""
    body = shown.to_markdown(index=False, disable_numparse=True)
    return f"**{title}**\n\n{body}\n\n" + "".join(f"- {note}\n" for note in notes)


def latex(name: str, title: str, shown: pd.DataFrame, notes: Sequence[str]) -> str:
    """A table float with booktabs rules, as wide as the text; needs booktabs and graphicx."""
    styler = shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    body = styler.to_latex(hrules=True, column_format="l" * shown.shape[1])
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
