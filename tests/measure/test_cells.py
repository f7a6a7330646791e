"""Methods that refuse, are wrong or run out of memory become rows and are not timed; other work marks a cell."""

import pandas as pd
import pytest
import torch

from measure.toy import QUICK, SMALL, NeverRuns, Refuses, frames
from seerbench.measure import cells as measure_cells
from seerbench.measure import load
from seerbench.measure.cells import CellTimer, Entry, Prepared
from seerbench.measure.inputs import RANDOM_INPUTS
from seerbench.measure.load import Counters, Patience
from seerbench.measure.sweeps import kernel_sweep
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import create
from seerbench.rows.schema import DISTURBED
from seerbench.rows.timings import judged


class Wrong(BlockSparse):
    """A kernel that skips nothing, so its output is not the requested attention; it counts its calls."""

    calls = 0

    def attend(self, q, k, v, plan):
        self.calls += 1
        return create("dense").attend(q, k, v, None)


class NotANumber(BlockSparse):
    def attend(self, q, k, v, plan):
        return torch.full_like(q, torch.nan)


class OutOfMemory(BlockSparse):
    def attend(self, q, k, v, plan):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")


@pytest.mark.parametrize("kernel", [Wrong(), NotANumber()])
def test_a_wrong_kernel_is_not_timed(kernel):
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", {"wrong": kernel}))
    row = cells.set_index("method").loc["wrong"]
    assert row.status == "failed"
    assert "reference" in row.reason
    assert not row.error_vs_oracle <= row.error_budget
    assert set(samples.method) == {"dense"}
    if isinstance(kernel, Wrong):
        assert kernel.calls == 1  # Only the check calls the kernel.


def test_a_refusal_and_a_full_memory_become_rows():
    kernels = {"no": Refuses(), "big": OutOfMemory()}
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", kernels))
    cells = cells.set_index("method")
    assert cells.loc["no", ["status", "reason"]].tolist() == ["refused", "takes no context of 500"]
    assert cells.loc["big", ["status", "reason"]].tolist() == ["out_of_memory", "tried to allocate 20 GiB"]
    assert pd.isna(cells.loc["no", "sparsity_realised"])
    assert set(samples.method) == {"dense"}


def test_any_other_error_is_not_swallowed():
    with pytest.raises(AssertionError, match="was run"):
        kernel_sweep(SMALL, [0.5], QUICK, "run", {"broken": NeverRuns()})


def test_cells_of_one_sweep_share_inputs_and_rounds_pair(uncompiled):
    _, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run"))
    order = samples.pivot(index="round", columns="method", values="order")
    assert (order.sum(axis=1) == 1).all()  # Each round has the places 0 and 1.
    assert order.dense.nunique() == 2  # The order changes between rounds.


class Machine:
    """Stands in for the counters of this machine; others use `loads` cores of two, one entry per cell or probe."""

    def __init__(self, *loads):
        self.loads, self.wall, self.idle, self.reads = list(loads), 0.0, 20.0, 0

    def read(self):
        if self.reads % 2:  # the end of a cell or of a probe, ten seconds after its beginning
            others = self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]
            self.wall, self.idle = self.wall + 10.0, self.idle + 10.0 * (2.0 - others)
        self.reads += 1
        return Counters(self.wall, self.idle, 0.0, 2, 2)


def timed_on(machine, monkeypatch, left_s=5.0, spreads=(1.0,), limit=load.CPU_LIMIT):
    """Time two entries; half of the rounds of a cell take 1 ms and the others as many as `spreads` says in turn."""
    monkeypatch.setenv(load.LIMIT_VARIABLE, str(limit))
    rounds, spreads = [], list(spreads)

    def stopwatch(call):
        call()
        place = len(rounds) % (QUICK.rounds + QUICK.warmup)
        rounds.append(spreads[min(len(rounds) // (QUICK.rounds + QUICK.warmup), len(spreads) - 1)])
        return rounds[-1] if place % 2 else 1.0

    monkeypatch.setattr(measure_cells, "timer_for", lambda device: stopwatch)
    monkeypatch.setattr(load, "read_counters", machine.read)
    patience = Patience(left_s, sleep=lambda _: None)
    calls = []
    call = lambda: calls.append(1)  # noqa: E731
    prepared = Prepared({"attend": call}, "attend", 0.5, peak_mib=1.0)
    entries = [
        Entry("mine", "torch", "random", 0.5, None, lambda: prepared, SMALL),
        Entry("no", "torch", "random", 0.5, "takes none", lambda: prepared, SMALL),
    ]
    timer = CellTimer("kernel", SMALL, RANDOM_INPUTS, QUICK, "run", patience)
    cells, samples = frames(timer.measure(0.5, entries))
    return cells.set_index("method"), samples, len(calls)


def test_a_quiet_cell_is_timed_once_and_says_nothing(monkeypatch, capsys):
    cells, samples, calls = timed_on(Machine(0.05), monkeypatch)
    assert cells.status.to_dict() == {"mine": "measured", "no": "refused"}
    assert cells.cores_others["mine"] == pytest.approx(0.048)
    assert pd.isna(cells.cores_others["no"])
    assert cells.gpu_others.isna().all()
    assert len(samples) == QUICK.rounds
    assert calls == QUICK.rounds + QUICK.warmup
    assert capsys.readouterr().err == ""


def test_a_disturbed_cell_is_timed_again_when_the_machine_is_quiet(monkeypatch, capsys):
    # the cell, two probes, and the cell again
    cells, samples, calls = timed_on(Machine(1.7, 1.9, 0.0, 0.0), monkeypatch)
    assert cells.status["mine"] == "measured"
    assert cells.cores_others["mine"] == 0.0
    assert len(samples) == QUICK.rounds  # those of the second time alone
    assert calls == 2 * (QUICK.rounds + QUICK.warmup)
    assert capsys.readouterr().err == (
        "this machine is busy: other processes used 1.7 of 2 cores while kernel-500-0.50 was timed\n"
        "waiting up to 5 s for a quiet machine\n"
    )


def test_a_cell_on_a_machine_that_stays_busy_is_marked_and_its_samples_are_kept(monkeypatch, capsys):
    cells, samples, calls = timed_on(Machine(1.7), monkeypatch)
    assert cells.status.to_dict() == {"mine": "disturbed", "no": "refused"}
    assert cells.reason.to_dict() == {"mine": "other processes used 1.7 of 2 cores", "no": "takes none"}
    assert cells.cores_others["mine"] == pytest.approx(1.698)
    assert len(samples) == QUICK.rounds
    assert calls == QUICK.rounds + QUICK.warmup
    said = capsys.readouterr().err
    assert said.endswith("kernel-500-0.50 is marked as disturbed: nothing is concluded from its timings\n")


def test_a_machine_that_is_quiet_only_between_cells_is_not_tried_for_ever(monkeypatch):
    cells, _, calls = timed_on(Machine(*[1.0, 0.0] * 10), monkeypatch, left_s=1000.0)
    assert cells.status["mine"] == "disturbed"
    assert calls == load.ATTEMPTS * (QUICK.rounds + QUICK.warmup)


def test_a_cell_of_an_impossible_spread_is_timed_again_at_once(monkeypatch, capsys):
    cells, samples, calls = timed_on(Machine(0.05), monkeypatch, left_s=0.0, spreads=[9.0, 1.0])
    assert cells.status["mine"] == "measured"
    assert samples.ms.tolist() == [1.0] * QUICK.rounds  # those of the second time alone
    assert calls == 2 * (QUICK.rounds + QUICK.warmup)
    said = capsys.readouterr().err
    assert said.startswith("mine: impossible spread: half of the rounds outside")
    assert said.endswith("ms (attend); kernel-500-0.50 is timed again\n")
    assert said.count("\n") == 1


def test_a_spread_that_stays_impossible_is_judged_by_its_rows(monkeypatch, capsys):
    cells, samples, calls = timed_on(Machine(0.05), monkeypatch, left_s=0.0, spreads=[9.0])
    assert calls == load.ATTEMPTS * (QUICK.rounds + QUICK.warmup)
    assert cells.status["mine"] == "measured"
    assert capsys.readouterr().err.count("is timed again") == load.ATTEMPTS - 1
    apart, kept = judged(cells.reset_index(), samples)
    assert apart.set_index("method").status["mine"] == DISTURBED
    assert kept.empty


def test_a_spread_counts_as_an_attempt_on_a_busy_machine_too(monkeypatch):
    loads = [0.0, 1.7, 0.0, 0.0]  # a cell, a cell, a probe, a cell
    cells, _, calls = timed_on(Machine(*loads), monkeypatch, spreads=[9.0, 1.0, 9.0])
    assert calls == load.ATTEMPTS * (QUICK.rounds + QUICK.warmup)
    assert cells.status["mine"] == "measured"


def test_nothing_is_timed_again_where_any_load_is_accepted(monkeypatch, capsys):
    _, _, calls = timed_on(Machine(1.7), monkeypatch, spreads=[9.0], limit="inf")
    assert calls == QUICK.rounds + QUICK.warmup
    assert capsys.readouterr().err == ""
