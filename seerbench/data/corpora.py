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


class ParquetCorpus(Settings):
    """One parquet file with the columns id, text and split."""

    kind: Literal["parquet"]
    path: Text
    """relative to the preset's data folder"""
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
