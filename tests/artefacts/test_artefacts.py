"""Artefacts: each one drawn from a small synthetic run, its empty cells, labels and files.

The numbers here are made up; they never leave the tests' folders.
"""

import importlib
import io
import itertools

import numpy as np
import pandas as pd
import pytest

from seerbench import artefacts
from seerbench.artefacts import (
    aggregates,
    colors,
    fig1,
    fig6,
    fig8,
    frames,
    style,
    table1,
    table2,
    table4,
    table_format,
)
from seerbench.artefacts import methods as methods_table
from seerbench.errors import ResultsError
from seerbench.paths import ROOT
from seerbench.rows.provenance import provenance
from seerbench.rows.publish import publish
from seerbench.rows.source_digest import source_digest
from seerbench.rows.store import Run, write_rows

PAPER = ROOT / "results" / "paper"
SCALE = "synthetic rows of a test"
SPARSITIES = (0.4, 0.6, 0.9)
POOLS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
LOSS = {"seer": 0.3, "moa": 0.6, "minference": 0.5, "streaming": 0.9, "oracle": 0.2, "random": 1.5}


def origin(step, number=0, **changes):
    """A runs row with fixed facts, so that labels and files do not depend on this machine."""
    row = provenance(step, preset="test", scale=SCALE, seed=0, device="cpu")
    fixed = {
        "run_id": f"{step}-{number}",
        "started": "2026-11-22T10:00:00+00:00",
        "commit": "abc1234def",
        "dirty": False,
        "device": "Test CPU, 2 cores",
    }
    return {**row, **fixed, **changes}


def perplexity(run_id, experiment, cells, contexts, documents=6):
    """Rows: NLL = 2.3 + a document's own level + a loss that grows with sparsity."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 0.2, documents)
    rows = []
    for context, (method, gate, recipe, sparsity, loss), document in itertools.product(
        contexts, cells, range(documents)
    ):
        nll = 2.3 - 0.05 * np.log2(context / 512) + level[document]
        nll += 0 if sparsity is None else loss * sparsity**3 + rng.normal(0, 0.003)
        rows.append(
            {
                "run_id": run_id,
                "experiment": experiment,
                "model": "tiny",
                "corpus": "stdlib",
                "context": context,
                "method": method,
                "gate": gate,
                "recipe": recipe,
                "sparsity_requested": sparsity,
                "sparsity_realised": 0.0 if sparsity is None else sparsity - 0.02,
                "document": f"d{document}",
                "nll": nll,
                "tokens": context - 1,
                "status": "measured",
                "reason": None,
            }
        )
    return rows


def timings(run_id, sweep, context, methods, rounds=12, refused=()):
    """(cells, samples): methods is [(method, sparsity, {stage: ms}, peak)], dense in every cell."""
    rng = np.random.default_rng(context)
    sparsities = sorted({sparsity for _, sparsity, _, _ in methods if sparsity is not None}) or [None]
    cells, samples = [], []
    for asked in sparsities:
        name = f"{sweep}-{context}-{asked}"
        shared = rng.lognormal(0, 0.1, rounds)
        for order, (method, sparsity, stages, peak) in enumerate(methods):
            if sparsity not in (None, asked):
                continue
            reason = dict(refused).get(method)
            cells.append(
                {
                    "run_id": run_id,
                    "sweep": sweep,
                    "cell": name,
                    "method": method,
                    "implementation": f"test.{method}",
                    "device": "Test CPU, 2 cores",
                    "dtype": "float32",
                    "batch": 1,
                    "q_heads": 4,
                    "kv_heads": 2,
                    "head_dim": 32,
                    "context": context,
                    "block_q": 64,
                    "block_k": 64,
                    "inputs": "random" if sweep == "kernel" else "captured:tiny",
                    "mask": "dense" if sparsity is None else "random",
                    "sparsity_requested": sparsity,
                    "sparsity_realised": None if sparsity is None or reason else sparsity - 0.01,
                    "seed": 0,
                    "status": "refused" if reason else "measured",
                    "reason": reason,
                    "error_vs_oracle": None,
                    "error_budget": None,
                    "peak_mib": None if reason else peak,
                    "flops": None,
                    "source_digest": "0",
                }
            )
            for (stage, ms), turn in itertools.product(stages.items(), range(rounds)):
                if not reason:
                    noise = shared[turn] * rng.lognormal(0, 0.02)
                    key = {"run_id": run_id, "cell": name, "method": method, "stage": stage}
                    samples.append({**key, "round": turn, "order": order, "ms": ms * noise})
    return cells, samples


def write_timings(folder, sweep, context, methods, refused=()):
    """Both files of one sweep at one context."""
    run = origin("latency", f"{sweep}-{context}")
    cells, samples = timings(run["run_id"], sweep, context, methods, refused=refused)
    write_rows(folder / "cells" / f"{sweep}-{context}.parquet", "cells", cells, run)
    write_rows(folder / "samples" / f"{sweep}-{context}.parquet", "samples", samples, run)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A whole run: every table that an artefact reads."""
    folder = tmp_path_factory.mktemp("run")
    dense = ("dense", None, "none", None, 0.0)
    run = origin("perplexity")

    def write_perplexity(experiment, cells, contexts):
        rows = perplexity(run["run_id"], experiment, cells, contexts)
        write_rows(folder / "perplexity" / f"{experiment}.parquet", "perplexity", rows, run)

    methods = [("seer", "long:v1", "none", s, LOSS["seer"]) for s in SPARSITIES]
    methods += [("seer", "long:untrained", "none", s, 1.4) for s in SPARSITIES]
    methods += [(name, None, "none", s, loss) for name, loss in LOSS.items() if name != "seer" for s in SPARSITIES]
    write_perplexity("contexts", [dense, *methods], (512, 1024, 2048))
    arms = [("short:rope", 0.4), ("short:norope", 1.2)]
    write_perplexity(
        "rope",
        [dense, *(("seer", g, "none", s, loss) for g, loss in arms for s in (0.5, 0.7))],
        (512, 1024, 2048),
    )
    combos = [f"Q{q}_K{k}" for q in POOLS for k in POOLS]
    write_perplexity(
        "pooling",
        [("seer", f"pooling:{c}", "none", s, 0.3 + 0.01 * i) for i, c in enumerate(combos) for s in (0.5, 0.9)],
        (1024,),
    )
    gate = "long:v1"
    made_of = [
        ("seer", name, "post", s, loss) for name, loss in ((gate, 0.3), ("block128:v1", 0.5)) for s in (0.5, 0.9)
    ]
    write_perplexity("gates", [dense, *made_of], (1024,))
    write_perplexity(
        "yarn",
        [
            ("dense", None, "yarn", None, 0.0),
            *(("seer", gate, "post", s, 0.3) for s in (0.5, 0.9)),
            *(("seer", gate, "joint", s, 0.1) for s in (0.5, 0.9)),
        ],
        (2048,),
    )

    run = origin("finetune")
    steps = [
        {
            "run_id": run["run_id"],
            "name": "yarn",
            "kind": "finetune",
            "recipe": recipe,
            "sparsity_requested": sparsity,
            "step": step,
            "tokens": step * 100,
            "context": 2048,
            "lm_loss": 2.5 + 0.5 * np.exp(-step / 20) + (sparsity or 0) * 0.05,
            "gate_loss": None,
            "learning_rate": 1e-4,
        }
        for recipe, sparsity in (("yarn", None), ("joint", 0.5), ("joint", 0.9))
        for step in range(0, 100, 5)
    ]
    distilled = [{**row, "kind": "distill", "name": "short", "recipe": "v1", "context": 512} for row in steps[:5]]
    write_rows(folder / "training" / "finetune-yarn.parquet", "training", [*steps, *distilled], run)

    for context in (1024, 4096):
        scale = (context / 1024) ** 2
        fast = [("block_sparse", s, {"attend": 10 * scale * (1 - s) + 0.5}, 10.0) for s in SPARSITIES]
        write_timings(folder, "kernel", context, [("dense", None, {"attend": 10 * scale}, 10.0), *fast])
        stages = {"dense": {"attend": 10 * scale, "total": 10 * scale}}
        measured = [("dense", None, stages["dense"], 10.0)]
        for name, s in itertools.product(("seer", "moa", "minference", "streaming"), SPARSITIES):
            attend, plan = 10 * scale * (1 - s) + 0.6, {"seer": 0.4, "minference": 2.0}.get(name, 0.05) * scale
            stages = {"plan": plan, "attend": attend, "total": attend + plan}
            if name == "seer":
                stages |= {"score": 0.7 * plan, "select": 0.3 * plan}
            measured.append((name, s, stages, 10.0))
        refused = {"minference": "head_dim 32 is not 128"} if context == 1024 else {}
        write_timings(folder, "methods", context, measured, refused=refused)
        ttft = [("dense", None, {"ttft": 900 * scale}, 10.0)]
        ttft += [(n, 0.6, {"ttft": 700 * scale}, 10.0) for n in ("seer", "minference")]
        write_timings(folder, "ttft", context, ttft, refused=refused)
        training = [("dense", None, {"forward": 10 * scale}, 20.0 * context / 1024)]
        training += [("pooled", None, {"forward": 12 * scale}, 22.0 * context / 1024)]
        training += [("naive", None, {"forward": 60 * scale}, 100.0 * scale)]
        refused = {"naive": "the map needs 512 GiB"} if context == 4096 else {}
        write_timings(folder, "training_kernel", context, training, refused=refused)

    run = origin("tasks")
    rng = np.random.default_rng(0)
    tasks = [
        {
            "run_id": run["run_id"],
            "experiment": "retrieval",
            "model": "tiny",
            "corpus": "stdlib",
            "task": task,
            "context": context,
            "bucket": f"{context // 2}-{context}",
            "method": method,
            "gate": gate if method == "seer" else None,
            "sparsity_requested": sparsity,
            "sparsity_realised": sparsity or 0.0,
            "example": example,
            "distance": int(rng.integers(10, context)),
            "correct": bool(rng.random() < share),
        }
        for method, sparsity, share in (("dense", None, 0.95), ("seer", 0.5, 0.9), ("streaming", 0.5, 0.4))
        for task in ("passkey", "kv", "cloze")
        for context in (512, 1024)
        for example in range(20)
    ]
    write_rows(folder / "tasks" / "retrieval.parquet", "tasks", tasks, run)

    run = origin("recall")
    kept = {("seer", gate): 0.8, ("seer", "long:untrained"): 0.4, ("streaming", None): 0.3}
    recall = [
        {
            "run_id": run["run_id"],
            "experiment": "gates",
            "model": "tiny",
            "corpus": "stdlib",
            "context": 1024,
            "method": method,
            "gate": variant,
            "layer": layer,
            "head": head,
            "document": f"d{document}",
            "sparsity_requested": sparsity,
            "sparsity_realised": sparsity,
            "recall": share + rng.normal(0, 0.05),
            "mass": share + 0.1 + rng.normal(0, 0.02),
        }
        for (method, variant), share in kept.items()
        for sparsity in (0.5, 0.9)
        for layer, head, document in itertools.product(range(2), range(2), range(5))
    ]
    write_rows(folder / "recall" / "gates.parquet", "recall", recall, run)
    maps = []
    for layer, head in ((0, 0), (0, 3), (1, 1), (2, 0), (2, 2)):
        for row in range(16):
            weight = rng.random(row + 1) ** 6 + 1e-3
            weight[0] += head
            for column in range(row + 1):
                target = weight[column] / weight.sum()
                place = {"layer": layer, "head": head, "row": row, "column": column}
                maps.append({**place, "target": target, "predicted": 0.8 * target + 0.2 / (row + 1)})
    common = {
        "run_id": run["run_id"],
        "model": "tiny",
        "gate": gate,
        "document": "d0",
        "context": 1024,
        "block": 64,
    }
    write_rows(folder / "maps" / "maps.parquet", "maps", [{**common, **row} for row in maps], run)
    return folder


@pytest.fixture(scope="session")
def made(run_dir, tmp_path_factory):
    """Every artefact, made once: name -> (folder, paths)."""
    out = tmp_path_factory.mktemp("figures")
    return {name: (out, artefacts.make(name, run_dir, PAPER, out)) for name in artefacts.ARTEFACTS}


FIGURES = [name for name, about in artefacts.ARTEFACTS.items() if about.kind == "figure"]
TABLES = [name for name, about in artefacts.ARTEFACTS.items() if about.kind == "table"]
LABEL = f"measured: {SCALE}; Test CPU, 2 cores; 2026-11-22; commit abc1234"


def collected(name, run):
    return importlib.import_module(f"seerbench.artefacts.{name}").collect(run, frames.paper_values(PAPER))


@pytest.mark.parametrize("name", artefacts.ARTEFACTS)
def test_files_and_labels(name, made):
    out, paths = made[name]
    assert [path.suffix for path in paths] == list(artefacts.ARTEFACTS[name].suffixes)
    assert all(path.stat().st_size > 200 for path in paths)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]  # no temporary file is left
    frame = pd.read_csv(out / f"{name}.csv")
    measured = frame[(frame.source == "measured") & (frame.status == "measured")]
    assert len(measured)
    labels = measured.label.unique()
    assert len(labels) == 1
    assert labels[0].startswith(LABEL)
    number = next(column for column in ("y", "value", "target") if column in frame)
    unlike = measured[number].isna()
    assert not unlike.any()
    empty = frame[~frame.status.isin(["measured", "printed"])]
    assert empty.reason.notna().all()


@pytest.mark.parametrize("name", ["fig5", "fig7", "fig9"])
def test_the_same_rows_give_the_same_bytes(name, made, run_dir, tmp_path):
    out, _ = made[name]
    for path in artefacts.make(name, run_dir, PAPER, tmp_path):
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_svg_has_no_date(made):
    assert b"<dc:date>" not in (made["fig8"][0] / "fig8.svg").read_bytes()


@pytest.mark.parametrize("name", ["fig1", "fig6", "fig10"])
def test_a_figure_is_a_function_of_its_csv(name, made):
    module = importlib.import_module(f"seerbench.artefacts.{name}")
    frame = pd.read_csv(made[name][0] / f"{name}.csv")
    text = frame.select_dtypes(exclude="number").columns
    frame[text] = frame[text].astype(object).where(frame[text].notna(), None)
    assert module.draw(frame).axes


@pytest.mark.parametrize("name", TABLES)
def test_tables_show_both_sources_and_their_labels(name, made):
    markdown = (made[name][0] / f"{name}.md").read_text()
    assert "commit abc1234" in markdown
    latex = (made[name][0] / f"{name}.tex").read_text()
    assert r"\toprule" in latex
    assert "commit abc1234" in latex
    assert "nan" not in markdown.lower()
    if name not in ("recall", "ablation", "methods"):  # beyond the paper
        assert "arXiv 2410.13276" in markdown
        assert "| paper" in markdown
        assert "| measured" in markdown


@pytest.mark.parametrize("name", artefacts.ARTEFACTS)
def test_a_run_without_the_rows_names_the_step(name, tmp_path):
    with pytest.raises(ResultsError, match="measure them with the step `seerbench"):
        artefacts.make(name, tmp_path, PAPER, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_artefact():
    with pytest.raises(ResultsError, match="no artefact 'fig2'; the artefacts are table1"):
        artefacts.artefact("fig2")


def test_a_refused_cell_is_empty_and_says_why(run_dir, made):
    frame = collected("table4", Run(run_dir))
    refused = frame[frame.status == "refused"]
    assert set(refused.method) == {"minference"}
    assert refused.value.isna().all()
    assert set(refused.reason) == {"head_dim 32 is not 128"}
    shown = table4.render(frame)
    cell = shown[(shown.source == "measured") & (shown.method == "MInference")]["1k"].iloc[0]
    assert cell == "refused, note 2"
    assert "Note 2: refused: head_dim 32 is not 128." in table_format.notes(frame)
    absent = shown[(shown.source == "measured") & (shown.method == "MoA")]
    assert absent["1k"].tolist() == ["not in this run"]
    assert "Note 1: out of memory: the paper prints OOM." in table_format.notes(frame)


def test_unmeasured_cells_of_a_figure_are_in_its_caption(run_dir):
    frame = collected("fig8", Run(run_dir))
    said = "x on the axis: Naive torch at 4k: refused (the map needs 512 GiB)"
    assert style.unmeasured(frame) == [said]
    assert said in fig8.draw(frame)._supxlabel.get_text()
    frame = collected("fig6", Run(run_dir))
    assert style.unmeasured(frame) == ["x on the axis: MInference at 1k: refused (head_dim 32 is not 128)"]


def test_everything_refused_is_still_a_figure(tmp_path):
    methods = [("dense", None, {"attend": 1.0}, 1.0), ("seer", 0.5, {"total": 1.0}, 1.0)]
    refused = {"seer": "no gates", "dense": "no compiler"}
    write_timings(tmp_path, "methods", 1024, methods, refused=refused)
    for name in ("fig5", "fig6"):
        frame = collected(name, Run(tmp_path))
        assert "no gates" in set(frame.reason)
        assert importlib.import_module(f"seerbench.artefacts.{name}").draw(frame).axes


def test_figure_1_draws_the_panels_that_it_has(run_dir, tmp_path):
    methods = [("dense", None, {"attend": 8.0}, 1.0), ("block_sparse", 0.9, {"attend": 1.0}, 1.0)]
    write_timings(tmp_path, "kernel", 1024, methods)
    frame = collected("fig1", Run(tmp_path))
    gaps = frame[frame.status == "missing"]
    assert gaps.panel.tolist() == ["a", "b"]
    assert gaps.reason.str.startswith("not in this run: has no").all()
    assert fig1.draw(frame).axes
    assert frame[(frame.panel == "c") & (frame.source == "paper")].y.tolist() == [5.67]


def test_a_published_run_gives_the_same_numbers(run_dir, tmp_path):
    published = publish(run_dir, tmp_path / "published")
    for name in ("table1", "fig1", "recall"):
        fresh = collected(name, Run(run_dir))
        again = collected(name, Run(published))
        pd.testing.assert_frame_equal(fresh.sort_index(axis=1), again.sort_index(axis=1))


def test_labels(monkeypatch):
    class Fake:
        def __init__(self, *runs):
            self.runs = pd.DataFrame(runs)

        def table(self, name):
            return self.runs

    rows = pd.DataFrame({"run_id": ["x-0", "x-1"]})
    digest = source_digest()

    def text(*changes, timed=False):
        runs = [origin("x", number, source_digest=digest, **change) for number, change in enumerate(changes)]
        return frames.label(Fake(*runs), rows, timed=timed)

    assert text({}, {}, timed=True) == LABEL
    assert text({"dirty": True}, {"dirty": True}).endswith("commit abc1234 (dirty)")
    assert text({"dirty": None}, {"dirty": None}).endswith("commit abc1234 (unknown whether clean)")
    assert text({"commit": None, "dirty": None}, {"commit": None, "dirty": None}).endswith("unknown commit")
    later = {"started": "2026-11-24T01:00:00+00:00", "commit": "fff0000"}
    assert text({}, later).endswith("2026-11-22 to 2026-11-24; commit abc1234, commit fff0000")
    digest = "another"
    assert "perhaps with other kernels than this tree's" in text({}, {}, timed=True)
    monkeypatch.setattr(frames, "changed_since", lambda commit, recorded, dirty: ["attend"])
    assert text({}, {}, timed=True).endswith("; with other kernels than this tree's")
    assert text({}, {}) == LABEL


def test_the_papers_numbers():
    paper = frames.paper_values()
    assert paper.groupby("artefact").size().to_dict() == {
        "table1": 45,
        "table2": 18,
        "table3": 22,
        "table4": 20,
        "fig1c": 1,
        "fig5": 1,
    }
    assert paper[paper.note == "OOM"].value.isna().all()
    printed = frames.printed(paper, "table4")
    ratios = table4._ratios(printed)
    seer = ratios[ratios.method == "seer"].value.round(2).tolist()
    assert seer == [1.15, 1.18, 1.29, 1.31, 2.66]  # from the paper's Table 4
    own = frames.printed(paper, "table1").query("method == 'minference'")
    assert own.sparsity_requested.isna().all()
    assert own.sparsity_realised.tolist() == [0.37, 0.55, 0.69, 0.80, 0.90]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("artefact,model", "artefact,modell", r"missing columns \['model'\], unknown columns \['modell'\]"),
        ("perplexity,10.03", "perplexity,ten", "line 2: value is 'ten', not a number"),
        ("perplexity,10.03", "perplexity,", "line 2: an empty value needs a note"),
    ],
)
def test_a_wrong_paper_file_is_refused(old, new, said, tmp_path):
    text = (PAPER / "values.csv").read_text().replace(old, new, 1)
    (tmp_path / "values.csv").write_text(text)
    with pytest.raises(ResultsError, match=said):
        frames.paper_values(tmp_path)


def test_a_missing_paper_file_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="git checkout"):
        frames.paper_values(tmp_path)


def test_perplexity_of_a_cell_by_hand():
    rows = pd.DataFrame(perplexity("r", "contexts", [("dense", None, "none", None, 0.0)], [512], documents=2))
    sparse = rows.assign(method="seer", gate="g", sparsity_requested=0.5, sparsity_realised=[0.4, 0.6])
    rows["nll"], sparse["nll"] = [1.0, 3.0], [1.5, 3.1]
    both = pd.DataFrame(rows.to_dict("records") + sparse.to_dict("records"))
    dense, seer = aggregates.perplexities(both).to_dict("records")
    assert dense["value"] == pytest.approx(np.exp(2.0))
    assert dense["delta"] == 0
    assert seer["delta"] == pytest.approx(0.3)
    assert seer["sparsity_realised"] == pytest.approx(0.5)
    assert seer["count"] == 2


def test_a_document_that_failed_does_not_count_but_shows():
    rows = pd.DataFrame(perplexity("r", "contexts", [("dense", None, "none", None, 0.0)], [512], documents=3))
    rows.loc[1, ["nll", "status", "reason"]] = [np.nan, "out_of_memory", "too long"]
    (line,) = aggregates.perplexities(rows).to_dict("records")
    assert (line["count"], line["status"], line["reason"]) == (2, "measured", "1 of 3 documents: too long")
    rows = rows.assign(nll=np.nan, status="refused", reason="head_dim")
    (line,) = aggregates.perplexities(rows).to_dict("records")
    assert (line["count"], line["status"], line["reason"]) == (0, "refused", "head_dim")
    assert np.isnan(line["value"])


def test_speedups_are_against_the_reference_and_against_the_fastest_dense():
    stages = {"fa2": 4.0, "cudnn": 2.0, "dense": 6.0}
    methods = [(name, None, {"attend": ms}, 1.0) for name, ms in stages.items()]
    cells, samples = timings("r", "methods", 1024, [*methods, ("seer", 0.5, {"total": 1.0, "attend": 0.5}, 1.0)])
    cells, samples = pd.DataFrame(cells), pd.DataFrame(samples)
    reference = aggregates.speedups(cells, samples, "total").set_index("method")
    assert set(reference.base) == {"fa2"}
    assert reference.loc["seer", "value"] == pytest.approx(4.0, rel=0.05)
    assert reference.loc["cudnn", "value"] == pytest.approx(2.0, rel=0.05)
    fastest = aggregates.speedups(cells, samples, "total", "fastest").set_index("method")
    assert set(fastest.base) == {"cudnn"}
    assert fastest.loc["seer", "value"] == pytest.approx(2.0, rel=0.05)
    alone = aggregates.speedups(cells[cells.method == "seer"], samples, "total")
    assert alone.reason.tolist() == ["no dense timing in the same cell"]


def test_table_4_names_the_fastest_dense_kernel_only_where_it_is_another(run_dir, tmp_path):
    assert "speedup_over_fastest_dense" not in set(collected("table4", Run(run_dir)).metric)
    methods = [(name, None, {"ttft": ms}, 1.0) for name, ms in (("fa2", 400.0), ("cudnn", 200.0))]
    methods += [("seer", sparsity, {"ttft": 100.0}, 1.0) for sparsity in (0.5, 0.9)]
    write_timings(tmp_path, "ttft", 8192, methods)
    shown = table4.render(collected("table4", Run(tmp_path)))
    assert "Dense" not in set(shown[shown.source == "measured"].method)  # the paper's is FlashAttention-2
    seer = shown[(shown.source == "measured") & (shown.method == "SeerAttention")]
    over = ["speed-up over FlashAttention-2", "speed-up over cuDNN, the fastest dense"]
    assert (
        seer.quantity.tolist() == ["seconds", *over, "peak memory beyond the weights, GiB"] * 2
    )  # a block a sparsity
    assert (
        shown[(shown.source == "measured") & (shown.method == "FlashAttention-2")].quantity.tolist()[0] == "seconds"
    )


def test_table_4_takes_a_time_apart(tmp_path):
    stages = {"ttft": 4000.0, "attend": 1000.0, "plan": 500.0}
    write_timings(tmp_path, "ttft", 8192, [("fa2", None, {"ttft": 4000.0}, 10.0), ("seer", 0.5, stages, 2048.0)])
    frame = collected("table4", Run(tmp_path))
    seer = frame[(frame.source == "measured") & (frame.method == "seer")].set_index("metric").value
    assert [seer[name] for name in ("attention", "planning", "rest")] == pytest.approx([1.0, 0.5, 2.5], rel=0.05)
    assert seer.peak_memory == 2.0
    assert seer.seconds == pytest.approx(4.0, rel=0.05)  # the parts are not mistaken for the whole
    shown = table4.render(frame).set_index(["source", "method", "quantity"])["8k"]
    parts = shown["measured", "SeerAttention", "attention + planning + the rest, seconds"].split(" + ")
    assert [float(part) for part in parts] == pytest.approx([1.0, 0.5, 2.5], rel=0.05)


def test_table_2_says_when_it_cannot_tell_methods_apart(run_dir):
    frame = collected("table2", Run(run_dir))
    assert not [said for said in table2.remarks(frame) if "cannot tell" in said]
    dense = (frame.source == "measured") & (frame.method == "dense") & (frame.task == "passkey")
    frame.loc[dense, "value"] = 35.0
    said = table2.remarks(frame)[-1]
    assert "only 35% of the pass-key task in the shortest bucket (256-512)" in said
    assert "cannot tell methods apart" in said


def test_table_1_orders_blocks_methods_and_gates(run_dir):
    shown = table1.render(collected("table1", Run(run_dir)))
    assert shown.source.tolist() == sorted(shown.source, reverse=True)  # paper, then measured
    measured = list(dict.fromkeys(shown[shown.source == "measured"].method))
    assert measured[:3] == ["Dense", "SeerAttention (long:v1)", "SeerAttention (long:untrained)"]
    paper = shown[(shown.source == "paper") & (shown.method == "MInference")].iloc[0]
    assert paper["16k"] == "10.06 (0.55)"
    assert paper["512"] == "-"
    assert shown[shown.method == "SeerAttention (long:v1)"].iloc[0]["delta NLL, 1k"].startswith("+0.0")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((10.03,), "10.03"),
        ((12.3456, 11.8, 12.9), "12.35 [11.80, 12.90]"),
        ((1234.5, 1200.0, 1270.0), "1234 [1200, 1270]"),
        ((0.01234, 0.01, 0.015), "0.012 [0.010, 0.015]"),
    ],
)
def test_digits_follow_the_interval(numbers, text):
    assert table_format.number(*numbers) == text


def test_one_colour_a_method():
    known = [(colors.colour(name), colors.marker(name)) for name in colors.METHODS]
    assert len(set(known)) == len(known)
    sparse = [colors.colour(name) for name in colors.METHODS if name not in ("dense", "fa2")]
    assert len(set(sparse)) == len(sparse)
    assert colors.colour("mine") == colors.colour("mine")
    assert colors.display("mine") == "mine"


def test_figure_6_draws_a_method_that_nobody_knows(tmp_path):
    methods = [
        ("dense", None, {"attend": 2.0, "total": 2.0}, 1.0),
        ("mine", 0.5, {"total": 1.0, "attend": 0.9}, 1.0),
    ]
    write_timings(tmp_path, "methods", 1024, methods)
    content = io.BytesIO(style.image(fig6.draw(collected("fig6", Run(tmp_path))), "png")).getvalue()
    assert content.startswith(b"\x89PNG")


def test_table_1_says_where_a_sparser_plan_of_moa_is_better(run_dir):
    frame = collected("table1", Run(run_dir))
    assert not [said for said in table1.remarks(frame) if said.startswith("MoA at")]  # its loss grows with sparsity
    at = (frame.method == "moa") & (frame.source == "measured")
    denser = at & (frame.sparsity_requested == 0.4) & (frame.context == 1024)
    frame.loc[denser, ["delta", "delta_low", "delta_high"]] = 0.9, 0.8, 1.0
    said = table1.remarks(frame)[-1]
    assert said.startswith("MoA at 40% loses more than its plan at ")
    assert "(1k: +0.900 against" in said


def test_the_bounds_are_in_the_table_of_methods_and_in_no_figure_of_speed(tmp_path):
    stages = {"plan": 0.5, "attend": 1.0, "total": 1.5}
    methods = [
        ("fa2", None, {"attend": 6.0}, 1.0),
        ("cudnn", None, {"attend": 3.0}, 1.0),
        ("flash-attn", None, {}, 1.0),
        *(("seer", sparsity, stages, 1.0) for sparsity in (0.5, 0.9)),
        ("oracle", 0.9, stages | {"plan": 7.0, "total": 8.0}, 1.0),
        ("random", 0.9, stages, 1.0),
    ]
    for context in (1024, 2048):
        write_timings(
            tmp_path, "methods", context, methods, {"flash-attn": "not installed; pip install it"}.items()
        )
    frame = collected("methods", Run(tmp_path))
    shown = methods_table.render(frame)
    oracle = shown[shown.method == "Oracle top-k (upper bound)"]["2k"].tolist()  # times, speed-ups
    assert float(oracle[0].split(" + ")[0]) == pytest.approx(7, rel=0.2)
    assert oracle[0].endswith("(0.89)")
    assert float(oracle[1].split("x; ")[0]) == pytest.approx(6 / 8, rel=0.1)
    assert oracle[1].endswith("x cuDNN")
    assert shown[shown.method == "FlashAttention-2, its package"]["1k"].tolist() == ["refused, note 1"]
    assert (shown.method == "FlashAttention-2").sum() == 2  # times and speed-ups, once for all cells
    assert any("pip install it" in note for note in table_format.notes(frame))
    for name in ("fig5", "fig6"):
        drawn = collected(name, Run(tmp_path))
        assert "seer" in set(drawn.method)
        assert not {"oracle", "random"} & set(drawn.method)


def test_pareto_joins_loss_and_speed_of_one_method_and_sparsity(made, run_dir):
    frame = pd.read_csv(made["pareto"][0] / "pareto.csv")
    assert set(frame.context) == {1024}  # the longest length that has both
    assert set(frame[frame.method == "seer"].gate) == {"long:v1"}  # the sweep times the paper's gate
    assert not frame.duplicated(["method", "sparsity_requested", "panel"]).any()
    cells, samples = frames.timed(Run(run_dir), "methods")
    fast = aggregates.speedups(cells[cells.context == 1024], samples, "total").set_index(
        ["method", "sparsity_requested"]
    )
    losses = collected("table1", Run(run_dir)).query("source == 'measured' and context == 1024")
    for point in frame[(frame.panel == "total") & (frame.status == "measured")].itertuples():
        assert point.x == pytest.approx(fast.value[point.method, point.sparsity_requested])
        same = losses[(losses.method == point.method) & (losses.sparsity_requested == point.sparsity_requested)]
        assert np.isclose(same.delta, point.y).any()


def test_ablation_shows_the_loss_and_the_retrieval_of_each_gate(made):
    shown = (made["ablation"][0] / "ablation.md").read_text()
    assert "block128:v1" in shown
    frame = pd.read_csv(made["ablation"][0] / "ablation.csv")
    assert set(frame.metric) == {"delta NLL", "correct"}
    right = frame[(frame.metric == "correct") & (frame.gate == "long:v1")]
    assert 0.8 < right.value.iloc[0] < 1.0  # 0.9 of the synthetic look-ups


def longbench_rows(run_id, seer=0.6):
    """Two tasks, two buckets: dense scores 0.5, SeerAttention at 10% `seer`; MInference refuses the short one."""
    rows = []
    for bucket, task, example in itertools.product(("0-4k", "8k+"), ("qasper", "lcc"), range(4)):
        for method, sparsity, score in (("dense", None, 0.5), ("seer", 0.1, seer), ("minference", None, 0.4)):
            refused = method == "minference" and bucket == "0-4k"
            rows.append(
                {
                    "run_id": run_id,
                    "experiment": "longbench",
                    "model": "instruct",
                    "corpus": "LongBench-E",
                    "task": task,
                    "context": 1000 + example,
                    "bucket": bucket,
                    "method": method,
                    "sparsity_requested": sparsity,
                    "sparsity_realised": 0.0 if sparsity is None else 0.12,
                    "example": example,
                    "score": None if refused else score + (0.2 if task == "lcc" else 0.0),
                    "prediction": "said",
                    "cut": example == 0,
                    "definition": "edition of a test",
                    "reason": "too short" if refused else None,
                }
            )
    return rows


def test_longbench_is_table_2_where_a_run_has_it(tmp_path):
    origin_of = origin("tasks longbench")
    folder = tmp_path / "run"
    write_rows(folder / "tasks" / "longbench.parquet", "tasks", longbench_rows(origin_of["run_id"]), origin_of)
    frame = table2.collect(Run(folder), frames.paper_values(PAPER))
    shown = table2.render(frame)
    dense = shown[(shown.source == "measured") & (shown.method == "Dense")].iloc[0]
    assert dense["0-4k"].startswith("60.00")  # (50 + 70) / 2, unweighted over tasks
    minference = shown[(shown.source == "measured") & shown.method.str.startswith("MInference")].iloc[0]
    assert minference["0-4k"] == "refused, note 1"
    assert list(shown.columns[-3:]) == ["0-4k", "4-8k", "8k+"]
    said = " ".join(table2.remarks(frame))
    assert "edition of a test" in said
    assert "25% of the prompts were cut" in said
