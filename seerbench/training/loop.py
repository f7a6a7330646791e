"""Run the steps of a training: continue from its checkpoint, save at intervals, and write the result at the end.

Pre-training, distillation and fine-tuning share this loop; each passes a function that performs one step. Batches
and learning rates depend on the number of the step alone. So a training that is killed at any moment and started
again ends with the weights and rows of one that is not interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from seerbench.errors import TrainingDiverged
from seerbench.training.checkpoint import checkpoint_file, load_checkpoint, save_checkpoint
from seerbench.training.fsdp import broadcast_from_rank0, rank_and_world_size

Row = dict[str, Any]


def require_finite_loss(loss: float, step: int, job: Job, what: str = "the loss") -> None:
    """Raise TrainingDiverged unless a loss is a finite number; trainings call it before they change the weights.

    Args:
        loss: of the step, which is what the gradients are of.
        step: number of the step, from 0.
        job: its `out` names the training.
        what: name of the loss, for the message.
    """
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the training of {job.out.name} diverged: {what} is {loss} at step {step + 1}; lower its learning "
            "rate in the preset, or give it a longer warm-up"
        )


class Job(Protocol):
    """The settings that the loop reads from the job of a training."""

    @property
    def out(self) -> Path:
        """Return the path that the training writes. The checkpoint is beside it."""
        ...

    @property
    def checkpoint_seconds(self) -> float:
        """Return the time between two checkpoints, in seconds."""
        ...


def run_steps(
    job: Job,
    params: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    steps: int,
    digest: str,
    title: str,
    train_step: Callable[[int, Sequence[Row]], list[Row]],
    save_result: Callable[[], None],
    shown: Sequence[str] = (),
) -> list[Row]:
    """Perform the steps that the checkpoint does not contain, write the result, and return all training rows.

    Every process of torchrun calls this.

    Args:
        job: says where the checkpoint is and how often it is written.
        params: name -> trained tensor.
        optimizers: of these tensors.
        steps: of the training, those in the checkpoint included.
        digest: identity of the training, from `digest_of`. The checkpoint of another training is not continued.
        title: text before the progress bar.
        train_step: called with the number of a step and the rows so far; updates the weights and returns the
            rows of the step.
        save_result: writes the trained weights; called after the last step and before the last checkpoint.
        shown: columns of losses; the progress bar shows the first that is a number. A batch that holds no text has
            no loss of the text, which is NaN in its row.
    """
    file = checkpoint_file(job.out)
    saved = time.monotonic()
    done, rows = load_checkpoint(file, params, optimizers, digest=digest)
    hidden = rank_and_world_size()[0] > 0
    with tqdm(total=steps, initial=done, desc=title, unit="step", mininterval=1, disable=hidden) as bar:
        for step in range(done, steps):
            rows += train_step(step, rows)
            bar.update()
            if shown:
                bar.set_postfix(first_number(rows[-1], shown), refresh=False)
            if broadcast_from_rank0(time.monotonic() - saved > job.checkpoint_seconds):
                save_checkpoint(file, params, optimizers, digest=digest, step=step + 1, rows=rows)
                saved = time.monotonic()
    save_result()
    save_checkpoint(file, params, optimizers, digest=digest, step=steps, rows=rows)
    return rows


def first_number(row: Row, columns: Sequence[str]) -> dict[str, str]:
    """Return the first column that is a number in a row, with three decimals; the first column where none is."""
    numbers = [name for name in columns if math.isfinite(row[name])]
    return {name: f"{row[name]:.3f}" for name in (numbers or list(columns))[:1]}
