"""Load: what counts as other work, limits, waiting, and a real measurement beside busy processes."""

import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest

from seerbench.errors import MeasureError
from seerbench.measure import load
from seerbench.measure.load import CPU_LIMIT, Counters, Load, LoadMeter, Patience, limit, quota, used_by_others
from seerbench.rows.machine import gpu_used_by_others


class FakeMachine:
    """A machine of `cpus` cores on which this process uses `own` of them and others use `others`, both settable."""

    def __init__(self, cpus=2, cores=None, own=0.0, others=0.0):
        self.cpus, self.cores, self.own, self.others = cpus, cores or cpus, own, others
        self.wall = self.idle = self.cpu_time = 0.0
        self.reads = 0

    def pass_by(self, seconds):
        self.wall += seconds
        self.cpu_time += self.own * seconds
        self.idle += max(0.0, self.cpus - self.own - self.others) * seconds

    def read(self):
        self.reads += 1
        return Counters(self.wall, self.idle, self.cpu_time, self.cpus, self.cores)

    def clock(self):
        return self.wall


@pytest.fixture(autouse=True)
def _limits(monkeypatch):
    monkeypatch.delenv(load.LIMIT_VARIABLE, raising=False)


def measured(machine, *phases):
    """Return the load over phases (seconds, others, own), observed ten times per phase."""
    meter = LoadMeter("cpu", machine.read, machine.clock, machine.pass_by)
    meter.observe()
    for seconds, others, own in phases:
        machine.others, machine.own = others, own
        for _ in range(10):
            machine.pass_by(seconds / 10)
            meter.observe()
    return meter.load()


@pytest.mark.parametrize("own", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("others", [0.0, 0.3, 1.0])
def test_what_is_neither_idle_nor_own_belongs_to_others(own, others):
    found = measured(FakeMachine(), (10.0, others, own))
    assert found.own == pytest.approx(own)
    assert found.others == pytest.approx(max(0.0, others - 2 * load.TICK_S / 10.0))
    assert found.cores == 2
    assert found.gpu_others is None


def test_a_quiet_machine_disturbs_nothing_and_a_busy_one_does():
    assert measured(FakeMachine(), (10.0, 0.05, 2.0)).disturbance("cpu") is None
    busy = measured(FakeMachine(), (10.0, 1.0, 1.0))
    assert busy.disturbance("cpu") == "other processes used 1.0 of 2 cores"
    assert busy.columns() == {
        "cores_own": busy.own,
        "cores_others": busy.others,
        "cores_others_peak": busy.peak,
        "gpu_others": None,
    }


def test_a_short_burst_shows_in_the_peak_alone():
    found = measured(FakeMachine(), (20.0, 0.0, 2.0), (2.0, 1.0, 1.0), (20.0, 0.0, 2.0))
    assert found.peak == pytest.approx(1.0, abs=0.1)
    assert found.others < 0.1
    assert found.disturbance("cpu") is None


def test_a_cell_of_a_few_ticks_is_marked_only_if_no_rounding_of_ticks_explains_it():
    machine = FakeMachine(cpus=64)
    assert measured(machine, (0.5, 1.2, 58.0)).others == 0.0
    assert measured(machine, (0.5, 32.0, 32.0)).others == pytest.approx(32 - 1.28)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.03, 0.4999])
def test_a_short_cell_is_watched_for_half_a_second(seconds):
    machine = FakeMachine()
    busy = measured(machine, (seconds, 1.0, 1.0))  # others go on after the cell
    assert machine.wall == pytest.approx(load.WINDOW_S)
    assert busy.others == pytest.approx(1.0 - 2 * load.TICK_S / load.WINDOW_S)
    assert busy.disturbance("cpu") is not None
    assert measured(FakeMachine(), (seconds, 0.1, 1.0)).disturbance("cpu") is None


def test_a_cell_of_half_a_second_is_not_watched_any_longer():
    machine = FakeMachine()
    meter = LoadMeter("cpu", machine.read, machine.clock, pytest.fail)
    meter.observe()
    machine.pass_by(load.WINDOW_S)
    assert meter.load().others == 0.0


def test_nobody_waits_where_any_load_is_accepted_or_none_is_counted(monkeypatch):
    waits = []
    silent = LoadMeter("cpu", lambda: None, sleep=waits.append)
    silent.observe()
    assert silent.load() == Load()
    monkeypatch.setenv(load.LIMIT_VARIABLE, "inf")
    machine = FakeMachine(others=2.0)
    meter = LoadMeter("cpu", machine.read, machine.clock, waits.append)
    meter.observe()
    machine.pass_by(0.1)
    assert meter.load().others == pytest.approx(1.8)
    assert waits == []


def test_one_busy_process_disturbs_a_machine_of_any_size():
    assert measured(FakeMachine(cpus=64), (10.0, 1.0, 63.0)).disturbance("cpu") is not None


def test_in_a_container_others_may_use_the_cpus_beyond_its_quota():
    assert measured(FakeMachine(cpus=64, cores=4), (10.0, 50.0, 4.0)).others == 0.0
    crowded = measured(FakeMachine(cpus=64, cores=4), (10.0, 62.0, 2.0))
    assert crowded.others == pytest.approx(2.0, abs=0.1)
    assert "of 4 cores" in crowded.disturbance("cpu")


def test_counters_that_go_back_or_stand_still_disturb_nothing():
    before = Counters(10.0, 5.0, 3.0, 2, 2)
    assert used_by_others(before, before) == 0.0
    assert used_by_others(before, Counters(11.0, 9.0, 3.0, 2, 2)) == 0.0  # more idle time than time
    assert used_by_others(before, Counters(11.0, 5.0, 6.0, 2, 2)) == 0.0  # more CPU time than the machine has


def test_a_system_that_counts_nothing_gives_no_load_and_judges_nothing(monkeypatch):
    meter = LoadMeter("cpu", lambda: None)
    meter.observe()
    assert meter.load() == Load()
    assert LoadMeter("cpu", lambda: None).load() == Load()  # no round was timed
    assert Load().disturbance("cpu") is None
    monkeypatch.setattr(load.psutil, "cpu_times", lambda percpu: [(0.0, 0.0)] * 2)
    assert load.read_counters() is None


@pytest.mark.parametrize("cores", [2, 16, 192])
def test_on_a_gpu_half_of_the_cores_may_be_busy(cores):
    assert limit("cuda", cores) == cores / 2
    assert limit("cpu", cores) == CPU_LIMIT
    assert Load(1.0, cores / 2, 1.0, cores).disturbance("cuda") is None
    assert Load(1.0, cores / 2 + 0.1, 1.0, cores).disturbance("cuda") is not None


def test_another_process_on_the_gpu_disturbs():
    used = "another process computed on the same GPU"
    assert Load(1.0, 0.0, 0.0, 16, gpu_others=True).disturbance("cuda") == used
    assert Load(1.0, 0.0, 0.0, 16, gpu_others=False).disturbance("cuda") is None
    both = Load(1.0, 15.0, 15.0, 16, gpu_others=True).disturbance("cuda")
    assert both == f"other processes used 15.0 of 16 cores and {used}"


@pytest.mark.parametrize(("text", "cores"), [("inf", float("inf")), ("0.5", 0.5), ("0", 0.0)])
def test_the_limit_can_be_set(monkeypatch, text, cores):
    monkeypatch.setenv(load.LIMIT_VARIABLE, text)
    assert limit("cpu", 2) == limit("cuda", 16) == cores


@pytest.mark.parametrize("text", ["", "much", "-1", "nan", "1,5"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv(load.LIMIT_VARIABLE, text)
    with pytest.raises(MeasureError, match="SEERBENCH_LOAD_LIMIT is a number of cores"):
        limit("cpu", 2)


def test_waiting_ends_when_the_machine_is_quiet_and_what_is_left_serves_the_next_cell(capsys):
    machine = FakeMachine(others=2.0)

    def sleep(seconds):
        machine.pass_by(seconds)
        if machine.wall >= 5.0:
            machine.others = 0.0

    patience = Patience(20.0, machine.read, sleep)
    assert patience.wait("cpu")
    assert machine.wall == 6.0
    assert patience.left_s == 14.0
    assert capsys.readouterr().err == "waiting up to 20 s for a quiet machine\n"


def test_waiting_ends_on_a_machine_that_stays_busy_and_is_not_repeated(capsys):
    machine = FakeMachine(others=2.0)
    patience = Patience(20.0, machine.read, machine.pass_by)
    assert not patience.wait("cpu")
    assert not patience.wait("cpu")
    assert machine.wall == 20.0
    assert capsys.readouterr().err.count("waiting") == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, float("inf")),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == cores


ME = os.getpid()


@pytest.mark.parametrize(
    ("uses", "others"),
    [
        ([], None),  # no sample yet
        ([(ME, 90, 1)], False),
        ([(ME, 90, 1), (77, 5, 1)], True),
        ([(ME, 90, 1), (77, 0, 1)], False),  # it only holds memory
        ([(ME, 90, 1), (77, 5, -1)], False),  # it computed before
        ([(ME, 90, 1), (0, 5, 1), (78, 4_000_000_000, 1)], False),  # what some drivers report
        ([(77, 90, 1)], None),  # in a container it may be this process under another number
        ([(77, 90, 1), (78, 3, 1)], True),
    ],
)
def test_who_computes_on_the_gpu(monkeypatch, uses, others):
    import pynvml

    samples = [SimpleNamespace(pid=pid, smUtil=share, timeStamp=(100 + at) * 1e6) for pid, share, at in uses]
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", lambda gpu, since: samples)
    assert gpu_used_by_others("GPU-1", 100.0) is others


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetProcessUtilization"])
def test_a_driver_that_does_not_say_leaves_it_open(monkeypatch, call):
    import pynvml

    def refuse(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetProcessUtilization"):
        monkeypatch.setattr(pynvml, name, refuse if name == call else lambda *_: [])
    assert gpu_used_by_others("GPU-1", 100.0) is None


def spin():
    while True:
        pass


def test_real_busy_processes_are_seen():
    workers = [multiprocessing.get_context("fork").Process(target=spin, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        meter = LoadMeter("cpu")
        meter.observe()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            meter.observe()
        found = meter.load()
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    if found.others is None:
        pytest.skip("this system does not count idle time")
    # Two busy processes and this one share the cores.
    assert found.others > min(1.0, found.cores / 3) - 0.2
    assert found.own > 0
    assert found.disturbance("cpu") is not None
