"""Define the reference to one gate set: its gate job and its name, written `job:set` in rows."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_GATE = "v1"  # the set with the paper's pooling, projection and loss
UNTRAINED = "untrained"  # the set that keeps its initial weights: the control for every trained set
WITHOUT_ROPE = "norope"  # the set of Figure 9 whose gates score blocks without RoPE
EVERY_SET = "all"  # in a preset: each set of the job in turn


@dataclass(frozen=True)
class GateRef:
    """One gate set of one gate job; `str()` gives `job:set`, the form in the column `gate` of the rows."""

    job: str
    set: str

    @classmethod
    def parse(cls, text: str) -> GateRef:
        """Return the reference that `job:set` names. Raises ValueError for a text of another form."""
        job, colon, name = text.partition(":")
        if not (job and colon and name):
            raise ValueError(f"a gate is written job:set, such as long:v1, not {text!r}")
        return cls(job, name)

    def __str__(self) -> str:
        return f"{self.job}:{self.set}"
