"""No table and no figure shows a number of a cell that was timed beside other work; each says why it is missing."""

import functools
import importlib

import pytest
from synthetic_rows import PAPER

from seerbench import artefacts
from seerbench.artefacts import table_format
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.rows.store import Run, write_rows

REASON = "other processes used 1.7 of 2 cores"
TIMED = [name for name, artefact in artefacts.ARTEFACTS.items() if "cells" in dict(artefact.needs)]
CASES = {
    "one method": lambda cells: (cells.method == "seer") & (cells.context == 4096),
    "the dense method": lambda cells: (cells.method == "dense") & (cells.context == 4096),
    "one context": lambda cells: cells.context == 4096,
    "everything": lambda cells: cells.context > 0,
}


@pytest.fixture(scope="module")
def disturbed(run_dir, tmp_path_factory):
    """Return a function: one of CASES -> a run whose cells it marks are disturbed."""

    @functools.cache
    def copy(case):
        folder = tmp_path_factory.mktemp("disturbed")
        for path in run_dir.rglob("*.parquet"):
            (folder / path.relative_to(run_dir)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(run_dir)).symlink_to(path)
        undisturbed = Run(run_dir)
        every_run = undisturbed.table("runs").set_index("run_id", drop=False).astype(object)
        for path in (folder / "cells").iterdir():
            cells = undisturbed.table("cells", path.stem)
            marked = CASES[case](cells) & (cells.status == "measured")
            cells.loc[marked, ["status", "reason"]] = ["disturbed", REASON]
            runs = every_run.loc[cells.run_id.unique()]
            path.unlink()
            write_rows(path, "cells", cells, runs.where(runs.notna(), None).to_dict("records"))
        return Run(folder)

    return copy


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TIMED)
def test_disturbed_cells_have_no_number_and_the_reason_is_shown(name, case, disturbed):
    run, module = disturbed(case), importlib.import_module(f"seerbench.artefacts.{name}")
    frame = module.collect(run, paper_values(PAPER))
    cells = run.table("cells")
    marked = set(cells[cells.status == "disturbed"][["method", "context"]].itertuples(index=False, name=None))
    assert marked
    number = "x" if name == "pareto" else next(column for column in ("y", "value") if column in frame)
    timed = frame[(frame.source == "measured") & frame.unit.isin(["ms", "s", "x"]) & frame[number].notna()]
    assert not marked & set(timed[["method", "context"]].itertuples(index=False, name=None))
    if artefacts.ARTEFACTS[name].kind == "figure":
        shown = module.draw(frame).get_supxlabel()
    else:
        shown = "\n".join([module.render(frame).to_string(), *module.remarks(frame), *table_format.notes(frame)])
    # At 4k pareto draws nothing; Figures 1 and 8 and `decode` draw no SeerAttention.
    shown_elsewhere = name == "pareto" or (case == "one method" and name in ("fig1", "fig8", "decode"))
    if case == "everything" or not shown_elsewhere:
        assert "disturbed" in shown
