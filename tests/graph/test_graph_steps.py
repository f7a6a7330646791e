"""Every rule that runs a command has words, and durations come from earlier rows."""

import re

import pytest
from rows.made_rows import a_run, rows_for
from synthetic_rows import origin, write_timings

from seerbench.graph.steps import WORDS, disturbed_timings, in_words, measured_durations, measured_parts, step_name
from seerbench.paths import PUBLISHED, ROOT
from seerbench.rows.store import Run, write_rows

RULES = "".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")])
WILDCARDS = {name: name.upper() for name in ("corpus", "model", "gates", "experiment", "sweep", "context")}
WILDCARDS |= {"artefact": "fig6", "notebook": "gates"}


def rules_with_commands():
    for text in re.split(r"^(?=rule |use rule )", RULES, flags=re.MULTILINE)[1:]:
        name = re.match(r"use rule \w+ as (\w+)|rule (\w+)", text)
        if name[1] or "    shell:" in text:
            yield name[1] or name[2]


def test_every_rule_with_a_command_has_words_and_no_other():
    rules = set(rules_with_commands())
    assert {"train", "latency", "draw_table", "finetune_jointly"} <= rules
    assert {rule for rule in rules if not rule.startswith("show_")} == set(WORDS)


@pytest.mark.parametrize("rule", WORDS)
def test_words_name_only_wildcards_of_rules(rule):
    assert "{" not in in_words(rule, WILDCARDS)


def test_a_rule_that_only_collects_files_has_no_words():
    assert in_words("figures", {}) is None
    assert in_words("show_figure", {"artefact": "fig6"}) is None


def test_a_published_run_says_which_parts_it_has(tmp_path):
    for table, step in (("perplexity", "perplexity yarn-math"), ("training", "distill long"), ("maps", "maps")):
        run = a_run(step=step)
        write_rows(tmp_path / table / "all.parquet", table, rows_for(table, run), run)
    assert measured_parts(tmp_path, "perplexity") == {"yarn-math"}
    assert measured_parts(tmp_path, "training") == {"distill-long"}
    assert measured_parts(tmp_path, "maps") == {"maps"}
    assert measured_parts(tmp_path, "cells") == set()


def test_a_step_is_named_as_its_rows_name_it():
    assert step_name("latency", {"sweep": "kernel", "context": "8192"}) == "latency kernel 8192"
    assert step_name("finetune_jointly", {"model": "joint-0.5"}) == "finetune joint-0.5"
    assert step_name("maps", {}) == "maps"


def test_the_published_runs_have_durations():
    found = measured_durations("cpu", PUBLISHED.glob("*"))
    assert {"train short", "distill long", "perplexity contexts"} <= set(found)
    assert all(seconds > 0 for seconds in found.values())
    assert measured_durations("no such preset", PUBLISHED.glob("*")) == {}


def write(folder, step, seconds):
    run = origin(step, preset="test", wall_s=seconds)
    row = {"run_id": run["run_id"], "name": "x", "kind": "pretrain", "recipe": "none", "step": 0, "tokens": 1}
    write_rows(
        folder / "training" / f"{step}.parquet", "training", [{**row, "context": 8, "learning_rate": 0.1}], run
    )


def test_the_last_folder_counts_and_damaged_files_do_not(tmp_path):
    write(tmp_path / "published", "train a", 100.0)
    write(tmp_path / "published", "train b", 50.0)
    write(tmp_path / "own", "train a", 10.0)
    (tmp_path / "own" / "training" / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "own" / "training" / "empty.parquet").touch()
    found = measured_durations("test", [tmp_path / "published", tmp_path / "own", tmp_path / "none"])
    assert found == {"train a": 10.0, "train b": 50.0}


def test_disturbed_timings_are_named_with_the_commands_that_repeat_them(tmp_path):
    assert disturbed_timings(tmp_path / "none") == []
    for context in (1024, 2048):
        write_timings(tmp_path, "kernel", context, [("dense", None, {"attend": context / 100}, 1.0)])
    assert disturbed_timings(tmp_path) == []
    run = origin("latency", "kernel-1024", command="seerbench latency cpu kernel 1024")
    cells = Run(tmp_path).table("cells", "kernel-1024")
    rows = cells.assign(status="disturbed", reason="other processes used 1.7 of 2 cores")
    write_rows(tmp_path / "cells" / "kernel-1024.parquet", "cells", rows, run)
    (tmp_path / "samples" / "kernel-1024.parquet").unlink()
    first, *commands = disturbed_timings(tmp_path)
    assert "on a quiet machine" in first
    assert commands == ["    seerbench latency cpu kernel 1024"]
    (tmp_path / "cells" / "kernel-2048.parquet").write_bytes(b"PAR1")
    assert disturbed_timings(tmp_path) == []
