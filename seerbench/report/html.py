"""The report: one HTML page of a run, from a stranger's questions down.

    what is this -> which method at my length and budget -> can I trust it -> how do I reproduce it -> every number

The page is self-contained and fetches nothing: its style, its scripts, its figures and its data are in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from seerbench import paths
from seerbench.artefacts import ARTEFACTS, labels, paper_numbers
from seerbench.errors import ConfigError, MissingRows, ResultsError
from seerbench.presets.load import load_preset
from seerbench.report import artefact_sections, choice, claims_section, interactive, oddities, verdicts
from seerbench.report.page_style import CSS, SCRIPT, wide
from seerbench.rows.store import Run

PAPER_LINK = "https://arxiv.org/abs/2410.13276"
WHAT = (
    f'<p><a href="{PAPER_LINK}">SeerAttention</a> makes long prompts cheaper: a small gate learns which blocks of '
    "the attention map matter, and attention is computed for these blocks alone. SeerBench measures how many "
    "blocks it and other methods can skip, what that costs in quality, and how much time it really saves.</p>"
)
ABOVE = '<p><a href="#choice">Its chart is above.</a></p>'
# What a reader of the tables must know; docs/glossary.md has all words.
WORDS = {
    "loss": "nats per token above dense attention on the same documents; 0.01 nats are 1% of perplexity",
    "blocks skipped, sparsity": "the share of the causal blocks of the attention map that is not computed",
    "requested, realised": "the sparsity that a method was asked for, and that of the plan which it computed",
    "own": "the method takes no requested sparsity and decides by itself",
    "1.02 [0.98, 1.05]": "a number with its 95% interval",
    "1.02 (0.91)": "a number with the realised sparsity",
    "SeerAttention (long:v1)": "with the gate set v1 of the gate job `long`; v1 is the paper's gate, v2 the gate "
    "of its authors' later code, and `untrained` has its initial weights",
    "oracle, random": "the blocks with the largest true attention, and random ones: controls, which do not compete",
    "last rows dense": "the last block rows, which ask the question of a look-up, read every key",
    "captured:smollm2": "the inputs of a timing were recorded in this model",
    "refused": "a method said why it cannot run a case; nothing else ran under its name",
}
# The first of these that the run has is the page's first picture.
FIRST = ("pareto", "losses", "table1", "methods", "table4")


def html(run: Run, published: Sequence[Run] = (), paper_dir: Path = paths.PAPER) -> str:
    """Return the page of one run.

    The claims are judged by the published runs and this one together (verdicts.py). An artefact without rows is
    listed with what is missing. Raises ResultsError if the run has no rows at all.
    """
    runs = run.table("runs")
    if runs.empty:
        raise ResultsError(f"{run.folder} has no rows; measure first")
    judgements = verdicts.judge(published, run, paper_dir)
    drawn, missing = _artefacts(run, paper_numbers.paper_values(paper_dir))
    charts = {name: artefact_sections.chart_of(name, frame) for name, frame in drawn.items()}
    first = next((name for name in FIRST if charts.get(name)), None)
    picture = charts[first] if first else ""
    charts |= {first: ABOVE} if first else {}
    others = [other for other in published if other.folder.resolve() != run.folder.resolve()]
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><title>SeerBench report</title>',
            f'<style>{CSS}{interactive.CSS}</style></head><body><header id="top"><h1>SeerBench report</h1>{WHAT}',
            f'<p class="label">This page: {escape(labels.label(run, runs).text)}. '
            f"{escape(verdicts.headline(judgements))}.</p></header>",
            '<nav class="bar" aria-label="Sections"><a href="#choice">Which method?</a>'
            '<a href="#claims">Can I trust it?</a>'
            '<a href="#reproduce">Reproduce it</a><a href="#artefacts">Tables and figures</a>'
            '<a href="#cost">Cost</a><a href="#top">Top</a></nav><main>',
            '<section><h2 id="choice">Which method, at my length and budget?</h2>',
            f"<p>{escape(artefact_sections.heading(first))}.</p>" if first else "",
            picture,
            f"{choice.section([run, *others])}</section>",
            '<section><h2 id="claims">Can I trust it?</h2>'
            "<p>Every number is computed from raw rows, and its interval is over documents, examples or rounds. "
            "Methods that are compared ran in the same rounds or read the same documents; timings that other "
            "processes disturbed are left out, and a method that cannot run a case is shown as refused. What the "
            "paper claims is judged from these rows:</p>"
            f"{claims_section.section(judgements)}",
            '<h3 id="paper">Where the paper contradicts itself</h3><ul>',
            *(f"<li>{escape(text)}</li>" for text in oddities.oddities(paper_dir)),
            "</ul></section>",
            _reproduce(runs),
            '<section><h2 id="artefacts">Tables and figures</h2><ul class="glance">',
            *(f'<li><a href="#{name}">{escape(artefact_sections.heading(name))}</a></li>' for name in drawn),
            "</ul><details><summary>What the words and brackets mean</summary><dl>",
            *(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in WORDS.items()),
            "</dl></details>",
            *(artefact_sections.section(name, frame, charts[name]) for name, frame in drawn.items()),
            '<h3 id="missing">Not in this run</h3>' if missing else "",
            *missing,
            "</section>",
            _cost(runs),
            f"</main><script>{interactive.SCRIPT}{SCRIPT}</script></body></html>\n",
        )
    )


def _artefacts(run: Run, paper: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return name -> frame of each artefact that the run has rows for, and a line on each of the others."""
    drawn, missing = {}, []
    for name in ARTEFACTS:
        try:
            drawn[name] = artefact_sections.module_of(name).collect(run, paper)
        except MissingRows as error:
            missing.append(artefact_sections.missing(name, run, error))
    return drawn, missing


def _reproduce(runs: pd.DataFrame) -> str:
    """Return the section with the command that measures and draws all of the run."""
    try:
        preset = load_preset(runs.preset.iloc[-1]).reference
    except ConfigError:
        # The rows of `seerbench compare`, or of a preset that is not here.
        command = "".join(f"{text}\n" for text in dict.fromkeys(runs.command))
    else:
        command = f"make figures PRESET={preset}\n"
    minutes, devices = runs.wall_s.sum() / 60, ", ".join(dict.fromkeys(runs.device))
    return (
        '<section><h2 id="reproduce">How do I reproduce it?</h2><p>In a clone of the repository, at the commit '
        f"that is named at the top:</p><pre><code>{escape(command)}</code></pre><p>It measures what is missing and "
        "draws everything on this page. Where a machine cannot measure a part, it draws the published rows and "
        f'says so. The <a href="#cost">{len(runs)} steps</a> took {minutes:.0f} minutes in total on '
        f"{escape(devices)}. Each artefact below has its numbers as CSV.</p></section>"
    )


def _cost(runs: pd.DataFrame) -> str:
    """Return the section with the wall time of every step."""
    rows = "".join(
        f'<tr><th scope="row">{escape(step.step)}</th><td class="number">{step.wall_s:.1f}</td>'
        f"<td>{escape(step.device)}</td><td>{escape(step.started)}</td><td><code>{escape(step.command)}</code></td></tr>"
        for step in runs.itertuples()
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("step", "seconds", "machine", "started", "command"))
    caption = "<caption>Wall time of each step</caption>"
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return (
        f'<section><h2 id="cost">Cost of reproduction</h2><p>{len(runs)} steps, {runs.wall_s.sum() / 60:.1f} '
        "minutes of wall time in total; steps that ran at the same time overlap.</p>"
        f"<details><summary>Every step</summary>{wide(table, 'Cost of reproduction')}</details></section>"
    )
