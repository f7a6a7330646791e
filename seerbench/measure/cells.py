"""cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from seerbench.core.problem import AttentionProblem
from seerbench.errors import Refused
from seerbench.measure.memory import peak_mib
from seerbench.measure.sampler import Call, Candidate, Timing, sample, timer_for
from seerbench.rows.machine import cpu_name
from seerbench.rows.source_digest import source_digest

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
MEANINGLESS = "random: a dynamic method's choice and sparsity mean nothing on them"


class Rows(NamedTuple):
    """Rows of the tables `cells` and `samples`."""

    cells: list[dict[str, Any]]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """A method that has run once: what is timed, and what is already known of it."""

    stages: dict[str, Call]
    whole: str  # the stage whose memory is the method's
    sparsity: float  # realised
    flops: float | None = None
    error: float | None = None
    budget: float | None = None
    inside: Callable[[], AbstractContextManager] = nullcontext
    parts: Callable[[], Mapping[str, float]] = dict  # see timing.Contender
    peak_mib: float | None = None  # where preparing was the untimed call that the others get after it
    dense: bool = False  # planned to skip nothing, whatever its name


@dataclass(frozen=True)
class Entry:
    """One method in one cell, before anything of it has run."""

    name: str
    implementation: str
    mask: str
    requested: float | None
    refusal: str | None
    prepare: Callable[[], Prepared]
    case: AttentionProblem  # with the entrant's own blocks
    gate: str | None = None  # the configuration or plan file that decides its choice
    dynamic: bool = False


@dataclass(frozen=True)
class Job:
    """What the cells of one sweep at one context share."""

    sweep: str
    case: AttentionProblem  # of any entrant: their blocks may differ
    inputs: str
    timing: Timing
    run_id: str

    def measure(self, sparsity: float | None, entrants: Iterable[Entry]) -> Rows:
        """One cell: prepare and check each entrant, then time all that stand, interleaved."""
        cell = f"{self.sweep}-{self.case.context}" + ("" if sparsity is None else f"-{sparsity:.2f}")
        rows, contenders = [], {}
        for entrant in entrants:
            outcome, contender = _admit(entrant, self.case.device)
            rows.append(self._row(cell, entrant) | outcome)
            if contender:
                contenders[entrant.name] = contender
        samples = sample(contenders, self.timing, timer_for(self.case.device))
        return Rows(rows, [{"run_id": self.run_id, "cell": cell, **asdict(one)} for one in samples])

    def _row(self, cell: str, entrant: Entry) -> dict[str, Any]:
        device = cpu_name() if self.case.device == "cpu" else torch.cuda.get_device_name()
        return {
            "run_id": self.run_id,
            "sweep": self.sweep,
            "cell": cell,
            "method": entrant.name,
            "implementation": entrant.implementation,
            **asdict(replace(entrant.case, device=device)),
            "inputs": MEANINGLESS if self.inputs == "random" and entrant.dynamic else self.inputs,
            "mask": entrant.mask,
            "gate": entrant.gate,
            "sparsity_requested": entrant.requested,
            "seed": self.timing.seed,
            "source_digest": source_digest(),
        }


def joined(parts: Iterable[Rows]) -> Rows:
    """The rows of several cells."""
    parts = list(parts)
    return Rows([row for part in parts for row in part.cells], [row for part in parts for row in part.samples])


def _admit(entrant: Entry, device: str) -> tuple[dict[str, Any], Candidate | None]:
    """Run the untimed calls of one entrant -> what its row says of them, and what to time, if anything."""
    if entrant.refusal:
        return {"status": "refused", "reason": entrant.refusal}, None
    try:
        ready = entrant.prepare()
        known = {
            "sparsity_realised": ready.sparsity,
            "error_vs_oracle": ready.error,
            "error_budget": ready.budget,
            "flops": ready.flops,
            **({"mask": "dense"} if ready.dense else {}),
        }
        if ready.error is not None and not ready.error <= ready.budget:  # so that NaN is wrong too
            reason = (
                f"misses the float64 oracle by {ready.error:.3g}, more than rounding explains ({ready.budget:.3g})"
            )
            return known | {"status": "failed", "reason": reason}, None
        known["peak_mib"] = ready.peak_mib
        if ready.peak_mib is None:
            with ready.inside():
                for call in ready.stages.values():  # compiles, so that the memory of compiling is not counted
                    call()
                known["peak_mib"] = peak_mib(ready.stages[ready.whole], device)
    except Refused as refusal:
        return {"status": "refused", "reason": str(refusal)}, None
    except OUT_OF_MEMORY as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        return {"status": "out_of_memory", "reason": reason}, None
    return known | {"status": "measured", "reason": None}, Candidate(ready.stages, ready.inside, ready.parts)
