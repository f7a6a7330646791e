"""seerbench advise: the method that it recommends, what it never recommends, and what it says of runs left out."""

import re
from html import unescape

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_rows import DENSE, origin, perplexity, timings, write_run
from typer.testing import CliRunner

from seerbench.cli import app
from seerbench.errors import ResultsError
from seerbench.report import advise, choice
from seerbench.rows.store import Run, write_rows

# At 0.6 skipped a method loses this many nats: LOSS * 0.6 ** 3, with the noise of the synthetic rows.
CHEAP, DEAR = 0.05, 0.3


def write_losses(folder, losses, contexts=(1024, 8192), scale_kind="small", gate="long:v1"):
    """Write perplexities of methods at 60%. losses: method -> loss at sparsity 1."""
    run = origin(f"perplexity {folder.name}", scale_kind=scale_kind, scale=f"{scale_kind} of {folder.name}")
    cells = [DENSE] + [(name, gate if name == "seer" else None, "none", 0.6, loss) for name, loss in losses.items()]
    rows = perplexity(run["run_id"], "contexts", cells, contexts)
    write_rows(folder / "perplexity" / "contexts.parquet", "perplexity", rows, run)
    return folder


def write_times(folder, ms, contexts=(8192,), device="Fast GPU", sweep="methods", disturbed=(), **changes):
    """Write timings of methods at 60%, beside a dense one of 100 ms. ms: method -> milliseconds."""
    stage = {"methods": "total", "ttft": "ttft"}[sweep]
    for context in contexts:
        run = origin(f"latency {folder.name}", f"{sweep}-{context}-{device}", device=device, **changes)
        methods = [("dense", None, {stage: 100.0}, 1.0)]
        methods += [(name, 0.6, {stage: time}, 1.0) for name, time in ms.items()]
        cells, samples = timings(run["run_id"], sweep, context, methods)
        cells = [
            {**cell, "device": device, "mask": "gate" if cell["method"] == "seer" else cell["mask"]}
            | ({"status": "disturbed", "reason": "a test"} if cell["method"] in disturbed else {})
            for cell in cells
        ]
        part = f"{sweep}-{context}-{device.replace(' ', '-')}.parquet"
        write_rows(folder / "cells" / part, "cells", cells, run)
        write_rows(folder / "samples" / part, "samples", samples, run)
    return folder


LOSSES = {"seer": CHEAP, "moa": DEAR, "oracle": 0.0, "random": 0.0}


@pytest.fixture
def folders(tmp_path):
    """Return a run of losses and one of timings: oracle and random blocks are the fastest and lose the least."""
    times = {"seer": 20.0, "moa": 10.0, "oracle": 1.0, "random": 1.0}
    return [write_losses(tmp_path / "quality", LOSSES), write_times(tmp_path / "speed", times)]


def test_speed_and_loss_are_joined_and_controls_are_never_named(folders):
    text = "\n".join(advise.advise(8192, None, folders))
    (chosen,) = [line for line in text.splitlines() if "attention at 8k" in line]
    assert "SeerAttention, blocks of 64, 60%: 4.98x" in chosen
    assert "over Dense; loss at 8k +0.01" in chosen
    assert "with more loss: MoA" in text
    assert "small of quality" in text  # what the losses are about
    for control in ("Oracle", "Random"):
        assert control not in text


@pytest.mark.parametrize(
    ("tolerance", "chosen", "more"), [(0.02, "SeerAttention", "MoA"), (0.1, "MoA", None), (0.0, "dense", "MoA")]
)
def test_the_tolerance_decides(folders, tolerance, chosen, more):
    lines = advise.advise(8192, None, folders, tolerance)
    assert [chosen in line for line in lines if "attention at 8k" in line] == [True]
    assert [line.split(": ")[1].partition(",")[0] for line in lines if "with more loss" in line] == (
        [more] if more else []
    )


def test_the_report_recommends_the_same_within_two_budgets(folders):
    page = unescape(choice.section([Run(folder) for folder in folders]))
    assert "<caption>Fast GPU</caption>" in page
    row = page[page.index('<th scope="row">attention, 8k</th>') :]
    within, beyond = re.findall("<td>(.*?)</td>", row)[:2]
    assert re.match(r"SeerAttention, 59% skipped: 4.98x .* loss \+0.01", within)
    assert re.match(r"MoA, 59% skipped: .* loss \+0.06", beyond)
    assert "lack one of the two" in choice.section([Run(folders[0])])


def test_a_gate_without_training_is_never_recommended(tmp_path):
    quality = write_losses(tmp_path / "quality", {"seer": CHEAP}, gate="long:untrained")
    speed = write_times(tmp_path / "speed", {"seer": 20.0})
    assert "  attention at 8k: dense" in "\n".join(advise.advise(8192, None, [quality, speed]))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (8192, []),
        (4000, ["4000 was not measured; the nearest measured: 2k and 8k"]),
        (10**6, ["nearest measured: 8k"]),
    ],
)
def test_a_length_that_was_not_measured_is_never_shown_as_if_it_was(tmp_path, wanted, said):
    quality = write_losses(tmp_path / "quality", LOSSES)
    speed = write_times(tmp_path / "speed", {"seer": 20.0}, contexts=(2048, 8192))
    text = "\n".join(advise.advise(wanted, None, [quality, speed]))
    assert all(words in text for words in said)
    assert ("was not measured" in text) == bool(said)
    assert f"attention at {wanted}:" not in text


def test_the_loss_is_that_of_a_gate_with_the_same_block_size(tmp_path):
    """The preset `gpu` says that the gate job block128 has blocks of 128; no gate there has blocks of 32."""
    quality = write_losses(tmp_path / "quality", {"seer": 0.0})
    run = origin("perplexity gates", preset="gpu")
    cells = [DENSE, ("seer", "block128:v1", "none", 0.6, CHEAP)]
    rows = perplexity(run["run_id"], "gates", cells, (1024, 8192))
    write_rows(quality / "perplexity" / "gates.parquet", "perplexity", rows, run)
    speed = write_times(tmp_path / "speed", {"seer": 20.0})
    found = advise.strongest_quality([Run(quality)])
    lines = pd.DataFrame(
        {"context": 8192, "method": "seer", "gate_set": "v1", "sparsity_realised": 0.59}, index=[0]
    )
    for block, loss_block, least in ((64, 64, -0.01), (128, 128, 0.005), (32, 64, -0.01)):
        line = advise.with_loss(lines.assign(block=block), found, 8192).iloc[0]
        assert line.loss_block == loss_block
        assert (line.delta > 0.005) == (least > 0)
    assert "SeerAttention" in "\n".join(advise.advise(8192, None, [quality, speed]))


@pytest.mark.parametrize(("wanted", "contexts"), [(1024, [1024]), (700, [512, 1024]), (64, [512]), (10**6, [2048])])
def test_the_nearest_measured_contexts(wanted, contexts):
    assert advise.nearest([512, 2048, 1024], wanted) == contexts


def test_losses_come_from_the_strongest_run(tmp_path):
    small = write_losses(tmp_path / "small", {"seer": 0.0})
    paper = write_losses(tmp_path / "paper", {"seer": DEAR}, scale_kind="paper", contexts=(1024,))
    speed = write_times(tmp_path / "speed", {"seer": 20.0})
    text = "\n".join(advise.advise(8192, None, [small, paper, speed]))
    assert "paper of paper" in text
    assert "loss at 1k +0.06" in text  # the longest length measured up to 8k


def test_comparisons_are_left_out_and_named(tmp_path):
    quality = write_losses(tmp_path / "quality", LOSSES)
    compared = write_times(tmp_path / "compare", {"seer": 1.0}, preset="compare")
    text = "\n".join(advise.advise(8192, None, [quality, compared]))
    assert "attention at" not in text
    assert f"{compared} is not used" in text


def test_a_disturbed_timing_is_never_recommended(tmp_path):
    """The fastest method was timed beside other processes: its rows stay, and the advice ignores them."""
    quality = write_losses(tmp_path / "quality", LOSSES)
    speed = write_times(tmp_path / "speed", {"seer": 20.0, "moa": 1.0}, disturbed=("moa",))
    text = "\n".join(advise.advise(8192, None, [quality, speed], tolerance=1.0))
    assert "attention at 8k: SeerAttention" in text
    assert "MoA" not in text
    assert "left out as disturbed: 1 of the timings" in text
    all_of_it = write_times(tmp_path / "busy", {"seer": 20.0}, disturbed=("seer", "dense"), device="Other GPU")
    text = "\n".join(advise.advise(8192, "other", [quality, all_of_it]))
    assert "SeerAttention" not in text
    assert "left out as disturbed: 2 of the timings" in text


def test_a_run_in_progress_is_spoken_of_as_one(tmp_path):
    quality = write_losses(tmp_path / "fresh", LOSSES)
    text = "\n".join(advise.advise(8192, None, [quality]))
    assert f"{quality} has no timings yet" in text
    assert "No run here has timings" in text


def test_without_losses_nothing_is_recommended(tmp_path):
    text = "\n".join(advise.advise(8192, None, [write_times(tmp_path / "speed", {"seer": 1.0})]))
    assert "nothing can be recommended" in text
    assert "SeerAttention" not in text


def test_an_unknown_machine_is_refused_with_the_known_ones(folders):
    with pytest.raises(ResultsError, match=r"'TPU'.*Fast GPU"):
        advise.advise(8192, "TPU", folders)
    assert "Fast GPU:" in advise.advise(8192, "fast", folders)  # in any case


def test_an_answer_is_short_whatever_was_measured(tmp_path):
    """Of many machines those with the wanted length come first, and the others are named."""
    folders = [write_losses(tmp_path / "quality", LOSSES)]
    for number in range(9):
        times, contexts = {"seer": 20.0, "moa": 10.0}, (8192,) if number == 8 else (4096, 16384)
        folders.append(write_times(tmp_path / f"speed{number}", times, contexts, f"GPU {number}"))
    lines = advise.advise(8192, None, folders)
    assert len(lines) <= advise.LINES
    assert lines[2] == "GPU 8:"
    named = [line for line in lines if "Left out for space" in line]
    assert len(named) == 1


def test_the_command_has_the_tolerance_and_the_long_tables(folders):
    run = ["advise", "--context", "8k", "--results", str(folders[0].parent), "--published", "none"]
    short = CliRunner().invoke(app, [*run, "--loss", "0.1"])
    assert "up to 0.1 nats" in short.stdout
    everything = CliRunner().invoke(app, [*run, "--all"])
    assert "60% requested" in everything.stdout
    for wrong in ("nan", "-1", "much"):
        assert CliRunner().invoke(app, [*run, "--loss", wrong]).exit_code == 2


def test_it_reads_a_whole_synthetic_run(tmp_path):
    lines = advise.advise(2048, None, [write_run(tmp_path / "run")])
    assert any("attention at 1k" in line for line in lines)
    assert len(Run(tmp_path / "run").table("cells")) > 0


positive = st.floats(0.1, 10)
LINE = st.fixed_dictionaries(
    {"value": positive, "low": positive, "delta_high": st.floats(-0.1, 1) | st.just(float("nan"))}
)


@given(st.lists(LINE, max_size=6), st.floats(0, 1))
def test_a_recommendation_is_faster_and_within_the_tolerance(lines, tolerance):
    lines = pd.DataFrame(lines, columns=["value", "low", "delta_high"])
    best, more = advise.recommended(lines, tolerance)
    fit = lines[(lines.low > 1) & (lines.delta_high <= tolerance)]
    assert (best is None) == fit.empty
    if best is not None:
        assert best.value == fit.value.max()
    if more is not None:
        assert more.low > 1
        assert tolerance < more.delta_high <= advise.WORTH_NAMING
        assert best is None or more.value > best.value
