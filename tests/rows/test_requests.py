"""Rows that skip another share than was requested are refused with their reason, and everything else stays."""

import ast

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import DENSE, perplexity, timings

from seerbench.paths import PUBLISHED, ROOT
from seerbench.rows import requests
from seerbench.rows.provenance import finish, provenance
from seerbench.rows.store import Run, to_table, write_rows
from seerbench.rows.timings import timings as timed


def documents(sparsity, *realised):
    """Return the rows of one arm and of dense attention, one document per realised sparsity."""
    rows = perplexity("r", "contexts", [DENSE, ("seer", "g:v1", "post", sparsity, 0.1)], [512], len(realised))
    frame = to_table("perplexity", rows).to_pandas()
    frame.loc[frame.method == "seer", "sparsity_realised"] = realised
    return frame


@pytest.mark.parametrize(
    ("sparsity", "realised", "reason"),
    [
        (0.9, (0.9,), None),
        (0.9, (0.88,), None),  # exactly two points
        (0.9, (0.85, 0.95), None),  # the mean over documents counts
        (0.9, (0.767,), "skips 76.7% where 90% was requested: blocks that it always keeps exceed the budget"),
        (0.5, (0.52, 0.526), "skips 52.3% where 50% was requested: more than 2 points above"),
        (None, (0.3,), None),  # a method at its own setting
    ],
)
def test_a_setting_is_refused_beyond_two_points(sparsity, realised, reason):
    rows = documents(sparsity, *realised)
    found = requests.refused("perplexity", rows)
    seer = found.method == "seer"
    assert set(found.status[~seer]) == {"measured"}
    assert found[~seer].nll.tolist() == rows[~seer].nll.tolist()
    assert set(found.reason[seer]) == {reason}
    assert set(found.status[seer]) == {"measured" if reason is None else "refused"}
    assert found.nll[seer].isna().all() == (reason is not None)
    assert rows.nll.notna().all()  # the rows that were given are unchanged


def test_settings_do_not_mix():
    """One context of two, and one arm of two, break their request."""
    arms = [("seer", gate, "post", 0.9, 0.1) for gate in ("g:v1", "g:v2")]
    rows = to_table("perplexity", perplexity("r", "contexts", arms, [512, 1024], 2)).to_pandas()
    rows["sparsity_realised"] = 0.9
    rows.loc[(rows.context == 512) & (rows.gate == "g:v1"), "sparsity_realised"] = 0.8
    found = requests.refused("perplexity", rows)
    off = found[found.status == "refused"]
    assert set(zip(off.context, off.gate)) == {(512, "g:v1")}
    assert len(off) == 2


def test_tables_without_a_status_get_one():
    row = {"experiment": "gates", "model": "m", "corpus": "c", "context": 512, "method": "moa", "gate": None}
    heads = pd.DataFrame([row | {"sparsity_requested": 0.5, "sparsity_realised": s} for s in (0.2, 0.6)])
    found = requests.refused("recall", heads.assign(recall=0.5, mass=0.5))
    assert found.status.tolist() == ["refused"] * 2
    assert found[["recall", "mass"]].isna().all(axis=None)
    answers = heads.rename(columns={"context": "bucket"}).assign(
        correct=True, score=np.nan, reason=[None, "too long"]
    )
    found = requests.refused("tasks", answers.assign(sparsity_realised=[0.5, np.nan]))
    assert found.status.tolist() == ["measured", "refused"]
    assert found.correct.tolist()[0] is True


def test_rows_that_were_decoded_by_a_method_are_apart(tmp_path):
    """Their loss is that of a prefill and of decoding, so no table of prefill methods may read it."""
    made = perplexity("r", "contexts", [DENSE], [512], 2)
    made[1] |= {"decode": "seer-r", "decode_gate": "g:r", "decode_block": 64, "decode_budget": 512}
    run = {**finish(provenance("test", preset="cpu", scale="toy", seed=0, device="cpu")), "run_id": "r"}
    write_rows(tmp_path / "perplexity" / "mixed.parquet", "perplexity", made, run)
    plain, decoded = (read(Run(tmp_path), "perplexity") for read in (requests.rows, requests.decoded_rows))
    assert plain.document.tolist() == [made[0]["document"]]
    assert decoded.document.tolist() == [made[1]["document"]]
    assert decoded.decode_budget.tolist() == [512]
    for read in (requests.rows, requests.decoded_rows):  # rows of earlier schema versions
        rows = read(Run(PUBLISHED / "h200-smollm2"), "tasks")
        assert rows.empty == (read is requests.decoded_rows)


def test_a_refused_cell_has_no_samples(tmp_path):
    parts = timings("r", "methods", 1024, [("moa", 0.5, {"total": 1.0}, 1.0), ("seer", 0.5, {"total": 1.0}, 1.0)])
    cells, samples = (to_table(name, part).to_pandas() for name, part in zip(("cells", "samples"), parts))
    cells.loc[cells.method == "moa", "sparsity_realised"] = 0.28

    class Rows:
        def table(self, name, part=None, prepare=None):
            rows = {"cells": cells, "samples": samples}[name]
            return prepare(name, rows) if prepare else rows

    found, kept = timed(Rows(), "methods")
    (reason,) = found[found.status == "refused"].reason
    assert reason == (
        "skips 28.0% where 50% was requested: its plan has this budget over all layers, and this is one of them"
    )
    assert set(kept.method) == {"seer"}


def test_published_rows_that_break_their_request_are_refused():
    """FlashPrefill's own blocks alone skip 56.8, 76.7 and 87.9% at 2k, 4k and 8k: a mask without a choice."""
    rows = requests.rows(Run(PUBLISHED / "h100-gpu"), "perplexity")
    kept = rows[rows.sparsity_requested.notna() & (rows.status == "measured")]
    means = kept.groupby(requests.SETTINGS["perplexity"], dropna=False)[["sparsity_realised", "sparsity_requested"]]
    off = means.mean().diff(axis=1).sparsity_requested.abs()
    assert len(off) > 200
    assert off.max() < 0.0201
    flash = rows[(rows.method == "flashprefill") & np.isclose(rows.sparsity_requested, 0.9)]
    assert set(flash.status) == {"refused"}


def test_no_other_module_reads_these_tables():
    """A module that read one itself could forget to leave refused rows out."""
    # publish copies rows, staleness asks which executions timed anything, and notebooks counts rows.
    allowed = {f"seerbench/rows/{name}.py" for name in ("requests", "staleness", "publish")}
    allowed.add("seerbench/report/notebooks.py")
    found, tables = set(), set(requests.SETTINGS)
    for path in [*ROOT.glob("seerbench/**/*.py"), *ROOT.glob("notebooks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "table":
                names = [getattr(each, "value", None) for each in node.args]
                variable = any(isinstance(each, ast.Name) for each in node.args[:1])
                in_run = getattr(getattr(node.func, "value", None), "id", "") in ("run", "each")
                if tables & set(names) or (variable and in_run):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found <= allowed, found - allowed
