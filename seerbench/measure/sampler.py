"""How one cell is timed: the sampler, its clocks, the lock on the device, peak memory.

A *cell* is one shape, context and sparsity. All methods of a cell run interleaved: after a warm-up of
every one, each round runs every method once, in an order shuffled from the seed, so that whatever
drifts (clocks, temperature, neighbours) is shared by the methods of a round and cancels in the ratios
that statistics.py takes. Raw samples are kept; no statistic is computed here.

`latency.py` builds the cells and calls `sample`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Timer = Callable[[Call], float]  # runs the call and says how many ms it took
# What is overwritten before each timed GPU call: several times the largest L2 (50 MiB on an H200, 126 MiB
# on a B200), as triton.testing.do_bench does.
FLUSH_BYTES = 256 * 2**20
# Two milliseconds or so of a GPU's clock: more than the host takes for the launches of one method, and no more than
# an 8B model's layer leaves queued at 8k. Half a millisecond flattered plans that wait for the GPU (docs/LOG.md).
PAUSE_CYCLES = 4_000_000


@dataclass(frozen=True)
class Timing:
    """How long a cell is timed: `rounds`, but past `min_rounds` no more once `cap_s` seconds have gone by."""

    rounds: int = 30
    min_rounds: int = 10
    cap_s: float = 60.0  # counted from the first round; warm-up and compilation are outside
    warmup: int = 1  # untimed runs of every stage before the first round
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """One method of a cell, ready to run: its stages in the order in which a round runs them."""

    stages: Mapping[str, Call]
    inside: Callable[[], AbstractContextManager] = nullcontext  # entered around its turns, untimed
    parts: Callable[[], Mapping[str, float]] = dict  # ms of parts of the call just timed, by name (Parts.take)


@dataclass(frozen=True)
class Sample:
    """How long one stage of one method took in one round; `order` is the method's place in that round."""

    method: str
    stage: str
    round: int
    order: int
    ms: float


def sample(
    contenders: Mapping[str, Candidate],
    timing: Timing,
    timer: Timer,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Time all `contenders` (by method) interleaved; see the module's text. `clock` only serves the cap."""
    for contender in contenders.values():
        with contender.inside():
            for _ in range(timing.warmup):
                for call in contender.stages.values():
                    timer(call)
                    contender.parts()
    samples, names, shuffle = [], list(contenders), random.Random(timing.seed).shuffle
    started = clock()
    for turn in range(timing.rounds):
        if turn >= timing.min_rounds and clock() - started >= timing.cap_s:
            break
        shuffle(names)
        for order, name in enumerate(names):
            with contenders[name].inside():
                for stage, call in contenders[name].stages.items():
                    took = {stage: timer(call)} | contenders[name].parts()
                    samples += [Sample(name, what, turn, order, ms) for what, ms in took.items()]
    return samples


def timer_for(device: str) -> Timer:
    """The clock for "cpu" or "cuda"."""
    return _cuda_timer() if device == "cuda" else _cpu_timer


def _cpu_timer(call: Call) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _cuda_timer() -> Timer:
    """CUDA events around the call, L2 flushed before.

    The call's launches queue up behind the flush and a pause, as they do behind the layer before in a
    model. What a call waits for itself (a synchronisation in a plan) stays inside the events.
    """
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def timer(call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        torch.cuda._sleep(PAUSE_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return timer


class Parts:
    """How long named parts of a call take, where the call itself cannot be cut: attention inside a model.

    On a GPU a pair of events around each part, read only by `take`, so that nothing is waited for in between.
    """

    def __init__(self, device: str) -> None:
        self.cuda, self.spans = device == "cuda", []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as `name`; a name may come again, once a layer."""
        start = self._now()
        yield
        self.spans.append((name, start, self._now()))

    def take(self) -> dict[str, float]:
        """Milliseconds by name, summed over the blocks since the last `take`."""
        total: dict[str, float] = {}
        for name, start, end in self.spans:
            if self.cuda:
                end.synchronize()
            ms = start.elapsed_time(end) if self.cuda else (end - start) * 1e3
            total[name] = total.get(name, 0.0) + ms
        self.spans.clear()
        return total

    def _now(self) -> torch.cuda.Event | float:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
