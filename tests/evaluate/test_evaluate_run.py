"""An evaluation from the file to rows and card; wrong methods are refused, and a killed one goes on."""

import dataclasses
import io
import json
import re

import pandas as pd
import pytest
from rich.console import Console
from standins import make_preset
from typer.testing import CliRunner

from seerbench import errors
from seerbench.artefacts import losses
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.cli import app
from seerbench.data.ruler.tasks import TASKS
from seerbench.evaluate import measure
from seerbench.evaluate.card import OWN, Card, Section, as_page, in_terminal
from seerbench.evaluate.run import evaluate
from seerbench.measure import perplexity
from seerbench.paths import ROOT
from seerbench.rows.store import Run, write_rows
from seerbench.steps import accuracy, data, latency

EXAMPLE = ROOT / "examples" / "pooled_top_k.py"
NAME = "pooled-top-k"


def run(preset, tmp_path, target=EXAMPLE, sparsities=(0.5, 0.7), quick=False):
    out = tmp_path / "evaluated"
    return evaluate(
        str(target), preset, sparsities=sparsities, quick=quick, out=out, published=tmp_path / "published"
    )


def table(card, title):
    return next(section.cells for section in card.sections if section.title.startswith(title))


def test_a_method_goes_through_the_whole_protocol(preset, tmp_path):
    data.make_corpus(preset, "texts")
    accuracy.measure_perplexity(preset, "contexts")
    accuracy.measure_tasks(preset, "retrieval")
    latency.measure_latency(preset, "methods", [256])
    outcome = run(preset, tmp_path)
    folder = tmp_path / "evaluated" / "small" / NAME
    assert set(outcome.files) == {folder, folder / "card.md", folder / "card.html"}
    rows = Run(folder)

    found = rows.table("perplexity")
    assert found.status.eq("measured").all()
    assert found.groupby(["context", "method", "sparsity_requested"], dropna=False).document.nunique().eq(3).all()
    assert len(found) == 2 * 3 * 3  # contexts, documents, arms
    tasks = rows.table("tasks")
    assert set(tasks.last_rows_dense[tasks.method != "dense"]) == {0, 2}
    refused = tasks[tasks.correct.isna()]  # 16 blocks have no room for two dense rows at 70%, and 8 none at 50%
    assert refused.reason.str.contains("the last 2 rows keep all").all()
    assert set(zip(refused.context, refused.sparsity_requested)) == {(128, 0.5), (128, 0.7), (256, 0.7)}
    timed = rows.table("samples")
    assert {"plan", "attend", "total"} <= set(timed[timed.method == NAME].stage)
    cells = rows.table("cells").groupby("method").source_digest.unique()
    assert cells[NAME] != cells["dense"]

    shown = table(outcome.card, "Loss over dense attention")
    assert list(shown.method[shown.run == OWN]) == ["Pooled top-k"] * 2
    assert "StreamingLLM" in set(shown.method[shown.run == "small"])
    delta = losses.collect(rows, paper_values().iloc[:0])
    delta = delta[(delta.context == 256) & (delta.sparsity_requested == 0.7)].value.item()
    own = found[found.context == 256].set_index(["sparsity_requested", "document"]).nll
    dense = found[(found.context == 256) & (found.method == "dense")].set_index("document").nll
    assert (own[0.7] - dense).mean() == pytest.approx(delta)
    cell = shown[(shown.run == OWN) & (shown.context == "256")]["70%"].item()
    assert float(cell.split()[0]) == pytest.approx(delta, abs=5e-3)
    assert any("place 1 of 2" in fact or "place 2 of 2" in fact for fact in outcome.card.facts)
    times = table(outcome.card, "Time")
    assert "StreamingLLM" in set(times.method)
    peak = rows.table("cells").set_index(["method", "sparsity_requested"]).peak_mib[NAME, 0.5]
    assert times[(times.run == OWN) & (times.sparsity == "50%")]["peak, MiB"].tolist() == [f"{peak:.3g}"]
    assert "StreamingLLM" in set(table(outcome.card, "Look-ups").method)
    assert [section.title for section in outcome.card.sections][2] == "Time and memory, 256 tokens"

    assert (folder / "card.md").read_text().startswith("# Pooled top-k\n")
    assert (folder / "card.html").read_text() == as_page(outcome.card)
    assert (folder / EXAMPLE.name).read_bytes() == EXAMPLE.read_bytes()
    runs = rows.table("runs")
    assert all(command.startswith(f"seerbench evaluate {EXAMPLE} --preset ") for command in runs.command)
    assert {json.loads(weights)["tiny"] for weights in runs.weights} == {"the folder tiny"}


def test_ruler_is_answered_under_both_protocols(tmp_path, monkeypatch):
    """The preset has one more example than --quick takes; the others are the same."""
    name = "niah_single_2"
    monkeypatch.setitem(TASKS, name, dataclasses.replace(TASKS[name], new_tokens=3))  # for the sake of time
    ruler = {"ruler": [name], "contexts": [1408], "examples": 4, "batch": 8}
    last = [{"method": "streaming", "last_rows_dense": 2, "sparsities": [0.5]}]
    tasks = {"ruler": ruler, "ruler-last-rows": ruler | {"arms": last}}
    preset = make_preset(tmp_path, [{"method": "dense"}, {"method": "streaming", "sparsities": [0.5]}], **tasks)
    data.make_corpus(preset, "texts")
    for name in tasks:
        accuracy.measure_tasks(preset, name)
    outcome = run(preset, tmp_path, sparsities=(0.5,), quick=True)
    rows = Run(tmp_path / "evaluated" / "small" / NAME).table("tasks")
    rows = rows[rows.experiment == "ruler"]
    assert set(rows.context) == {1408}
    assert set(zip(rows.method.str.partition("+")[0], rows.last_rows_dense)) == {("dense", 0), (NAME, 0), (NAME, 2)}
    assert rows.groupby(["task", "method", "last_rows_dense"]).example.agg(sorted).map([0, 1, 2].__eq__).all()
    assert rows.score.between(0, 1).all()
    section = next(section for section in outcome.card.sections if section.title == "RULER, 1408 tokens")
    assert list(section.cells) == ["run", "method", "50%, all sparse", "50%, last 2 dense"]
    assert list(section.cells.method) == ["Pooled top-k", "StreamingLLM"]
    cells = section.cells.iloc[:, 2:].to_numpy().ravel()
    assert all(re.fullmatch(r"[\d.]+ \[[\d., ]+\] \(0\.(49|5\d)\)", cell) for cell in cells), cells
    beside = Run(tmp_path / "evaluated" / "small" / NAME / "beside").table("tasks")
    beside = beside[beside.experiment.str.startswith("ruler")]
    assert set(beside.example) == {0, 1, 2}
    own, theirs = (
        part[part.method == "dense"].sort_values(["task", "example"]).prediction.tolist() for part in (rows, beside)
    )
    assert own == theirs
    assert "3 examples per task and length of RULER" in outcome.card.facts[1]


def test_other_windows_are_not_put_beside(preset, tmp_path):
    data.make_corpus(preset, "texts")
    accuracy.measure_perplexity(preset, "contexts")
    rows, runs = (Run(preset.folder).table(name) for name in ("perplexity", "runs"))
    other = preset.paths.rows("perplexity", "contexts")
    worse = rows.assign(nll=rows.nll + 0.5)  # as of another model of the same name
    runs = runs.astype(object).where(runs.notna(), None).to_dict("records")
    write_rows(other, "perplexity", worse, runs)
    outcome = run(preset, tmp_path, sparsities=(0.5,), quick=True)
    assert set(table(outcome.card, "Loss over dense attention").run) == {OWN}
    said = outcome.card.sources[-1]
    assert f"seerbench perplexity {preset.reference} contexts" in said
    assert f"seerbench latency {preset.reference} methods 256" in said


def test_a_killed_evaluation_goes_on_and_an_edited_method_begins_again(preset, tmp_path, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text(EXAMPLE.read_text())
    calls = []
    whole = perplexity.perplexity

    def killed_at(number):
        def measured(*arguments):
            calls.append(arguments)
            if len(calls) == number:
                raise KeyboardInterrupt
            return whole(*arguments)

        return measured

    monkeypatch.setattr(perplexity, "perplexity", killed_at(3))
    with pytest.raises(KeyboardInterrupt):
        run(preset, tmp_path, mine, (0.5,))
    calls.clear()
    monkeypatch.setattr(perplexity, "perplexity", killed_at(3))
    mine.write_text(EXAMPLE.read_text() + "\n# edited\n")
    with pytest.raises(KeyboardInterrupt):
        run(preset, tmp_path, mine, (0.5,))
    mine.write_text(EXAMPLE.read_text())
    calls.clear()
    monkeypatch.setattr(perplexity, "perplexity", killed_at(0))
    assert run(preset, tmp_path, mine, (0.5,)).card is not None
    assert len(calls) == 2 * 3 - 2  # two of the windows were measured before
    folder = tmp_path / "evaluated" / "small" / NAME
    assert Run(folder).table("perplexity").run_id.nunique() == 2
    assert not list(folder.glob("*/*.pieces"))


def test_disturbed_timings_are_measured_again_and_nothing_else(preset, tmp_path, monkeypatch):
    def disturbed(*arguments):
        found = latency.timed_rows(*arguments)
        for row in found.cells:
            row |= {"status": "disturbed", "reason": "other processes used 1.5 of 2 cores"}
        return found

    with monkeypatch.context() as busy:
        busy.setattr(measure, "timed_rows", disturbed)
        first = run(preset, tmp_path, sparsities=(0.5,), quick=True)
    assert any("run the same command on a quiet machine" in note for note in first.card.sections[2].notes)
    monkeypatch.setattr(perplexity, "perplexity", None)  # whoever calls it fails
    second = run(preset, tmp_path, sparsities=(0.5,), quick=True)
    assert "speed-up" in second.card.sections[2].cells
    assert second.card.sections[0].cells.equals(first.card.sections[0].cells)
    assert not list((tmp_path / "evaluated").rglob("*.pieces"))


@pytest.mark.parametrize("width", [120, 58, 36])
def test_a_terminal_shows_every_column(width):
    """No word is broken where the longest ones fit, and nothing is cut off where they do not."""
    line = {"run": OWN, "method": "An-unbreakable-name of a method", "speed-up": "0.73x [0.70, 0.75]"}
    console = Console(width=width, record=True, file=io.StringIO())
    section = Section("Time", pd.DataFrame([line]), ())
    in_terminal(Card("A card", (), (section,), ()), console)
    text = console.export_text()
    assert re.search("└.*┘", text)
    assert ("An-unbreakable-name" in text) == (width > 36)
    assert ("An-unbreakable-name of a method" in text) == (width == 120)


WRONG = '''
import torch
from seerbench.core.block_mask import BlockMask
from seerbench.core.reference import reference_attention
from seerbench.methods.protocol import Method, Plan
from seerbench.methods.registry import register

class Half(Plan):
    def density(self):
        return DENSITY

@register("wrong", cites="none")
class Wrong(Method):
    """A wrong method."""
    def __init__(self, sparsity=0.5, block=64):
        self.sparsity, self.block = sparsity, block
    def plan(self, q, k, layer):
        return Half()
    def attend(self, q, k, v, plan):
        group = lambda x: x.repeat_interleave(q.shape[1] // x.shape[1], 1)
        out = torch.nn.functional.scaled_dot_product_attention(q, group(k), group(v), is_causal=CAUSAL)
        return CHANGE
'''


@pytest.mark.parametrize(
    ("density", "causal", "change", "reason"),
    [
        ("0.5", "False", "out", "looks into the future"),
        (
            "1.0",
            "True",
            "out",
            "at 128 tokens, asked to skip 50%: skips 0.0% of the blocks where 50.0% was",
        ),
        ("0.5", "True", "out if q.shape[2] % 16 == 0 else out * torch.nan", "NaN"),
        (
            "0.5",
            "True",
            "out if q.shape[2] < 128 else out * torch.nan",
            "256 tokens, asked to skip 50%: the model's loss is not a number",
        ),
    ],
)
def test_a_wrong_method_is_refused_with_the_reason(preset, tmp_path, density, causal, change, reason):
    text = WRONG.replace("DENSITY", density).replace("CAUSAL", causal).replace("CHANGE", change)
    (tmp_path / "wrong.py").write_text(text)
    command = ["evaluate", tmp_path / "wrong.py", "--preset", tmp_path / "small.yaml", "--sparsities", 0.5]
    command += ["--out", tmp_path / "evaluated", "--results", tmp_path / "results"]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 3, done.output
    assert "wrong is wrong and was not measured" in done.output
    assert reason in done.output
    assert not list((tmp_path / "evaluated").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (ROOT / "examples" / "gather_attention.py", "is a kernel"),
        ("seer", "needs trained gates"),
        ("fa2", "takes no argument sparsity"),
        ("nobody", "no method 'nobody'"),
        (ROOT / "baselines" / "streaming.py", "the name streaming is taken"),
    ],
)
def test_what_is_no_method_to_evaluate_is_one_line(preset, tmp_path, target, text):
    with pytest.raises(errors.UserError, match=text):
        run(preset, tmp_path, target)


def test_a_name_that_is_no_folder_is_refused(preset, tmp_path):
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text().replace('"pooled-top-k"', '"../mine"'))
    with pytest.raises(errors.CompareError, match=r"'\.\./mine' in @register"):
        run(preset, tmp_path, tmp_path / "mine.py")


def test_sparsities_are_shares_and_a_preset_measures_losses(preset, tmp_path):
    with pytest.raises(errors.ConfigError, match=r"above 0 and below 1, not 1\.5"):
        run(preset, tmp_path, sparsities=(0.5, 1.5))
    with pytest.raises(errors.ConfigError, match="once"):
        run(preset, tmp_path, sparsities=(0.5, 0.5))
    del preset.file.perplexity["contexts"]
    with pytest.raises(errors.ConfigError, match="measures no loss"):
        run(preset, tmp_path)
