"""Corpora: texts -> tokens -> windows, the first step of the data flow.

A config's `corpus` mapping names a source of documents; `read_texts` reads it, `train_tokenizer` (or
`load_tokenizer`) and `tokenise` turn it into one parquet of tokens, and everything after that (training,
perplexity, tasks) reads only that parquet. A document belongs to exactly one split, so what is evaluated
was never trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "text", "split")
SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")

# Not prose or code that somebody wrote: tests repeat themselves, the others are generated tables.
STDLIB_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
STDLIB_SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "_bundled", "lib2to3", "__phello__"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex"}

TOKEN_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("tokens", pa.list_(pa.int32()))])


class CorpusError(ValueError):
    """The corpus cannot give what was asked; the message is for the user and says what to do."""


# ------------------------------------------------------------------ sources


def read_texts(source: Mapping) -> pd.DataFrame:
    """Read the documents that a config's source names.

    Args:
        source: `{kind: stdlib | parquet | folder | hub, ...}`, see the four functions below.

    Returns:
        Columns id (unique), text, split (train | validation | test), all strings.

    Raises:
        CorpusError: unknown kind or key, missing data, a wrong column, an empty split.
    """
    readers = {"stdlib": read_stdlib, "parquet": read_parquet, "folder": read_folder, "hub": read_hub}
    options = dict(source)
    kind = options.pop("kind", None)
    if kind not in readers:
        raise CorpusError(f"unknown corpus kind {kind!r}; known: {', '.join(readers)}")
    try:
        signature(readers[kind]).bind(**options)
    except TypeError as error:
        raise CorpusError(f"corpus of kind {kind!r}: {error}; see seerbench/corpus.py") from None
    frame = readers[kind](**options)
    needed = (options["split"],) if options.get("split") else ("train", "test")
    return checked_texts(frame, f"corpus of kind {kind!r}", needed)


def read_stdlib(documents: str = "file") -> pd.DataFrame:
    """The sources of the running Python's standard library: long text that is on every machine.

    The split of a document is a hash of its path (80% train, 5% validation, 15% test: perplexity needs
    enough documents of full length), so it does not change when a Python release adds modules.

    Args:
        documents: `file`: each file is a document. `folder`: the files of one folder, each under a line
            with its path, are one document (longer contexts, fewer documents; top-level modules stay single).
    """
    if documents not in ("file", "folder"):
        raise CorpusError(f"documents of the standard library: {documents!r}; expected 'file' or 'folder'")
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, str] = {}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        generated = name.parts[0].startswith(("config-", "_sysconfigdata"))
        if generated or STDLIB_SKIPPED_FOLDERS & set(name.parts[:-1]):
            continue
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not text:
            continue
        if documents == "folder" and len(name.parts) > 1:
            key = name.parent.as_posix()
            texts[key] = texts.get(key, "") + f"# {name.as_posix()}\n{text}\n\n"
        else:
            texts[name.as_posix()] = text + "\n"
    if not texts:
        raise CorpusError(
            f"the standard library at {root} holds no .py files (a zipped or stripped Python); choose"
            " another corpus: kind parquet, folder or hub"
        )
    frame = pd.DataFrame({"id": list(texts), "text": list(texts.values())})
    frame["split"] = [hashed_split(name) for name in frame["id"]]
    return frame


def read_parquet(path: str) -> pd.DataFrame:
    """One parquet file with the columns id, text and split (others are ignored)."""
    file = Path(path)
    if not file.is_file():
        raise CorpusError(f"corpus file {file} does not exist; set corpus.path to a parquet file")
    try:
        columns = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise CorpusError(f"corpus file {file} is not a readable parquet file: {error}") from None
    require_columns(columns, str(file))
    return pd.read_parquet(file, columns=list(COLUMNS))


def read_folder(path: str) -> pd.DataFrame:
    """Text files under a folder, one document each.

    The split is the sub-folder train/, validation/ or test/ where the folder has those, and otherwise
    a hash of the file's path.
    """
    root = Path(path)
    if not root.is_dir():
        raise CorpusError(f"corpus folder {root} does not exist; set corpus.path to a folder of text files")
    files = sorted(file for file in root.rglob("*") if file.is_file() and file.suffix in TEXT_SUFFIXES)
    if not files:
        raise CorpusError(f"corpus folder {root} holds no {', '.join(sorted(TEXT_SUFFIXES))} files")
    names = [file.relative_to(root).as_posix() for file in files]
    by_folder = any((root / split).is_dir() for split in SPLITS)
    return pd.DataFrame(
        {
            "id": names,
            "text": [file.read_text(encoding="utf-8", errors="replace") for file in files],
            "split": [name.split("/")[0] if by_folder else hashed_split(name) for name in names],
        }
    )


def read_hub(
    name: str,
    files: Sequence[str],
    revision: str | None = None,
    text: str = "text",
    split: str | None = None,
    documents: int | None = None,
) -> pd.DataFrame:
    """Files of a Hugging Face data set: parquet, .jsonl or .jsonl.gz, one document a row, in the files' order.

    The files are read as they are. Data sets that need a script of their own to load are refused by newer
    `datasets` libraries, and the paper's are among them (Proof-pile, RedPajama).

    Args:
        name: data set id (`emozilla/pg19-test`) or a local copy of it (`dataset_folder`).
        files: names or patterns inside the data set, such as `data/test-*.parquet`.
        revision: commit or tag; None takes the newest, which no rerun can promise to find again.
        text: the column that holds the text.
        split: the split that all of it is; None lets a hash of file and row decide.
        documents: keep the first so many rows.
    """
    folder = dataset_folder(name, files, revision)
    paths = sorted({path for pattern in files for path in folder.glob(pattern) if path.is_file()})
    if not paths:
        raise CorpusError(f"{folder} holds no {', '.join(files)}; set corpus.files to what the data set has")
    ids: list[str] = []
    texts: list[str] = []
    for path in paths:
        found = _column(path, text)
        ids += [f"{path.relative_to(folder).as_posix()}/{row}" for row in range(len(found))]
        texts += found
        if documents is not None and len(texts) >= documents:
            break
    frame = pd.DataFrame({"id": ids[:documents], "text": texts[:documents]})
    frame["split"] = split or [hashed_split(row) for row in frame["id"]]
    return frame


def dataset_folder(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Where files of a data set are: a local folder of that name, the hub's cache, or fetched from the hub.

    Raises:
        CorpusError: neither; the message gives the command to type on a machine with network.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=list(files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
        where = "is not in the local cache and HF_HUB_OFFLINE=1" if offline else "could not be fetched"
        pin = f" --revision {revision}" if revision else ""
        include = " ".join(f"--include '{pattern}'" for pattern in files)
        raise CorpusError(
            f"data set {name!r} {where} ({str(error).strip().splitlines()[0]}). On a machine with network:"
            f" `hf download --repo-type dataset {name}{pin} {include} --local-dir DATA/{name}`, then put that"
            " folder under the config's `data` (or SEERBENCH_DATA); nothing else has to change"
        ) from None
    return Path(found)


def _column(path: Path, text: str) -> list[str]:
    """One column of a parquet, .jsonl or .jsonl.gz file; CorpusError lists the columns that there are."""
    known: list[str] = []
    if path.suffix == ".parquet":
        known = pq.read_schema(path).names
        if text in known:
            return pq.read_table(path, columns=[text]).column(0).to_pylist()
    elif path.name.removesuffix(".gz").endswith(".jsonl"):
        texts = []
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as lines
        ):
            for line in lines:
                row = json.loads(line)
                if text not in row:
                    known = list(row)
                    break
                texts.append(row[text])
            else:
                return texts
    else:
        raise CorpusError(f"{path} is neither parquet nor .jsonl nor .jsonl.gz; set corpus.files to those")
    raise CorpusError(f"{path} has no column {text!r}; set corpus.text to one of: {', '.join(known)}")


def union_of(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Several corpora as one, each document in the split that it has; ids become <corpus>/<id>.

    A text that stands in two of them is kept once, in the split that keeps it out of training.
    """
    parts = [frame.assign(id=f"{name}/" + frame["id"]) for name, frame in frames.items()]
    return checked_texts(pd.concat(parts, ignore_index=True), f"union of {', '.join(frames)}")


def hashed_split(name: str) -> str:
    """The split of a document without one: 80% train, 5% validation, 15% test, by a hash of its name."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "test" if bucket < 15 else "validation" if bucket < 20 else "train"


def require_columns(columns: Sequence[str], where: str) -> None:
    """Raise CorpusError unless id, text and split are all there."""
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise CorpusError(
            f"{where}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)},"
            f" found {', '.join(map(str, columns)) or 'none'}"
        )


def checked_texts(frame: pd.DataFrame, where: str, needed: Sequence[str] = ("train", "test")) -> pd.DataFrame:
    """The frame with string columns, or CorpusError: foreign split, text twice, a needed split empty.

    A data set that is all one split (PG19's test set) needs that one; every other corpus train and test.
    """
    require_columns(list(frame.columns), where)
    frame = frame[list(COLUMNS)].reset_index(drop=True)
    if not frame["text"].map(lambda text: isinstance(text, str)).all():
        raise CorpusError(f"{where}: column text holds values that are not strings; clean the source")
    frame["id"] = frame["id"].astype(str)
    foreign = sorted(set(frame["split"].astype(str)) - set(SPLITS))
    if foreign:
        raise CorpusError(f"{where}: unknown split {', '.join(foreign)}; expected {', '.join(SPLITS)}")
    twice = frame["id"][frame["id"].duplicated()]
    if len(twice):
        raise CorpusError(f"{where}: document {twice.iloc[0]!r} occurs twice; ids must be unique")
    frame = frame[frame["text"].str.len() > 0]
    # The same text under two ids could stand in two splits: the evaluated text would have been trained on.
    # A data set that is all one split stays as its authors have it.
    if frame["split"].nunique() < 2:
        return _with_splits(frame, where, needed)
    order = frame["split"].map({"test": 0, "validation": 1, "train": 2})
    kept = frame.loc[order.sort_values(kind="stable").index].drop_duplicates("text").index
    return _with_splits(frame.loc[sorted(kept)], where, needed)


def _with_splits(frame: pd.DataFrame, where: str, needed: Sequence[str]) -> pd.DataFrame:
    for split in needed:
        if not (frame["split"] == split).any():
            raise CorpusError(f"{where}: the {split} split is empty; add documents or choose another source")
    return frame.reset_index(drop=True)


# ------------------------------------------------------------------ tokens


def train_tokenizer(texts: Sequence[str], vocab: int, folder: Path | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with single digits and <bos>, <eos>, <pad>.

    Digits stand alone so that a five-digit code is five tokens, none of which gives away another.

    Args:
        texts: the train split, and nothing else.
        vocab: number of tokens, at least 259 (256 bytes and the special tokens).
        folder: where to save it; AutoTokenizer loads it from there.
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
    """Load a tokenizer from a local folder, the cache, or the hub (not with HF_HUB_OFFLINE=1).

    Raises:
        CorpusError: not found, or it has no BOS or EOS token to delimit documents with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), revision=revision)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"tokenizer {name} could not be loaded ({str(error).splitlines()[0]}). Give a folder with"
            f" tokenizer.json, or on a machine with network: `hf download {name} --local-dir DIR`"
        ) from None
    if tokenizer.eos_token_id is None:
        raise CorpusError(f"tokenizer {name} has no EOS token; choose one that has")
    return tokenizer


def bos_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the token that opens every window: BOS, or EOS for models without one (Qwen)."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of the tokenizer's definition, as 64 hex digits."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def vocabulary_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of the tokens and their ids without the special ones, which models of one family change."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()


def require_vocabulary(tokens: Path, tokenizer: PreTrainedTokenizerFast, model: str) -> None:
    """CorpusError unless the tokens at `tokens` are those of a model's own tokenizer."""
    about = json.loads(Path(tokens).with_suffix(".json").read_text())
    if about["vocabulary"] != vocabulary_hash(tokenizer):
        raise CorpusError(
            f"corpus {about['name']} was tokenised with another vocabulary than the model {model} has; in the"
            f" preset, give that model a corpus with `tokenizer: {model}`"
        )


def tokenise(
    texts: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    name: str,
    source: Mapping,
) -> dict:
    """Write the corpus as tokens: `out` (parquet: id, split, tokens) and, beside it, `out` as .json.

    Tokens carry no BOS or EOS; windows add them. A document's text is never read as a special token.

    Args:
        texts: from `read_texts`.
        out: the parquet file to write; both files appear whole or not at all.
        name: the corpus' name in rows and figures.
        source: the config mapping it came from, kept in the JSON.

    Returns:
        What the JSON holds: name, source, sha256 (over ids, splits and texts), tokenizer and vocabulary
        (their hashes), documents and tokens by split, longest (tokens of the longest document by split).
    """
    digest = hashlib.sha256()
    counts = {split: {"documents": 0, "tokens": 0, "longest": 0} for split in SPLITS}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    backend = tokenizer.backend_tokenizer
    literal = backend.encode_special_tokens
    backend.encode_special_tokens = True  # a text that contains "<eos>" does not end there
    try:
        with (
            pq.ParquetWriter(temporary, TOKEN_SCHEMA, compression="zstd") as writer,
            tqdm(total=len(texts), desc=f"tokenise {name}", unit="doc", mininterval=1) as bar,
        ):
            for start in range(0, len(texts), 64):
                batch = texts.iloc[start : start + 64]
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
        os.replace(temporary, out)
    finally:
        backend.encode_special_tokens = literal
        temporary.unlink(missing_ok=True)
    summary = {
        "name": name,
        "source": dict(source),
        "sha256": digest.hexdigest(),
        "tokenizer": tokenizer_hash(tokenizer),
        "vocabulary": vocabulary_hash(tokenizer),
        "documents": {split: counts[split]["documents"] for split in SPLITS},
        "tokens": {split: counts[split]["tokens"] for split in SPLITS},
        "longest": {split: counts[split]["longest"] for split in SPLITS},
    }
    card = out.with_suffix(".json")
    temporary = card.with_name(card.name + ".tmp")
    temporary.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, card)
    return summary


def read_tokens(path: Path, split: str) -> dict[str, np.ndarray]:
    """The documents of one split of a tokens parquet: id -> int32 tokens, in the file's order.

    Raises:
        CorpusError: no such file, another schema, or an empty split.
    """
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"tokens file {path} does not exist; make it with `seerbench corpus`")
    try:
        table = pq.read_table(path, filters=[("split", "==", split)], schema=TOKEN_SCHEMA)
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path} is not a readable tokens file ({error}); delete it and run again") from None
    if found.names != TOKEN_SCHEMA.names:
        raise CorpusError(
            f"{path} is not a tokens file: columns {', '.join(found.names)}, expected id, split, tokens"
        )
    if not len(table):
        raise CorpusError(f"{path}: the {split} split is empty")
    column = table.column("tokens").combine_chunks()
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    ids = table.column("id").to_pylist()
    return {name: values[offsets[row] : offsets[row + 1]] for row, name in enumerate(ids)}


# ------------------------------------------------------------------ windows


def evaluation_windows(
    tokens: Mapping[str, np.ndarray],
    context: int,
    documents: int | None,
    *,
    longest: int,
    bos: int,
    reaching: int | None = None,
) -> dict[str, np.ndarray]:
    """The windows that perplexity is measured on: one a document.

    A window is BOS and the document's first `context - 1` tokens. Only documents of at least `longest`
    tokens count, and of those the first `documents` in the corpus' order, so that every context is
    measured on the same documents (the paper's procedure). Perplexity is exp of the mean over documents
    of the mean negative log-likelihood of the `context - 1` tokens that follow BOS.

    Args:
        tokens: id -> tokens of one split, from `read_tokens`.
        context: window length in tokens, BOS included.
        documents: how many at most; None takes all.
        longest: the longest context that the run evaluates.
        bos: id of the BOS token.
        reaching: documents of fewer tokens do not count even so (the paper's: 131,072, whatever is evaluated).

    Returns:
        id -> int32 window [context].

    Raises:
        CorpusError: no document reaches `longest`, or `context` is longer than `longest`.
    """
    if context > longest:
        raise CorpusError(f"a context of {context} tokens is longer than the longest evaluated, {longest}")
    enough = max(longest, reaching or 0)
    chosen = [name for name, document in tokens.items() if len(document) >= enough][:documents]
    if not chosen:
        most = max((len(document) for document in tokens.values()), default=0)
        raise CorpusError(
            f"no document reaches a context of {enough} tokens: the longest has {most}; lower the config's"
            " contexts, or choose a corpus with longer documents"
        )
    return {name: with_bos(tokens[name][: context - 1], bos) for name in chosen}


def packed(tokens: Mapping[str, np.ndarray], eos: int) -> np.ndarray:
    """All documents of a split in one int32 stream, EOS after each: what training windows are cut from."""
    parts = []
    for document in tokens.values():
        parts += [document, np.array([eos], dtype=np.int32)]
    return np.concatenate(parts).astype(np.int32)


def packed_rows(
    tokens: Mapping[str, np.ndarray], context: int, documents: int, *, bos: int, eos: int, pad: int
) -> np.ndarray:
    """Training windows as the SeerAttention authors pack them: int32 [rows, context].

    So many `documents` at a time stand end to end, BOS before the first and EOS between two; that is filled up
    with `pad` to whole rows of `context` tokens and cut into them. A row may begin inside a document, and padding
    is trained on like text. (Tokenising the joined text, as they do, gives the same: a tokenizer splits at EOS.)
    """
    names = list(tokens)
    rows = []
    for start in range(0, len(names), documents):
        parts: list[np.ndarray] = [np.array([bos], dtype=np.int32)]
        for name in names[start : start + documents]:
            parts += [tokens[name], np.array([eos], dtype=np.int32)]
        stream = np.concatenate(parts[:-1]).astype(np.int32)
        filled = np.pad(stream, (0, -len(stream) % context), constant_values=pad)
        rows.append(filled.reshape(-1, context))
    return np.concatenate(rows)


def rows_of_step(rows: np.ndarray, step: int, batch: int, seed: int) -> np.ndarray:
    """The `batch` rows of one training step: every row once, shuffled, before any comes again. [batch, context]."""
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = {epoch: np.random.default_rng([seed, epoch]).permutation(len(rows)) for epoch in places // len(rows)}
    return np.stack([rows[epochs[place // len(rows)][place % len(rows)]] for place in places])


def training_windows(
    stream: np.ndarray, context: int, count: int, rng: np.random.Generator, *, bos: int
) -> np.ndarray:
    """`count` windows at random places of a packed stream: int32 [count, context], BOS first.

    Raises:
        CorpusError: the stream is shorter than one window.
    """
    if len(stream) < context:
        raise CorpusError(f"no document reaches a context of {context} tokens: the whole split has {len(stream)}")
    starts = rng.integers(0, len(stream) - context + 2, size=count)
    return np.stack([with_bos(stream[start : start + context - 1], bos) for start in starts])


def with_bos(tokens: np.ndarray, bos: int) -> np.ndarray:
    """BOS followed by the tokens, int32."""
    return np.concatenate([[bos], tokens]).astype(np.int32)
