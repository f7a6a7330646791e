"""Read the documents of a corpus: id, text and split. The first step of the data flow (texts, tokens, windows).

Every document belongs to exactly one split, so that no text is evaluated that was trained on. `tokens.py` turns the
texts into tokens; training, perplexity and tasks read only those.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seerbench.data.corpora import SPLITS, FolderCorpus, HubCorpus, ParquetCorpus, StdlibCorpus, TextSource
from seerbench.errors import CorpusError

COLUMNS = ("id", "text", "split")
# These folders hold no text that a person wrote for readers: tests repeat themselves, the others are generated.
STDLIB_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
STDLIB_SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "_bundled", "lib2to3", "__phello__"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex"}


def read_texts(source: TextSource) -> pd.DataFrame:
    """Read the documents of a corpus.

    Returns:
        Columns id (unique), text, split (train | validation | test), all strings.

    Raises:
        CorpusError: missing data, a wrong column, an empty split.
    """
    needed: tuple[str, ...] = ("train", "test")
    if isinstance(source, StdlibCorpus):
        frame = read_stdlib(source.documents)
    elif isinstance(source, ParquetCorpus):
        frame = read_parquet(source.path)
    elif isinstance(source, FolderCorpus):
        frame = read_folder(source.path)
    else:
        frame = read_hub(source)
        needed = (source.split,) if source.split else needed
    return checked_texts(frame, f"corpus of kind {source.kind!r}", needed)


def read_stdlib(documents: str = "file") -> pd.DataFrame:
    """Read the sources of the running Python's standard library: long text that every machine has.

    The split of a document is a hash of its path (80% train, 5% validation, 15% test: perplexity needs
    enough documents of full length), so it does not change when a Python release adds modules.

    Args:
        documents: `file`: each file is a document. `folder`: the files of one folder, each under a line
            with its path, are one document (longer contexts, fewer documents; top-level modules stay single).
    """
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
    """Read the columns id, text and split of one parquet file."""
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
    """Read the text files below a folder, one document per file.

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


def read_hub(source: HubCorpus) -> pd.DataFrame:
    """Read files of a Hugging Face data set, one document per row, in the files' order.

    The files are read as they are. Data sets that need a script of their own to load are refused by newer
    `datasets` libraries, and the paper's are among them (Proof-pile, RedPajama).
    """
    folder = dataset_folder(source.name, source.files, source.revision)
    paths = sorted({path for pattern in source.files for path in folder.glob(pattern) if path.is_file()})
    if not paths:
        raise CorpusError(f"{folder} holds no {', '.join(source.files)}; set corpus.files to what the data set has")
    ids: list[str] = []
    texts: list[str] = []
    for path in paths:
        found = _column(path, source.text)
        ids += [f"{path.relative_to(folder).as_posix()}/{row}" for row in range(len(found))]
        texts += found
        if source.documents is not None and len(texts) >= source.documents:
            break
    frame = pd.DataFrame({"id": ids[: source.documents], "text": texts[: source.documents]})
    frame["split"] = source.split or [hashed_split(row) for row in frame["id"]]
    return frame


def dataset_folder(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Return the folder with files of a data set: a local folder, the hub's cache, or a new download.

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
    """Read one column of a parquet, .jsonl or .jsonl.gz file; CorpusError lists the columns of the file."""
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
    """Join several corpora; each document keeps its split, its id becomes <corpus>/<id>.

    A text that stands in two of them is kept once, in the split that keeps it out of training.
    """
    parts = [frame.assign(id=f"{name}/" + frame["id"]) for name, frame in frames.items()]
    return checked_texts(pd.concat(parts, ignore_index=True), f"union of {', '.join(frames)}")


def hashed_split(name: str) -> str:
    """Return a split by a hash of a document's name: 80% train, 5% validation, 15% test."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "test" if bucket < 15 else "validation" if bucket < 20 else "train"


def require_columns(columns: Sequence[str], where: str) -> None:
    """Raise CorpusError unless the columns id, text and split are all there."""
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise CorpusError(
            f"{where}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)},"
            f" found {', '.join(map(str, columns)) or 'none'}"
        )


def checked_texts(frame: pd.DataFrame, where: str, needed: Sequence[str] = ("train", "test")) -> pd.DataFrame:
    """Return the frame with string columns and without a text in two splits.

    Raises CorpusError for an unknown split, an id that occurs twice, or a needed split without documents.

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
    # The same text under two ids could be in two splits: then the evaluated text would have been trained on.
    # A data set with only one split stays as its authors published it.
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
