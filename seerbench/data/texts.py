"""Read the documents of a corpus and divide them into splits: the first step of the data flow.

A preset names the sources of its corpora (corpora.py). `read_texts` reads one of them, tokens.py turns the
documents into a file of tokens, and training and measurements read only that file. A document belongs to exactly
one split, so no document that is evaluated was trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from seerbench.data.corpora import (
    SPLITS,
    DividedDataSet,
    FolderCorpus,
    HubCorpus,
    ParquetCorpus,
    StdlibCorpus,
    TextSource,
)
from seerbench.errors import CorpusError
from seerbench.reading import first_line, read_utf8, reading
from seerbench.rows import parquet

COLUMNS = ("id", "text", "split")
# These folders hold no text to learn from: tests are repetitive, and the others are generated or third-party.
STDLIB_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
STDLIB_SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "_bundled", "lib2to3", "__phello__"}
# Files beside the splits of a data set that describe it, in lower case and without suffix; they are no documents.
DESCRIPTIONS = {"readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors"}
# Half of a surrogate pair, which JSON may escape and UTF-8 cannot hold.
SURROGATE = re.compile("[\ud800-\udfff]")
PATH_CURE = "set corpus.path to another, or make it again"
TEXT_CURE = "convert it to UTF-8, or move it out of the corpus"
HUB_CURE = "fetch the data set again, or set corpus.files to other files"
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex"}


def read_texts(source: TextSource) -> pd.DataFrame:
    """Read the documents of a corpus.

    Args:
        source: any corpus but a union, for which `union_of` joins several of them.

    Returns:
        Columns id (unique), text, split (train | validation | test), all strings.

    Raises:
        CorpusError: missing data, a wrong column, an empty split.
    """
    needed: tuple[str, ...] = ("train", "test")
    if isinstance(source, StdlibCorpus):
        frame = read_stdlib(source.documents)
    elif isinstance(source, ParquetCorpus):
        data_set = _in_place_of(source)
        frame = read_parquet(source.path) if data_set is None else read_divided(data_set, source.path)
    elif isinstance(source, FolderCorpus):
        frame = read_folder(source.path)
    else:
        frame = read_hub(source)
        needed = (source.split,) if source.split else needed
    return checked_texts(frame, f"corpus of kind {source.kind!r}", needed)


def origin(source: TextSource) -> str:
    """Say in one line which text `read_texts` reads now: a file with its sha256, a data set with its revision, ...

    Args:
        source: as in `read_texts`.

    Raises:
        CorpusError: the file of a parquet corpus cannot be read.
    """
    if isinstance(source, StdlibCorpus):
        return f"the standard library of Python {platform.python_version()}"
    if isinstance(source, FolderCorpus):
        return f"the folder {Path(source.path).name}"
    if isinstance(source, HubCorpus):
        return data_set_origin(source.name, source.revision)
    data_set = _in_place_of(source)
    if data_set is not None:
        return data_set_origin(data_set.name, data_set.revision)
    with reading(source.path, CorpusError, PATH_CURE), open(source.path, "rb") as file:
        return f"{Path(source.path).name} with sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def data_set_origin(name: str, revision: str | None) -> str:
    """Say in one line which copy of a data set `dataset_folder` gives for these arguments.

    A copy in the data folder may be of any revision; the end of its path is the id of the data set.
    """
    if Path(name).is_dir():
        return f"a local copy of {'/'.join(Path(name).parts[-2:])}"
    return f"{name} at {revision or 'the newest revision'}"


def _in_place_of(source: ParquetCorpus) -> DividedDataSet | None:
    """Return the data set that is read in place of a file; None if the file is there or there is no data set."""
    return None if os.path.lexists(source.path) else source.otherwise


def read_stdlib(documents: str = "file") -> pd.DataFrame:
    """Read the sources of the running Python's standard library, long text that is on every machine.

    The split of a document is a hash of its path, so it does not change when a Python release adds modules.

    Args:
        documents: with `file`, each file is a document. With `folder`, the files of one folder, each below a line
            with its path, are one document, and top-level modules are documents of their own: longer contexts, and
            fewer of them.

    Returns:
        Columns id, text, split.

    Raises:
        CorpusError: this Python has no sources.
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
            f"the standard library at {root} holds no .py files, as in a zipped or stripped Python; choose another"
            " corpus: kind parquet, folder or hub"
        )
    frame = pd.DataFrame({"id": list(texts), "text": list(texts.values())})
    frame["split"] = [hashed_split(name) for name in frame["id"]]
    return frame


def read_parquet(path: str) -> pd.DataFrame:
    """Read the columns id, text and split of a parquet file; raise CorpusError if it lacks one or is damaged."""
    require_columns(parquet.column_names(Path(path), CorpusError, PATH_CURE), path)
    return parquet.read(Path(path), CorpusError, PATH_CURE, columns=list(COLUMNS)).to_pandas()


def read_folder(path: str) -> pd.DataFrame:
    """Read the text files below a folder, one document per file.

    Documents are the files with a suffix in TEXT_SUFFIXES. Hidden files and folders are left out, links are
    followed. The split of a document is its folder's in the layout of a data set (`_split_of`), and otherwise a
    hash of its path.

    Raises:
        CorpusError: no such folder, no text files in it, a file that is not UTF-8 text, or a layout with splits
            that leaves the split of a document open.
    """
    root = Path(path)
    if not root.is_dir():
        raise CorpusError(f"corpus folder {root} does not exist; {PATH_CURE}")
    names = _text_files(root)
    if not names:
        raise CorpusError(f"corpus folder {root} holds no {', '.join(sorted(TEXT_SUFFIXES))} files")
    split_of = _split_of(names, root)
    return pd.DataFrame(
        {
            "id": [_id(name) for name in split_of],
            "text": [read_utf8(root / name, CorpusError, TEXT_CURE) for name in split_of],
            "split": list(split_of.values()),
        }
    )


def _text_files(root: Path) -> list[PurePosixPath]:
    """Return the text files below a folder, relative to it and in the order of their names.

    Raises CorpusError for a folder that may not be read, which os.walk would leave out.
    """

    def fail(fault: OSError) -> None:
        raise CorpusError(f"corpus folder {fault.filename} is not readable ({fault.strerror}); {PATH_CURE}")

    names, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(folder) in seen:  # a link to a folder that contains it, or a second link to one
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        within = PurePosixPath(os.path.relpath(folder, root).replace(os.sep, "/"))
        names += [
            within / name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in TEXT_SUFFIXES
        ]
    return sorted(names)


def _split_of(names: Sequence[PurePosixPath], root: Path) -> dict[PurePosixPath, str]:
    """Return the split of each document of a folder: its path below the folder -> split.

    A folder has the layout of a data set if at least two of train, validation and test are folders (train/a.txt)
    or files (train.txt) in it, or in the only folder inside it (data/train/a.txt). Descriptions such as README.md
    beside them are no documents. Any other text beside them could be of any split, and a document that is
    evaluated must not be trained on, so it is refused. Every other folder is divided by a hash of each path.
    """
    depth = 0
    while True:
        inside = [name for name in names if len(name.parts) > depth + 1]
        folders = {name.parts[depth] for name in inside}
        entries = folders | {name.stem for name in names if len(name.parts) == depth + 1}
        if len(entries & set(SPLITS)) >= 2:
            break
        if len(folders) != 1:
            return {name: hashed_split(_id(name)) for name in names}
        depth += 1
    split_of: dict[PurePosixPath, str] = {}
    for name in names:
        entry = name.parts[depth] if len(name.parts) > depth + 1 else name.stem
        if len(name.parts) > depth and entry in SPLITS:
            split_of[name] = entry
        elif len(name.parts) > depth + 1 or entry.lower() not in DESCRIPTIONS:
            raise CorpusError(
                f"corpus folder {root} is divided into {', '.join(sorted(entries & set(SPLITS)))}, and the split "
                f"of {_id(name)} is open; move it into one of {', '.join(SPLITS)}, or out of the folder"
            )
    return split_of


def _id(name: PurePosixPath) -> str:
    """Return the id of a document by its path; bytes of a file's name that are not UTF-8 become \\x escapes."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_hub(source: HubCorpus) -> pd.DataFrame:
    """Read files of a Hugging Face data set, one document per row, in the order of their names.

    The files are read directly. Newer versions of the library `datasets` refuse data sets that load by a script of
    their own, such as the paper's Proof-pile and RedPajama.

    Raises:
        CorpusError: no such files, no column of that name, or no network (`dataset_folder`).
    """
    folder = dataset_folder(source.name, source.files, source.revision)
    absolute = [pattern for pattern in source.files if os.path.isabs(pattern)]
    if absolute:
        raise CorpusError(f"corpus.files are names below the data set's folder, not {absolute[0]}")
    paths = sorted({path for pattern in source.files for path in folder.glob(pattern) if path.is_file()})
    if not paths:
        raise CorpusError(f"{folder} holds no {', '.join(source.files)}; set corpus.files to what the data set has")
    ids: list[str] = []
    texts: list[str] = []
    for path in paths:
        still = None if source.documents is None else source.documents - len(texts)
        column = _column(path, source.text, still)
        ids += [f"{path.relative_to(folder).as_posix()}/{row}" for row in range(len(column))]
        texts += column
        if source.documents is not None and len(texts) >= source.documents:
            break
    frame = pd.DataFrame({"id": ids[: source.documents], "text": texts[: source.documents]})
    frame["split"] = source.split or [hashed_split(row) for row in frame["id"]]
    return frame


def read_divided(source: DividedDataSet, missing: str) -> pd.DataFrame:
    """Read a data set of the hub that has files for each split, in place of a parquet file.

    Args:
        source: the data set.
        missing: the parquet file, for the message.

    Returns:
        Columns id, text, split.

    Raises:
        CorpusError: no such files, no column of that name, or neither file nor data set; the text then says where
            to put the file, and has the command that fetches the data set.
    """
    splits = source.splits()
    names = [name for files in splits.values() for name in files.files]
    try:
        folder = dataset_folder(source.name, names, source.revision)
    except CorpusError as error:
        raise CorpusError(
            f"{missing} does not exist; put a parquet file with the columns id, text and split (train, validation"
            f" or test) there, or let a data set be read in its place: {error}"
        ) from None
    frames = [
        read_hub(
            HubCorpus(
                kind="hub",
                name=str(folder),
                files=files.files,
                text=source.text,
                split=split,
                documents=files.documents,
            )
        )
        for split, files in splits.items()
    ]
    return pd.concat(frames, ignore_index=True)


def dataset_folder(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Return the folder of a data set: a local one, the hub's cache, or fetched from the hub.

    Args:
        name: a local folder or a data set id.
        files: names or patterns of the files that are needed.
        revision: commit or tag on the hub.

    Raises:
        CorpusError: the data set is nowhere; the text has the command for a machine with network.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=list(files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
        where = "is not in the local cache and HF_HUB_OFFLINE=1" if offline else "could not be fetched"
        pin = f" --revision {revision}" if revision else ""
        include = " ".join(f"--include '{pattern}'" for pattern in files)
        raise CorpusError(
            f"data set {name!r} {where} ({first_line(error)}). On a machine with network:"
            f" `hf download --repo-type dataset {name}{pin} {include} --local-dir DATA/{name}`, then put that"
            " folder under the config's `data` (or SEERBENCH_DATA); nothing else has to change"
        ) from None
    return Path(folder)


def _column(path: Path, text: str, documents: int | None) -> list[str]:
    """Return the column `text` of a parquet, .jsonl or .jsonl.gz file; raise CorpusError if it has none.

    documents: rows that are wanted, of which a .jsonl file gives no more; None for all.
    """
    with reading(path, CorpusError, HUB_CURE):
        if path.suffix == ".parquet":
            known = parquet.column_names(path, CorpusError, HUB_CURE)
            if text in known:
                return parquet.read(path, CorpusError, HUB_CURE, columns=[text]).column(0).to_pylist()
        elif path.name.removesuffix(".gz").endswith(".jsonl"):
            return _json_column(path, text, documents)
        else:
            raise CorpusError(f"{path} is neither parquet nor .jsonl nor .jsonl.gz; set corpus.files to those")
    raise CorpusError(f"{path} has no column {text!r}; set corpus.text to one of: {', '.join(known)}")


def _json_column(path: Path, text: str, documents: int | None) -> list[str]:
    """Return the entry `text` of the first lines of a .jsonl or .jsonl.gz file; empty lines are left out.

    documents: the number of lines; None for all. What follows them is not read, as it may be gigabytes.

    Raises:
        CorpusError: a line that is no JSON object with this entry.
    """
    texts = []
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                if number == 1:
                    raise  # the file is no JSON at all, such as a Git LFS pointer
                raise CorpusError(f"{path}, line {number}: not JSON; {HUB_CURE}") from None
            if not isinstance(row, dict):
                raise CorpusError(f"{path}, line {number}: expected a JSON object with the entry {text!r}")
            if text not in row:
                raise CorpusError(
                    f"{path}, line {number}: no column {text!r}; set corpus.text to one of: {', '.join(row)}"
                )
            if not isinstance(row[text], str) or SURROGATE.search(row[text]):
                raise CorpusError(f"{path}, line {number}: {text!r} is no valid string; clean the data set")
            texts.append(row[text])
            if len(texts) == documents:
                break
    return texts


def union_of(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Join several corpora by name. Documents keep their splits, and their ids become <corpus>/<id>.

    A text that occurs in two corpora is kept once, in the split that keeps it out of training.
    """
    parts = [frame.assign(id=f"{name}/" + frame["id"]) for name, frame in frames.items()]
    return checked_texts(pd.concat(parts, ignore_index=True), f"union of {', '.join(frames)}")


def hashed_split(name: str) -> str:
    """Return the split of a document by a hash of its name: 80% train, 5% validation, 15% test.

    The test split is that large because perplexity needs enough documents of full length.
    """
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "test" if bucket < 15 else "validation" if bucket < 20 else "train"


def require_columns(columns: Sequence[str], where: str) -> None:
    """Raise CorpusError unless the columns id, text and split exist; `where` names their source."""
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise CorpusError(
            f"{where}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}, but the columns are"
            f" {', '.join(map(str, columns)) or 'missing'}"
        )


def checked_texts(frame: pd.DataFrame, where: str, needed: Sequence[str] = ("train", "test")) -> pd.DataFrame:
    """Check documents, drop empty and duplicate ones, and return them with string columns id, text, split.

    Args:
        frame: documents.
        where: the name of their source, for messages.
        needed: splits that must not be empty. A data set that is one split, such as PG19's test set, needs that
            one; every other corpus needs train and test.

    Raises:
        CorpusError: a missing column, a text that is not a string, an unknown split, an id that occurs twice, or an
            empty split.
    """
    require_columns(list(frame.columns), where)
    frame = frame[list(COLUMNS)].reset_index(drop=True)
    wrong = [row for row, text in enumerate(frame["text"]) if not isinstance(text, str)]
    if len(wrong):
        raise CorpusError(f"{where}: the text of {frame['id'][wrong[0]]!r} is no string; clean the source")
    frame["id"] = frame["id"].astype(str)
    foreign = sorted(set(frame["split"].astype(str)) - set(SPLITS))
    if foreign:
        raise CorpusError(f"{where}: unknown split {', '.join(foreign)}; expected {', '.join(SPLITS)}")
    twice = frame["id"][frame["id"].duplicated()]
    if len(twice):
        raise CorpusError(f"{where}: document {twice.iloc[0]!r} occurs twice; ids must be unique")
    frame = frame[frame["text"].map(len) > 0]
    # A text under two ids could be in two splits, and then an evaluated text would have been trained on. A data set
    # that is one split stays as its authors published it.
    if frame["split"].nunique() < 2:
        return _with_splits(frame, where, needed)
    order = frame["split"].map({"test": 0, "validation": 1, "train": 2})
    kept = frame.loc[order.sort_values(kind="stable").index].drop_duplicates("text").index
    return _with_splits(frame.loc[sorted(kept)], where, needed)


def _with_splits(frame: pd.DataFrame, where: str, needed: Sequence[str]) -> pd.DataFrame:
    """Return the frame with a new index; raise CorpusError if a needed split is empty."""
    for split in needed:
        if not (frame["split"] == split).any():
            raise CorpusError(f"{where}: the {split} split is empty; add documents or choose another source")
    return frame.reset_index(drop=True)
