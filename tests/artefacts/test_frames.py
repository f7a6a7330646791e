"""Frames: figures and claims of the paper's rule leave out its variants."""

import pandas as pd
import pytest
from synthetic_rows import DENSE, origin, perplexity

from seerbench.artefacts import fig9, frames, table3
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows
from seerbench.report import checks_quality
from seerbench.rows.store import Run, write_rows


def test_cells_without_their_samples_are_missing(run_dir, tmp_path):
    (tmp_path / "cells").symlink_to(run_dir / "cells")
    with pytest.raises(MissingRows, match="samples of the sweep 'training_kernel'"):
        frames.timings(Run(tmp_path), "training_kernel")


def test_variants_are_methods_of_their_own():
    rows = pd.DataFrame({"method": ["dense", "seer", "seer+last2", "seer+layer", "streaming"]})
    assert frames.as_in_paper(rows).method.tolist() == ["dense", "seer"]


def test_what_is_about_the_papers_rule_has_no_variant(tmp_path):
    """Table 3, Figure 9 and the claims on fine-tuning name a recipe and no method: a variant would pass for it."""
    run = origin("perplexity")
    variant = [("seer+last2", "long:v1", recipe, 0.5, 9.0) for recipe in ("post", "joint")]
    yarn = [("seer", "long:v1", recipe, 0.5, loss) for recipe, loss in (("post", 0.3), ("joint", 0.1))]
    experiments = {
        "yarn": [("dense", None, "yarn", None, 0.0), *yarn, *variant],
        "rope": [DENSE, ("seer", "short:rope", "none", 0.5, 0.3), ("seer+last2", "short:rope", "none", 0.5, 9.0)],
    }
    for name, cells in experiments.items():
        rows = perplexity(run["run_id"], name, cells, (2048,))
        write_rows(tmp_path / "perplexity" / f"{name}.parquet", "perplexity", rows, run)
    rows = Run(tmp_path)
    for frame in (table3.collect(rows, paper_values()), fig9.collect(rows, paper_values())):
        assert set(frame[frame.source == "measured"].method) == {"dense", "seer"}
    (comparison,) = checks_quality.joint_beats_post(rows, paper_values()).comparisons
    assert comparison.holds
