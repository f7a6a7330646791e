"""Train or load a tokenizer, and keep a corpus as a file of tokens, which training and measurements read.

The step `corpus` writes `<corpus>.parquet` (id, split, tokens) and `<corpus>.json` (settings, hashes, counts) from
the documents of texts.py. windows.py cuts the tokens into windows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from seerbench.data.corpora import SPLITS
from seerbench.errors import CorpusError
from seerbench.reading import first_line, read_json, reading
from seerbench.rows import parquet
from seerbench.writing import atomically, write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")
CURE = "make it with `seerbench corpus PRESET CORPUS`"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_CURE = "fetch this tokenizer again, or make it with `seerbench tokenizer PRESET`"
DOCUMENTS_AT_ONCE = 64  # Documents that are tokenized and written together.
TOKEN_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("tokens", pa.list_(pa.int32()))])


def train_tokenizer(texts: Sequence[str], vocab: int, folder: Path | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the special tokens <bos>, <eos> and <pad>.

    Every digit is a token, so a code of five digits is five tokens, none of which gives away another.

    Args:
        texts: the train split only.
        vocab: number of tokens, at least 259 (256 bytes and the special tokens).
        folder: where to save the tokenizer, if anywhere.

    Raises:
        CorpusError: `vocab` is too small.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab < 256 + len(SPECIAL_TOKENS):
        raise CorpusError(f"tokenizer.vocab is {vocab}; a byte-level tokenizer needs at least 259")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bos, eos, pad = SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos, pad_token=pad)
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a local folder, the cache, or the hub unless HF_HUB_OFFLINE is set.

    Args:
        name: a local folder or a hub id.
        revision: commit or tag of the hub id.

    Raises:
        CorpusError: there is no such tokenizer, its files are damaged, it is not a fast one, or it has no EOS token
            to delimit documents with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if os.path.isdir(name):
        for file in TOKENIZER_FILES:
            if os.path.lexists(Path(name) / file):
                read_json(Path(name) / file, CorpusError, TOKENIZER_CURE)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), revision=revision, trust_remote_code=False)
    except Exception as error:  # The libraries raise errors of many types, which are not documented.
        raise CorpusError(
            f"tokenizer {name} could not be loaded ({first_line(error)}). Give a folder with"
            f" tokenizer.json, or on a machine with network: `hf download {name} --local-dir DIR`"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CorpusError(
            f"tokenizer {name} has no tokenizer.json, from which tokens are made; choose another model"
        )
    if tokenizer.eos_token_id is None:
        raise CorpusError(f"tokenizer {name} has no EOS token; choose one that has")
    return tokenizer


def bos_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of the token that opens every window: BOS, or EOS for models without BOS (Qwen)."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def bos_and_eos(config: Any) -> tuple[int, int]:
    """Return the ids of the tokens that open a window and that end a document, by a model's config.

    They are BOS, or EOS for models without BOS, and EOS, the first one of chat models that list several. Raises
    CorpusError for a config without EOS.
    """
    ends = config.eos_token_id
    eos = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(eos, int):
        raise CorpusError("the model's config.json names no eos_token_id, with which documents end; add it")
    return eos if config.bos_token_id is None else config.bos_token_id, eos


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of the tokenizer's definition, as 64 hex digits."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def vocabulary_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of the tokens and their ids, without special tokens, which models of one family change."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CorpusCard:
    """The card of a tokenized corpus, as far as later steps read it."""

    name: str
    sha256: str  # over ids, splits and texts
    vocabulary: str  # `vocabulary_hash` of the tokenizer
    read: str  # which texts were read: files with their hashes, data sets with their revisions


def read_card(tokens: Path) -> CorpusCard:
    """Read the card beside a file of tokens; raise CorpusError if it is damaged or none is there."""
    file = tokens.with_suffix(".json")
    content = read_json(file, CorpusError, CURE)
    with reading(file, CorpusError, CURE):
        return CorpusCard(content["name"], content["sha256"], content["vocabulary"], content["read"])


def require_vocabulary(tokens: Path, tokenizer: PreTrainedTokenizerFast, model: str) -> None:
    """Raise CorpusError unless a file of tokens was made with the vocabulary of a model.

    Args:
        tokens: the parquet file, from `tokenize`.
        tokenizer: the model's own.
        model: its name in the preset, for the message.
    """
    card = read_card(tokens)
    if card.vocabulary != vocabulary_hash(tokenizer):
        raise CorpusError(
            f"corpus {card.name} was tokenized with another vocabulary than that of the model {model}; in the"
            f" preset, give that model a corpus with `tokenizer: {model}`, or train it again if it is trained here"
        )


def require_embeddings(tokenizer: PreTrainedTokenizerFast, embeddings: int, model: str) -> None:
    """Raise CorpusError unless a model embeds every token that text can give.

    Args:
        tokenizer: the model's own.
        embeddings: the number of tokens that the model embeds.
        model: its name in the preset, for the message.
    """
    largest = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values())
    if largest >= embeddings:
        raise CorpusError(
            f"the tokenizer of the model {model} has tokens up to id {largest}, and the model embeds {embeddings} "
            "tokens; its tokenizer files are of another model"
        )


def tokenize(
    texts: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    name: str,
    source: Mapping[str, Any],
    read: str,
) -> dict[str, Any]:
    """Write a corpus as tokens: `out` (parquet: id, split, tokens), and a card beside it with the suffix .json.

    Tokens contain no BOS or EOS, which windows add. A document's text is never read as a special token. Each file
    appears complete or not at all.

    Args:
        texts: documents, from `read_texts`.
        tokenizer: encodes them.
        out: the parquet file.
        name: the corpus' name in rows and figures.
        source: the settings of the corpus, kept in the card.
        read: which texts these are (`texts.origin`), kept in the card and in rows.

    Returns:
        The card: name, source, read, sha256 (over ids, splits and texts), tokenizer and vocabulary (their hashes),
        and by split documents, tokens and longest (tokens of the longest document).
    """
    out = Path(out)
    with tqdm(total=len(texts), desc=f"tokenize {name}", unit="doc", mininterval=1) as bar:
        counts, sha256 = atomically(out, lambda part: _write_tokens(texts, tokenizer, part, bar))
    card = {
        "name": name,
        "source": dict(source),
        "read": read,
        "sha256": sha256,
        "tokenizer": tokenizer_hash(tokenizer),
        "vocabulary": vocabulary_hash(tokenizer),
        **{key: {split: counts[split][key] for split in SPLITS} for key in ("documents", "tokens", "longest")},
    }
    write_bytes(out.with_suffix(".json"), (json.dumps(card, indent=1, sort_keys=True) + "\n").encode())
    return card


def _write_tokens(
    texts: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, file: Path, bar: tqdm
) -> tuple[dict[str, dict[str, int]], str]:
    """Write the tokens of documents; return the counts of each split and the sha256 over ids, splits and texts."""
    digest = hashlib.sha256()
    counts = {split: {"documents": 0, "tokens": 0, "longest": 0} for split in SPLITS}
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True  # A text that contains "<eos>" does not end there.
    try:
        with parquet.writer(file, TOKEN_SCHEMA) as writer:
            for start in range(0, len(texts), DOCUMENTS_AT_ONCE):
                batch = texts.iloc[start : start + DOCUMENTS_AT_ONCE]
                encoded = backend.encode_batch_fast(batch["text"].tolist(), add_special_tokens=False)
                tokens = [np.asarray(item.ids, dtype=np.int32) for item in encoded]
                for row, ids in zip(batch.itertuples(), tokens, strict=True):
                    for field in (row.id, row.split, row.text):
                        data = field.encode("utf-8", "surrogatepass")
                        digest.update(len(data).to_bytes(8, "big") + data)
                    count = counts[row.split]
                    count["documents"] += 1
                    count["tokens"] += len(ids)
                    count["longest"] = max(count["longest"], len(ids))
                columns = [batch["id"].tolist(), batch["split"].tolist(), tokens]
                writer.write_table(pa.table(columns, schema=TOKEN_SCHEMA))
                bar.update(len(batch))
    finally:
        backend.encode_special_tokens = before
    return counts, digest.hexdigest()


def read_tokens(path: Path, split: str) -> dict[str, np.ndarray]:
    """Read the documents of one split of a file of tokens.

    Returns:
        id -> int32 tokens, in the order of the file.

    Raises:
        CorpusError: no such file, another schema, or an empty split.
    """
    columns = parquet.column_names(path, CorpusError, CURE)
    if columns != TOKEN_SCHEMA.names:
        raise CorpusError(
            f"{path} is no tokens file: columns {', '.join(columns)}, expected id, split, tokens; {CURE}"
        )
    table = parquet.read(path, CorpusError, CURE, filters=[("split", "==", split)], schema=TOKEN_SCHEMA)
    if not len(table):
        raise CorpusError(f"{path}: the {split} split is empty")
    column = table.column("tokens").combine_chunks()
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    ids = table.column("id").to_pylist()
    return {name: values[offsets[row] : offsets[row + 1]] for row, name in enumerate(ids)}
