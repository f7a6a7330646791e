"""A step that failed counts as changed, once per failure, in its own preset and folder."""

import logging

import pytest

from seerbench.errors import GraphError
from seerbench.graph.failures import FILE, Failures


def tell(failures, event, job, **fields):
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "", None, None)
    record.__dict__.update(event=event, jobid=job, **fields)
    assert failures.filter(record)


def fail(folder, preset, rule, **wildcards):
    failures = Failures(folder, preset)
    tell(failures, "job_info", 7, rule_name=rule, wildcards=wildcards)
    tell(failures, "job_error", 7)


def test_only_the_step_that_failed_has_changed(tmp_path):
    assert Failures(tmp_path, "cpu").counter("latency")({"sweep": "kernel", "context": "512"}) == 0
    for count in (1, 2):
        fail(tmp_path, "cpu", "latency", sweep="kernel", context="512")
        after = Failures(tmp_path, "cpu")
        assert after.counter("latency")({"context": "512", "sweep": "kernel"}) == count
        assert after.counter("latency")({"sweep": "kernel", "context": "1024"}) == 0
        assert after.counter("maps")({}) == 0
    assert Failures(tmp_path, "gpu").counter("latency")({"sweep": "kernel", "context": "512"}) == 0
    assert Failures(tmp_path / "other", "cpu").counter("latency")({"sweep": "kernel", "context": "512"}) == 0


def test_a_step_that_ends_well_is_not_counted(tmp_path):
    failures = Failures(tmp_path, "cpu")
    tell(failures, "job_info", 1, rule_name="maps", wildcards={})
    tell(failures, "job_finished", 1)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "\x00", '"x"'])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(content)
    with pytest.raises(GraphError, match="cannot be read"):
        Failures(tmp_path, "cpu")


def test_a_folder_that_cannot_be_written_does_not_hide_the_failure(tmp_path, capsys):
    (tmp_path / ".snakemake").write_text("a file")
    fail(tmp_path, "cpu", "maps")
    assert "then run with --forceall" in capsys.readouterr().err
