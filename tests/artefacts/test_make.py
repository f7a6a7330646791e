"""Every artefact: its files, its labels, equal bytes when drawn twice, and a run without its rows."""

import importlib

import pandas as pd
import pytest
from synthetic_rows import PAPER, SCALE

from seerbench import artefacts
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows, ResultsError
from seerbench.rows.publish import publish
from seerbench.rows.store import Run

TABLES = [name for name, artefact in artefacts.ARTEFACTS.items() if artefact.kind == "table"]
BEYOND_THE_PAPER = ("recall", "ablation", "methods", "dilution", "ruler")
LABEL = f"measured: {SCALE}; Test CPU, 2 cores; 2026-11-22; commit abc1234"


@pytest.mark.slow(seconds=0.7)
@pytest.mark.parametrize("name", artefacts.ARTEFACTS)
def test_files_and_labels(name, drawn):
    folder = drawn(name)
    files = sorted(path.name for path in folder.iterdir())  # a temporary file would be among them
    assert files == sorted(name + suffix for suffix in artefacts.ARTEFACTS[name].suffixes)
    assert all(path.stat().st_size > 200 for path in folder.iterdir())
    frame = pd.read_csv(folder / f"{name}.csv")
    measured = frame[(frame.source == "measured") & (frame.status == "measured")]
    (label,) = measured.label.unique()
    assert label == LABEL
    number = next(column for column in ("y", "value", "target") if column in frame)
    assert measured[number].notna().all()
    empty = frame[~frame.status.isin(["measured", "printed"])]
    assert empty.reason.notna().all()


@pytest.mark.parametrize("name", ["fig5", "fig7", "table1"])
def test_the_same_rows_give_the_same_bytes(name, drawn, run_dir, tmp_path):
    for path in artefacts.make(name, run_dir, PAPER, tmp_path):
        assert path.read_bytes() == (drawn(name) / path.name).read_bytes(), path.name


def test_svg_has_no_date(drawn):
    assert b"<dc:date>" not in (drawn("fig8") / "fig8.svg").read_bytes()


@pytest.mark.parametrize("name", ["fig1", "fig6", "fig10", "budget", "context_use", "needle"])
def test_a_figure_is_a_function_of_its_csv(name, drawn):
    module = importlib.import_module(f"seerbench.artefacts.{name}")
    frame = pd.read_csv(drawn(name) / f"{name}.csv")
    text = frame.select_dtypes(exclude="number").columns
    frame[text] = frame[text].astype(object).where(frame[text].notna(), None)
    assert module.draw(frame).axes


@pytest.mark.parametrize("name", TABLES)
def test_tables_show_both_sources_and_their_labels(name, drawn):
    markdown = (drawn(name) / f"{name}.md").read_text()
    latex = (drawn(name) / f"{name}.tex").read_text()
    assert r"\toprule" in latex
    for text in (markdown, latex):
        assert "commit abc1234" in text
        assert "nan" not in text.lower()
    if name not in BEYOND_THE_PAPER:
        for text in ("arXiv 2410.13276", "| paper", "| measured"):
            assert text in markdown


@pytest.mark.parametrize("name", artefacts.ARTEFACTS)
def test_a_run_without_the_rows_names_the_step(name, tmp_path):
    with pytest.raises(MissingRows) as missing:
        artefacts.make(name, tmp_path, PAPER, tmp_path / "out")
    assert missing.value.folder == tmp_path
    tables = {table for table, _ in artefacts.ARTEFACTS[name].needs}
    assert missing.value.table in tables
    assert missing.value.step
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, entry in artefacts.ARTEFACTS.items() if len(entry.needs) > 1])
def test_it_is_drawn_from_a_part_of_its_rows(name, run_dir, tmp_path):
    """A preset is measured in parts, on several days: what is there is drawn, and what is not is named."""
    module = importlib.import_module(f"seerbench.artefacts.{name}")
    tables = {table for table, _ in artefacts.ARTEFACTS[name].needs}
    for part in sorted(path for table in tables - {"samples"} for path in (run_dir / table).glob("*.parquet")):
        folder = tmp_path / part.parent.name / part.stem
        for table in {part.parent.name, "samples"} if part.parent.name == "cells" else {part.parent.name}:
            (folder / table).mkdir(parents=True)
            (folder / table / part.name).symlink_to(run_dir / table / part.name)
        try:
            frame = module.collect(Run(folder), paper_values(PAPER))
        except MissingRows:
            continue
        if artefacts.ARTEFACTS[name].kind == "table":
            assert len(module.render(frame))
        else:
            assert module.draw(frame).axes


def test_an_unknown_artefact_is_refused():
    with pytest.raises(ResultsError, match=r"'fig2'.*table1"):
        artefacts.artefact("fig2")


def test_a_published_run_gives_the_same_numbers(run_dir, collect, tmp_path):
    published = Run(publish(run_dir, tmp_path / "published"))
    for name in ("table1", "fig1", "recall"):
        module = importlib.import_module(f"seerbench.artefacts.{name}")
        again = module.collect(published, paper_values(PAPER))
        pd.testing.assert_frame_equal(collect(name).sort_index(axis=1), again.sort_index(axis=1))
