"""Measure what else the machine does while a cell is timed, and wait until it is quiet.

Pairing within a round protects a ratio against what slows all methods alike. Another process that takes a core does
not slow them alike, so it changes ratios. cells.py therefore reads the load between the rounds of every cell
(`LoadMeter`). A cell that was timed beside other work is timed again once the machine is quiet (`Patience`), or it
is marked as disturbed in its row, and nothing is concluded from it (rows/timings.py).

What is counted: the time during which the CPUs that this process may use were not idle, minus the CPU time of this
process. The rest belongs to other processes, child processes of this one among them, to the kernel, and to the
other guests of a virtual machine (steal time). In a container these are the CPUs of the host, of which the
container may use only a part (its CPU quota); other processes then count as far as they use more than the remaining
CPUs. The kernel counts idle time in clock ticks, so one tick per CPU is subtracted: a reported load is a lower
bound. That leaves nothing of a cell that takes a few ticks, so every measurement lasts half a second at least
(WINDOW_S); what other processes do right after a shorter cell is counted as its load. Systems that do not count
idle time (gVisor, for example) give no load, and their cells are not judged.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from seerbench.errors import MeasureError
from seerbench.rows.machine import gpu_used_by_others

# Cores that other processes may use, on average, while a cell is timed on the CPU. On a machine of two cores that
# did nothing else, others used 0.01 cores, and Snakemake 0.03 beside a graph. Two busy processes used 1.0, and
# ratios moved by up to a quarter (docs/timing.md). The limit does not grow with the number of cores: a parallel
# loop waits for its slowest thread, so a single core that is taken away slows it down on any machine.
CPU_LIMIT = 0.25
# The same limit for a cell on a GPU, as a share of the cores: one thread launches kernels, and the scheduler finds
# a free core for it while half of them are idle.
HOST_SHARE = 0.5
LIMIT_VARIABLE = "SEERBENCH_LOAD_LIMIT"  # replaces both limits, in cores, on a machine that is never quiet
# One process waits this many seconds in all, so that a step on a machine that stays busy ends: a background job
# such as an update often ends within a minute, and most steps time several cells.
WAIT_S = 60.0
PROBE_S = 1.0  # the machine is quiet when other processes stay below the limit for this long
# A cell is timed at most this often, so that a machine which is quiet only between two cells does not hold up the
# step.
ATTEMPTS = 3
# A load is taken over at least this time: fifty ticks of the clock in which the kernel counts idle time.
WINDOW_S = 0.5
TICK_S = 0.01


class Counters(NamedTuple):
    """The clocks of the machine at one moment, in seconds.

    wall: a clock that never goes back. idle: the idle time of the CPUs that this process may use, summed. own: the
    CPU time of this process, all its threads together. cpus: the number of these CPUs. cores: how many of them this
    process may use at once (a container's quota).
    """

    wall: float
    idle: float
    own: float
    cpus: int
    cores: float


def read_counters() -> Counters | None:
    """Read the clocks of this machine; None where the system does not count idle time."""
    each = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(each)))
    if max(allowed) < len(each):  # not so where a CPU of a lower number is switched off
        each = [each[cpu] for cpu in sorted(allowed)]
    if not sum(map(sum, each)):
        return None
    idle = sum(times.idle + getattr(times, "iowait", 0.0) for times in each)
    return Counters(time.monotonic(), idle, time.process_time(), len(each), min(len(each), quota()))


def quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the number of cores that the container of this process may use at once; infinity without a limit."""
    both = root / "cpu.max"  # control groups, version 2: "200000 100000", or "max 100000"
    limit, period = (root / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))  # version 1
    if both.exists():
        texts = both.read_text(encoding="utf-8").split()
    elif limit.exists() and period.exists():
        texts = [limit.read_text(encoding="utf-8").strip(), period.read_text(encoding="utf-8").strip()]
    else:
        return float("inf")
    return float("inf") if texts[0] in ("max", "-1") else int(texts[0]) / int(texts[1])


def used_by_others(before: Counters, after: Counters) -> float:
    """Return the number of cores that other processes used on average between two moments, at least."""
    wall = after.wall - before.wall
    if wall <= 0:
        return 0.0
    busy = after.cpus * wall - (after.idle - before.idle)
    others = busy - (after.own - before.own) - after.cpus * TICK_S
    return max(0.0, others / wall - (after.cpus - after.cores))


@dataclass(frozen=True)
class Load:
    """What the machine did while a cell was timed; None where the system does not say.

    Attributes:
        own: cores that this process used on average: its CPU time over the wall time.
        others: cores that other processes used on average.
        peak: cores that they used in the busiest half second (WINDOW_S).
        cores: the number of cores that this process may use.
        gpu_others: whether another process computed on the GPU.
    """

    own: float | None = None
    others: float | None = None
    peak: float | None = None
    cores: float | None = None
    gpu_others: bool | None = None

    def columns(self) -> dict[str, Any]:
        """Return the columns of the table `cells` that hold the load."""
        return {
            "cores_own": self.own,
            "cores_others": self.others,
            "cores_others_peak": self.peak,
            "gpu_others": self.gpu_others,
        }

    def disturbance(self, device: str) -> str | None:
        """Return what disturbed a cell on a device ("cpu" or "cuda") too much, in words; None if nothing did."""
        reasons = []
        if self.others is not None and self.cores is not None and self.others > limit(device, self.cores):
            reasons.append(f"other processes used {self.others:.1f} of {self.cores:g} cores")
        if self.gpu_others:
            reasons.append("another process computed on the same GPU")
        return " and ".join(reasons) or None


def limit(device: str, cores: float) -> float:
    """Return how many cores other processes may use while a cell is timed on a device.

    Raises MeasureError if the environment variable SEERBENCH_LOAD_LIMIT, which replaces the limit, is no number.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if text is None:
        return CPU_LIMIT if device == "cpu" else HOST_SHARE * cores
    try:
        chosen = float(text)
    except ValueError:
        chosen = -1.0
    if not chosen >= 0:
        raise MeasureError(f"{LIMIT_VARIABLE} is a number of cores, such as 0.25 or inf, not {text!r}")
    return chosen


def is_limited(device: str) -> bool:
    """Return whether a load can be too high for a cell on a device: not so where SEERBENCH_LOAD_LIMIT is inf.

    Raises MeasureError as `limit` does.
    """
    return limit(device, cores=1.0) < float("inf")


class LoadMeter:
    """Measure the load from the first call of `observe`, which the sampler makes between rounds, to `load`.

    A call takes a microsecond, and about 100 microseconds once per WINDOW_S; no call falls into a timed one.
    """

    def __init__(
        self,
        device: str,
        read: Callable[[], Counters | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._device, self._read, self._clock, self._sleep = device, read or read_counters, clock, sleep
        self._first: Counters | None = None
        self._last: Counters | None = None
        self._next = float("-inf")  # when the counters are read again
        self._peak = 0.0
        self._since = time.time()

    def observe(self) -> None:
        """Read the counters if half a second has passed; the first call starts the measurement."""
        if self._clock() >= self._next:
            self._advance()

    def _advance(self) -> None:
        now = self._read()
        self._next = self._clock() + WINDOW_S
        if self._last is not None and now is not None:
            self._peak = max(self._peak, used_by_others(self._last, now))
        self._first, self._last = self._first or now, now

    def load(self) -> Load:
        """End the measurement and return the load.

        If the load can be too high (`is_limited`), this waits until WINDOW_S has passed since the first `observe`.
        """
        if self._next == float("-inf"):
            return Load()
        now = self._read()
        if self._first is not None and now is not None and is_limited(self._device):
            rest = WINDOW_S - (now.wall - self._first.wall)
            if rest > 0:
                self._sleep(rest)
                now = self._read()
        gpu_others = None
        if self._device == "cuda":
            gpu_others = gpu_used_by_others(f"GPU-{torch.cuda.get_device_properties('cuda').uuid}", self._since)
        if self._first is None or now is None or now.wall <= self._first.wall:
            return Load(gpu_others=gpu_others)
        own = (now.own - self._first.own) / (now.wall - self._first.wall)
        others = used_by_others(self._first, now)
        return Load(own, others, max(self._peak, others), now.cores, gpu_others)


class Patience:
    """Wait for a quiet machine, for a limited time in all, and say so on stderr.

    Attributes:
        left_s: the seconds that are left to wait.
    """

    def __init__(
        self,
        left_s: float = WAIT_S,
        read: Callable[[], Counters | None] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.left_s, self._read, self._sleep = left_s, read, sleep

    def wait(self, device: str) -> bool:
        """Wait until other processes stay below the limit for PROBE_S; return whether that happened in time."""
        if self.left_s >= PROBE_S:
            print(f"waiting up to {self.left_s:.0f} s for a quiet machine", file=sys.stderr, flush=True)
        while self.left_s >= PROBE_S:
            meter = LoadMeter(device, self._read)
            meter.observe()
            self._sleep(PROBE_S)
            self.left_s -= PROBE_S
            if meter.load().disturbance(device) is None:
                return True
        return False


PATIENCE = Patience()  # one for all cells that a process times
