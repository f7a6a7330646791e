"""The progress bar of a training shows a loss that is a number, and a training that diverges stops."""

import dataclasses
import math

import pytest
from tiny_jobs import OPTIMIZER, distill_job, finetune_job

from seerbench.errors import TrainingDiverged
from seerbench.training.distill import distill
from seerbench.training.finetune import finetune
from seerbench.training.loop import first_number


def test_the_bar_shows_the_first_loss_that_is_a_number():
    assert first_number({"loss": 1.23456, "lookup_loss": 7.0}, ("loss", "lookup_loss")) == {"loss": "1.235"}
    assert first_number({"loss": math.nan, "lookup_loss": 7.0}, ("loss", "lookup_loss")) == {"lookup_loss": "7.000"}
    assert first_number({"loss": math.inf, "lookup_loss": 0.0}, ("loss", "lookup_loss")) == {"lookup_loss": "0.000"}


def test_a_training_that_diverges_says_so():
    assert first_number({"loss": math.nan, "lookup_loss": math.nan}, ("loss", "lookup_loss")) == {"loss": "nan"}


def test_distillation_that_diverges_stops_with_its_step(world, tmp_path):
    job = distill_job(world, tmp_path / "gates.safetensors", learning_rate=1e30, steps=20, warmup=0)
    with pytest.raises(
        TrainingDiverged, match=r"gates.safetensors diverged: the loss of the gate set \w+ is \w+ at step \d+;"
    ):
        distill(job)
    assert not job.out.exists()


def test_fine_tuning_that_diverges_stops_with_its_step(world, tmp_path):
    fast = OPTIMIZER.model_copy(update={"muon_lr": None, "adam_lr": 1e30, "embed_lr": 1e30})
    job = dataclasses.replace(finetune_job(world, tmp_path / "yarn"), optimizer=fast, steps=5)
    with pytest.raises(
        TrainingDiverged, match=r"yarn diverged: the loss is \w+ at step [2-5]; lower its learning rate"
    ):
        finetune(job)
    assert not job.out.exists()
