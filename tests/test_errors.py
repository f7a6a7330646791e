"""Errors have fields, so no code has to parse their text."""

from pathlib import Path

from seerbench.errors import MissingRows, ResultsError


def test_missing_rows_are_fields_and_a_sentence():
    error = MissingRows("cells", "cells of the sweep 'kernel'", "latency PRESET kernel CONTEXT", Path("run"))
    assert isinstance(error, ResultsError)
    assert (error.table, error.what, error.folder) == ("cells", "cells of the sweep 'kernel'", Path("run"))
    assert "latency PRESET kernel CONTEXT" in str(error)
    assert MissingRows("tasks", "marks").step is None
