"""The leaderboard ranks what is comparable, and says how to measure what is missing."""

import re

import pandas as pd
import pytest
import synthetic_rows
from typer.testing import CliRunner

from seerbench.cli import app
from seerbench.evaluate import leaderboard
from seerbench.paths import ROOT
from seerbench.rows.store import Run, write_rows

GATE = "real:v1"
ARMS = [
    synthetic_rows.DENSE,
    *[("seer", GATE, "post", sparsity, 0.3) for sparsity in (0.5, 0.9)],
    ("streaming", None, "none", 0.5, 0.9),
    ("xattention", None, "none", 0.5, 0.95),
    ("oracle", None, "none", 0.5, 0.1),
]


# Those of the experiment `contexts` and of the sweep `methods` of the cpu preset.
PLACE = {"model": "smollm2", "corpus": "python"}
CONTEXT = 2048


def write(folder, arms, level=0.0, timed=False):
    """Write losses at one context, and timings if asked for, and return the folder."""
    run = synthetic_rows.origin("perplexity", folder.name, preset="cpu")
    rows = synthetic_rows.perplexity(run["run_id"], "contexts", arms, (CONTEXT,))
    rows = [row | PLACE | {"nll": row["nll"] + level} for row in rows]
    write_rows(folder / "perplexity" / "contexts.parquet", "perplexity", rows, run)
    if timed:
        methods = [("dense", None, {"attend": 10.0}, 1.0)]
        methods += [("seer", 0.5, {"plan": 1.0, "attend": 4.0, "total": 5.0}, 1.0)]
        cells, samples = synthetic_rows.timings(run["run_id"], "methods", CONTEXT, methods)
        cells = [cell | {"inputs": "captured:smollm2", "inputs_model": "smollm2"} for cell in cells]
        write_rows(folder / "cells" / "methods.parquet", "cells", cells, run)
        write_rows(folder / "samples" / "methods.parquet", "samples", samples, run)
    return folder


@pytest.fixture
def runs(tmp_path):
    """Return a published run and a run of the reader's on the same windows, and one of another model."""
    mine = [synthetic_rows.DENSE, ("mine", None, "none", 0.5, 0.2)]
    folders = [
        write(tmp_path / "published" / "machine", ARMS, timed=True),
        write(tmp_path / "mine", mine),
        write(tmp_path / "other", mine, level=0.5),  # a dense loss that differs by 0.5 nats
    ]
    card = '@register("mine", cites="none", title="My method", fidelity="mine")\nclass Mine(BlockSparse): ...\n'
    (tmp_path / "mine" / "mine.py").write_text(card)
    return folders


def test_methods_are_ranked_on_the_same_windows_alone(runs):
    found = leaderboard.boards(map(Run, runs))
    assert [sorted(board.presets) for board in found] == [["machine", "mine"], ["other"]]
    half, most = leaderboard.standings(found[0], ["mine"])
    assert half.title == "smollm2 on python at 2k, 50% skipped"
    lines = half.cells.set_index("method")
    places = dict(lines.place[lines.place != ""])
    assert places == {"My method": "1", f"SeerAttention ({GATE})": "2", "StreamingLLM": "3", "XAttention": "4"}
    assert list(lines.index).index("Oracle by maximum") < list(lines.index).index("My method")
    assert half.cells.method[list(half.own)].tolist() == ["My method"]
    assert list(most.cells.method) == ["Dense", f"SeerAttention ({GATE})"]


def test_numbers_are_those_of_the_rows(runs):
    frame = leaderboard.as_frame(leaderboard.boards([Run(runs[0])]))
    rows = Run(runs[0]).table("perplexity")
    nll = rows[rows.method == "streaming"].set_index("document").nll
    dense = rows[rows.method == "dense"].set_index("document").nll
    line = frame[(frame.method == "streaming") & (frame.quantity == "loss")].iloc[0]
    assert line.value == pytest.approx((nll - dense).mean())
    assert line.low < line.value < line.high
    seer = frame[frame.method == "seer"].set_index(["sparsity_requested", "quantity"]).value
    assert seer[0.5, "speedup"] == pytest.approx(2, rel=0.1)
    assert seer[0.5, "plan"] == pytest.approx(1, rel=0.3)


def test_a_missing_number_has_its_command(runs):
    (board,) = leaderboard.boards([Run(runs[0])])
    half, _ = leaderboard.standings(board)
    cells = half.cells.set_index("method")
    for method, command in {
        "StreamingLLM": "seerbench latency cpu methods 2048",  # the preset times it at 50%
        "XAttention": "seerbench evaluate xattention --preset cpu --sparsities 0.5",  # and this one does not
    }.items():
        number = re.fullmatch(r"missing (\[\d+\])", cells["speed-up"][method])[1]
        assert f"{number} to measure: {command}." in half.notes
    said = "No numbers for look-ups; look-ups, last rows dense: to measure: seerbench tasks cpu retrieval."
    assert said in half.notes
    assert "No numbers for RULER; RULER, last rows dense; first token: the preset has none." in half.notes


def test_the_command_writes_page_table_and_numbers(runs, tmp_path):
    out = tmp_path / "out"
    command = ["leaderboard", "--published", runs[0].parent, "--runs", runs[1], "--out", out]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {f"leaderboard.{kind}" for kind in ("html", "md", "csv")}
    text = (out / "leaderboard.html").read_text()
    assert not re.search(r"https?://", text)  # it fetches nothing
    assert '<tr class="own">' in text
    assert "My method" in (out / "leaderboard.md").read_text()
    assert set(pd.read_csv(out / "leaderboard.csv").run) == {"machine", "mine"}


def test_without_runs_it_says_so(tmp_path):
    done = CliRunner().invoke(app, ["leaderboard", "--published", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1


def test_every_quantity_is_read_from_a_whole_run(tmp_path):
    run = Run(synthetic_rows.write_run(tmp_path / "whole"))
    numbers = leaderboard.numbers_of(run)
    assert set(numbers.quantity) == set(leaderboard.QUANTITIES) - {"lookups_last"}  # those rows have one protocol
    found = leaderboard.boards([run])
    assert all(leaderboard.standings(board) for board in found)
    page = leaderboard.as_page(found)
    assert page.count("<details") == len(found)
    assert page.count("<details open>") == 1


def test_the_readme_has_the_leaders_of_the_published_runs():
    done = CliRunner().invoke(app, ["check", "leaderboard", "--page", str(ROOT / "README.md")])
    assert done.exit_code == 0, done.exception


def test_leaders_are_the_first_places_at_each_sparsity(runs, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("Before. " + "old".join(leaderboard.BETWEEN) + " After.\n")
    command = ["check", "leaderboard", "--published", str(runs[0].parent), "--page", str(page)]
    assert "seerbench check leaderboard --write" in str(CliRunner().invoke(app, command).exception)
    assert CliRunner().invoke(app, [*command, "--write"]).exit_code == 0
    assert CliRunner().invoke(app, command).exit_code == 0
    text = page.read_text()
    assert text.startswith("Before. ")
    assert text.endswith(" After.\n")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert table[0] == ["place", "50% skipped", "90% skipped"]
    names = [[cell.split(":")[0] for cell in line[1:]] for line in table[2:]]
    half, most = (table for table in leaderboard.standings(leaderboard.boards([Run(runs[0])])[0]))
    for column, board in enumerate((half, most)):
        placed = board.cells[board.cells.place != ""]
        assert [line[column] for line in names if line[column]] == [
            name.split(":")[0] for name in placed.method[: leaderboard.LEADERS]
        ]
    page.write_text("no place")
    assert "places for the leaders" in str(CliRunner().invoke(app, command).exception)
