"""Time the methods of one cell: interleaved rounds of timed calls, on a CPU or a GPU.

A cell is one shape, context and sparsity. All its methods are timed in the same rounds: after an untimed warm-up of
each, every round runs every method once, in an order shuffled from the seed. A slow drift (clocks, temperature)
then affects all methods of a round alike and cancels in the ratios that rows/bootstrap.py takes. Other processes do
not cancel: they slow some methods down far more than others, so load.py observes them between the rounds. Raw
samples are returned; nothing is averaged here.

cells.py builds the candidates of a cell and calls `sample`; the hand tools in tools/ do too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Timer = Callable[[Call], float]  # runs a call and returns its duration in milliseconds
# Memory that is overwritten before each timed GPU call to empty the L2 cache: several times the largest L2 (50 MiB
# on an H200, 126 MiB on a B200). triton.testing.do_bench uses the same size.
FLUSH_BYTES = 256 * 2**20
# About 2 ms of GPU cycles. This is longer than the host needs to launch one method, and no longer than the work
# that a layer of an 8B model keeps queued at 8k. With 0.5 ms, plans that wait for the GPU looked too fast
# (docs/LOG.md).
PAUSE_CYCLES = 4_000_000


@dataclass(frozen=True)
class Timing:
    """The number of rounds of a cell and the seed of their order.

    Attributes:
        rounds: the number of rounds, unless `cap_s` ends the cell earlier.
        min_rounds: the number of rounds that run however long they take.
        cap_s: seconds after which no further round starts. They count from the first round, so warm-up and
            compilation are not included.
        warmup: untimed runs of every stage before the first round.
        seed: seed of the order of methods in each round; the sweeps draw inputs and masks from it as well.
    """

    rounds: int = 30
    min_rounds: int = 10
    cap_s: float = 60.0
    warmup: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """One method of a cell, ready to be timed.

    Attributes:
        stages: the calls to time by stage, in the order in which a round runs them.
        inside: makes a context that is entered, untimed, around the stages of this method in each round.
        parts: returns the milliseconds of named parts of the call that was just timed (see `Parts.take`); they
            become samples of their own.
    """

    stages: Mapping[str, Call]
    inside: Callable[[], AbstractContextManager[object]] = nullcontext
    parts: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class Sample:
    """The duration of one stage of one method in one round; `order` is the place of the method in that round."""

    method: str
    stage: str
    round: int
    order: int
    ms: float


def sample(
    candidates: Mapping[str, Candidate],
    timing: Timing,
    timer: Timer,
    clock: Callable[[], float] = time.perf_counter,
    between_rounds: Callable[[], object] = lambda: None,
) -> list[Sample]:
    """Time all candidates in interleaved, shuffled rounds.

    Args:
        candidates: the methods of one cell by name.
        timing: the number of rounds and the seed.
        timer: what times one call; `timer_for` makes it.
        clock: seconds since any fixed moment, used for `timing.cap_s` only.
        between_rounds: called, untimed, before the first round and after each one (`load.LoadMeter.observe`).

    Returns:
        One Sample per round, method and stage (and per part, where a candidate has `parts`).
    """
    for candidate in candidates.values():
        with candidate.inside():
            for _ in range(timing.warmup):
                for call in candidate.stages.values():
                    timer(call)
                    candidate.parts()
    samples, names, shuffle = [], list(candidates), random.Random(timing.seed).shuffle
    between_rounds()
    started = clock()
    for number in range(timing.rounds):
        if number >= timing.min_rounds and clock() - started >= timing.cap_s:
            break
        shuffle(names)
        for order, name in enumerate(names):
            candidate = candidates[name]
            with candidate.inside():
                for stage, call in candidate.stages.items():
                    durations = {stage: timer(call)} | dict(candidate.parts())
                    samples += [Sample(name, part, number, order, ms) for part, ms in durations.items()]
        between_rounds()
    return samples


def timer_for(device: str) -> Timer:
    """Return the timer of a device: "cpu" or "cuda"."""
    return _cuda_timer() if device == "cuda" else _cpu_timer


def _cpu_timer(call: Call) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _cuda_timer() -> Timer:
    """Return a timer that flushes the L2 cache, then records CUDA events around the call.

    The launches of the call queue up behind the flush and a pause, as they queue up behind the previous layer in a
    model. Where the call itself waits for the GPU (a synchronisation in a plan), that wait is part of its duration.
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
    """Time named parts of a call from inside: the planning and the attention within a model's forward pass.

    On a GPU, each part has a pair of CUDA events. Only `take` reads them, so timing a part never waits for the GPU.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._spans: list[tuple[str, torch.cuda.Event | float, torch.cuda.Event | float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block under `name`; the same name may occur once per layer."""
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def take(self) -> dict[str, float]:
        """Return milliseconds by name, summed over the blocks since the last `take`."""
        total: dict[str, float] = {}
        for name, start, end in self._spans:
            if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                end.synchronize()
                ms = start.elapsed_time(end)
            else:
                ms = (end - start) * 1e3
            total[name] = total.get(name, 0.0) + ms
        self._spans.clear()
        return total

    def _now(self) -> torch.cuda.Event | float:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
