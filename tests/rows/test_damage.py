"""A damaged file of rows gives the rows that were written, or one line; never other rows."""

import random

import pandas as pd
import pyarrow.parquet as pq
import pytest

from rows.made_rows import a_run, rows_for
from seerbench.errors import ResultsError
from seerbench.paths import PUBLISHED
from seerbench.rows import parquet
from seerbench.rows.manifest import MANIFEST, Manifest
from seerbench.rows.publish import publish
from seerbench.rows.schema import schema
from seerbench.rows.store import Run, read_rows, write_rows


@pytest.fixture
def file(tmp_path):
    run, path = a_run(), tmp_path / "perplexity" / "a.parquet"
    write_rows(path, "perplexity", rows_for("perplexity", run), run)
    return path


def test_a_flipped_byte_is_found_or_changes_nothing(file):
    good, expected = file.read_bytes(), read_rows(file)
    draw = random.Random(0)
    refused = 0
    for place in draw.sample(range(len(good)), 250):
        damaged = bytearray(good)
        damaged[place] ^= draw.randrange(1, 256)
        try:
            frame, runs, table = read_rows(file, content=bytes(damaged))
        except ResultsError as error:
            refused += str(file) in str(error)
            continue
        pd.testing.assert_frame_equal(frame, expected[0])
        assert (runs, table) == expected[1:]
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}", bytes(1000), "wörter".encode("latin-1")])
def test_another_content_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(ResultsError, match=r"a\.parquet"):
        Run(file.parent.parent).table("perplexity")


def test_every_length_of_a_cut_file_is_refused(file):
    content = file.read_bytes()
    for length in range(0, len(content) - 1, 97):
        with pytest.raises(ResultsError):
            read_rows(file, content=content[:length])


def test_pages_have_checksums(file, monkeypatch):
    asked = []
    plain = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda *args, **options: asked.append(options) or plain(*args, **options))
    read_rows(file)
    assert [options["page_checksum_verification"] for options in asked] == [True]
    # Without a checksum the damage of a data page goes unnoticed by the format.
    data = file.read_bytes()
    nll = schema("perplexity").names.index("nll")
    start = pq.ParquetFile(file).metadata.row_group(0).column(nll).dictionary_page_offset
    damaged = data[: start + 40] + bytes([data[start + 40] ^ 1]) + data[start + 41 :]
    with pytest.raises(ResultsError):
        parquet.read(file, ResultsError, "measure again", damaged)


@pytest.fixture
def published(tmp_path):
    run = a_run()
    for name in ("recall", "maps"):
        write_rows(tmp_path / "fresh" / name / "a.parquet", name, rows_for(name, run), run)
    return publish(tmp_path / "fresh", tmp_path / "published")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"maps/all.parquet": 3}', "\x00", '"x"'])
def test_a_damaged_manifest_is_one_line(published, content):
    (published / MANIFEST).write_text(content)
    with pytest.raises(ResultsError, match="publish it again"):
        Run(published)


def test_a_file_that_is_missing_changed_or_added_is_refused(published):
    extra = published / "recall" / "more.parquet"
    extra.write_bytes((published / "recall" / "all.parquet").read_bytes())
    with pytest.raises(ResultsError, match=r"more\.parquet"):
        Run(published).table("recall")
    extra.unlink()
    assert len(Run(published).table("recall")) == 3
    (published / "recall" / "all.parquet").unlink()
    with pytest.raises(ResultsError, match=r"all\.parquet is missing"):
        Run(published).table("recall")
    assert Manifest.of(published).changed() == [published / "recall" / "all.parquet"]


def test_a_folder_of_results_published_needs_its_manifest(monkeypatch, published):
    monkeypatch.setattr("seerbench.rows.manifest.PUBLISHED", published.parent)
    (published / MANIFEST).unlink()
    with pytest.raises(ResultsError, match=MANIFEST):
        Run(published)


def test_what_is_committed_is_what_was_published():
    for folder in sorted(PUBLISHED.glob("*/")):
        assert Manifest.of(folder).changed() == []
