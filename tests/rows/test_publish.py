"""Only clean runs are published; a changed file or kernel is found."""

import json

import pytest

from rows.made_rows import a_run, rows_for
from seerbench.errors import ResultsError
from seerbench.rows.manifest import Manifest
from seerbench.rows.publish import publish
from seerbench.rows.staleness import stale
from seerbench.rows.store import Run, write_rows


def test_publishing_is_deliberate_and_checked(tmp_path):
    fresh, published = tmp_path / "fresh", tmp_path / "published" / "box"
    run = a_run(dirty=True)
    write_rows(fresh / "cells" / "a.parquet", "cells", rows_for("cells", run), run)
    with pytest.raises(ResultsError, match="test"):
        publish(fresh, published)
    assert not published.exists()
    for number in range(2):
        run = a_run(run_id=f"run-{number}")
        write_rows(fresh / "cells" / f"{'ab'[number]}.parquet", "cells", rows_for("cells", run), run)
    (fresh / "plans").mkdir()
    (fresh / "plans" / "moa.json").write_text("{}")
    publish(fresh, published, {"long": b"gates"})
    assert (published / "gates" / "long.safetensors").read_bytes() == b"gates"
    assert len(Run(published).table("cells")) == 6
    assert Run(published).table("runs").run_id.tolist() == ["run-0", "run-1"]
    assert stale(published) == []
    manifest = json.loads((published / "MANIFEST.json").read_text())
    assert list(manifest) == ["cells/all.parquet", "plans/moa.json", "gates/long.safetensors"]
    old = a_run(source_digest="older")
    write_rows(published / "cells" / "all.parquet", "cells", rows_for("cells", old), old)
    (file,) = stale(published)
    assert "all.parquet" in file
    with pytest.raises(ResultsError, match=r"all\.parquet is not the file that was published"):
        Run(published).table("cells")
    Manifest.write(published, manifest)
    (kernels,) = stale(published)
    assert "000000000" in kernels
