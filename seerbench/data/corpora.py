"""Define the kinds of corpora that a preset can name, as types. texts.py reads their documents.

This module imports no torch, since presets are checked without it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seerbench.settings import Count, Name, OneOf, Settings, Text

SPLITS = ("train", "validation", "test")
GROUPINGS = ("file", "folder")


class StdlibCorpus(Settings):
    """The sources of the running Python's standard library: long text that is on every machine."""

    kind: Literal["stdlib"]
    documents: Annotated[str, OneOf(GROUPINGS)] = "file"
    """file: each file is a document; folder: the files of one folder are one document"""
    tokenizer: Name | None = None
    """the model whose tokenizer makes the tokens, where it is not the preset's"""


class SplitFiles(Settings):
    """The files of a data set that are one split."""

    files: Annotated[tuple[Text, ...], Field(min_length=1)]
    """names or patterns of files: parquet, .jsonl, .jsonl.gz"""
    documents: Count | None = None
    """keep this many of the first rows; without it, all"""


class DividedDataSet(Settings):
    """A Hugging Face data set that has files for each split, one document per row."""

    name: Text
    """data set id, or its folder below the preset's data folder"""
    revision: Text
    """commit or tag on the hub"""
    text: Text = "text"
    """the column that holds the text"""
    train: SplitFiles
    validation: SplitFiles | None = None
    """without it, the split is empty"""
    test: SplitFiles

    def splits(self) -> dict[str, SplitFiles]:
        """Return the files of each split that the data set has."""
        given = {split: getattr(self, split) for split in SPLITS}
        return {split: files for split, files in given.items() if files is not None}


class ParquetCorpus(Settings):
    """One parquet file with the columns id, text and split, or else a data set of the hub."""

    kind: Literal["parquet"]
    path: Text
    """relative to the preset's data folder"""
    otherwise: DividedDataSet | None = None
    """the data set that is read where there is no such file"""
    tokenizer: Name | None = None
    """the model whose tokenizer makes the tokens, where it is not the preset's"""


class FolderCorpus(Settings):
    """A folder of text files, one document per file."""

    kind: Literal["folder"]
    path: Text
    """relative to the preset's data folder"""
    tokenizer: Name | None = None
    """the model whose tokenizer makes the tokens, where it is not the preset's"""


class HubCorpus(Settings):
    """Files of a Hugging Face data set: parquet, .jsonl or .jsonl.gz, one document per row."""

    kind: Literal["hub"]
    name: Text
    """data set id, or its folder below the preset's data folder"""
    files: Annotated[tuple[Text, ...], Field(min_length=1)]
    """names or patterns of files: parquet, .jsonl, .jsonl.gz"""
    revision: Text | None = None
    text: Text = "text"
    """the column that holds the text"""
    split: Annotated[str, OneOf(SPLITS)] | None = None
    """the split that all of it is; without it, a hash of file and row decides"""
    documents: Count | None = None
    """keep this many of the first rows; without it, all"""
    tokenizer: Name | None = None
    """the model whose tokenizer makes the tokens, where it is not the preset's"""


class UnionCorpus(Settings):
    """Several corpora of the preset as one."""

    kind: Literal["union"]
    of: Annotated[tuple[Name, ...], Field(min_length=2)]
    """the other corpora"""
    tokenizer: Name | None = None
    """the model whose tokenizer makes the tokens, where it is not the preset's"""


TextSource = StdlibCorpus | ParquetCorpus | FolderCorpus | HubCorpus
Corpus = Annotated[
    StdlibCorpus | ParquetCorpus | FolderCorpus | HubCorpus | UnionCorpus, Field(discriminator="kind")
]
