"""Table 4: refused cells and their notes, the fastest dense kernel, and the parts of a time."""

import pytest
from synthetic_rows import write_timings

from seerbench.artefacts import table4, table_format


def test_a_refused_cell_is_empty_and_has_a_note(collect):
    frame = collect("table4")
    refused = frame[frame.status == "refused"]
    assert set(refused.method) == {"minference"}
    assert refused.value.isna().all()
    assert set(refused.reason) == {"head_dim 32 is not 128"}
    cells = table4.render(frame)
    seconds = cells[(cells.source == "measured") & (cells.quantity == "seconds")].set_index("method")
    cell = seconds.loc["MInference"]["1k"]
    assert cell == "refused, note 2"
    assert "Note 2: refused: head_dim 32 is not 128." in table_format.notes(frame)
    # A method of the paper that the run lacks once had lines of its own, without a number.
    assert "MoA" not in seconds.index
    assert "Not in this run: MoA." in table_format.notes(frame)
    assert "Note 1: out of memory: the paper prints OOM." in table_format.notes(frame)


def test_the_fastest_dense_kernel_is_named_only_where_it_is_another(collect, tmp_path):
    assert "speedup_over_fastest_dense" not in set(collect("table4").metric)
    methods = [(name, None, {"ttft": ms}, 1.0) for name, ms in (("fa2", 400.0), ("cudnn", 200.0))]
    methods += [("seer", sparsity, {"ttft": 100.0}, 1.0) for sparsity in (0.5, 0.9)]
    write_timings(tmp_path, "ttft", 8192, methods)
    cells = table4.render(collect("table4", tmp_path))
    cells = cells[cells.source == "measured"]
    assert "Dense" not in set(cells.method)  # the paper's dense kernel is FlashAttention-2
    quantities = cells[cells.method == "SeerAttention"].quantity.tolist()
    assert quantities[::2] == quantities[1::2]  # one line per sparsity: two speed-ups, seconds, memory
    assert len(quantities) == 2 * 4
    assert "FlashAttention-2" in quantities[0]
    assert "cuDNN" in quantities[2]
    assert (
        cells[cells.method == "SeerAttention"]["8k"].str.contains(r"\(0\.\d\d\)").sum() == 2 * 3
    )  # each its sparsity
    assert (cells.method == "FlashAttention-2").any()


def test_a_time_has_three_parts(collect, tmp_path):
    stages = {"ttft": 4000.0, "attend": 1000.0, "plan": 500.0}
    write_timings(tmp_path, "ttft", 8192, [("fa2", None, {"ttft": 4000.0}, 10.0), ("seer", 0.5, stages, 2048.0)])
    frame = collect("table4", tmp_path)
    seer = frame[(frame.source == "measured") & (frame.method == "seer")].set_index("metric").value
    assert [seer[name] for name in table4.PARTS.values()] == pytest.approx([1.0, 0.5, 2.5], rel=0.05)
    assert "fa2" not in set(frame[frame.metric.isin(table4.PARTS.values())].method)  # its parts were not timed
    assert seer.peak_memory == 2.0
    assert seer.seconds == pytest.approx(4.0, rel=0.05)  # the parts are not mistaken for the whole
    cells = table4.render(frame)
    cells = cells[(cells.source == "measured") & (cells.method == "SeerAttention")]
    (parts,) = [text.split(" + ") for text in cells["8k"] if text.count(" + ") == 2]
    assert [float(part) for part in parts] == pytest.approx([1.0, 0.5, 2.5], rel=0.05)


def test_random_weights_have_a_remark(collect):
    frame = collect("table4")
    without = table4.remarks(frame)
    (note,) = table4.remarks(frame.assign(inputs_kind="random_weights"))[len(without) :]
    assert "untrained" in note


def test_the_papers_ratios_are_beside_this_runs(collect):
    """Seconds of two machines do not compare; the ratios to dense once came in another part of the table."""
    cells = table4.render(collect("table4"))
    first = cells[cells.quantity.str.startswith("speed-up")]
    assert first.index.max() < cells[cells.quantity == "seconds"].index.min()
    methods = first.method.tolist()
    assert methods == sorted(methods, key=methods.index)  # each method once, with both sources
    assert set(first[first.method == "SeerAttention"].source) == {"paper", "measured"}
