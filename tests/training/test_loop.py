"""The progress bar of a training shows a loss that is a number."""

import math

from seerbench.training.loop import first_number


def test_the_bar_shows_the_first_loss_that_is_a_number():
    assert first_number({"loss": 1.23456, "lookup_loss": 7.0}, ("loss", "lookup_loss")) == {"loss": "1.235"}
    assert first_number({"loss": math.nan, "lookup_loss": 7.0}, ("loss", "lookup_loss")) == {"lookup_loss": "7.000"}
    assert first_number({"loss": math.inf, "lookup_loss": 0.0}, ("loss", "lookup_loss")) == {"lookup_loss": "0.000"}


def test_a_training_that_diverges_says_so():
    assert first_number({"loss": math.nan, "lookup_loss": math.nan}, ("loss", "lookup_loss")) == {"loss": "nan"}
