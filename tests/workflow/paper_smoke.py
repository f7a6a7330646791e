"""`paper-smoke`: config/paper.yaml scaled down by rule, over stand-ins of its checkpoints and data sets.

    python tests/workflow/paper_smoke.py FOLDER    # writes FOLDER/paper-smoke.yaml and FOLDER/data

The preset is derived from config/paper.yaml, so the two cannot diverge: sources stay (the stand-ins are where a
downloaded copy would be), numbers shrink, lists keep one entry. Its numbers mean nothing; they only show that the
code runs.
"""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from standins import make_gate_file, make_llama_checkpoint, make_mistral_checkpoint

from seerbench.data import longbench
from seerbench.paths import ROOT

# The paper's context -> the context in the test, in tokens. Blocks have 16 tokens instead of 64.
CONTEXTS = {1024: 64, 4096: 96, 8192: 128, 16384: 192, 32768: 256, 65536: 384, 131072: 512}
BLOCK = 16
SMALL = {
    "batch": 2,
    "processes": 1,
    "packing": 8,
    "steps": 2,
    "warmup": 1,
    "rounds": 3,
    "cap_s": 0.1,
    "naive_limit_mib": 64,
}
SHAPE = {"batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "block": 64}


def derived(preset: dict[str, Any], data: Path) -> dict[str, Any]:
    """Return the paper preset at the size of a test, on a CPU."""
    facts = {"preset": "paper-smoke", "device": "cpu", "dtype": "float32", "block": BLOCK, "data": str(data)}
    scale = "test scale: the paper preset on random stand-ins; no number here means anything"
    return _smaller(preset) | facts | {"scale": scale, "scale_kind": "toy", "seed": 0}


def _smaller(value: Any, key: str = "") -> Any:
    """Return settings with small numbers. Raises KeyError for a context that CONTEXTS lacks."""
    if key == "shape":
        return SHAPE
    if key in SMALL:
        return SMALL[key]
    if key in ("context", "reaching"):
        return CONTEXTS[value]
    if key == "documents":
        return min(value, 2)
    if key == "layer":
        return 1
    if key == "contexts" and isinstance(value, list):  # an experiment has the name `contexts` too
        return [CONTEXTS[value[-1]]]
    if key == "sparsities":
        return [one for one in value if one][:1]
    if key == "sparsity_by_context":
        return value[-1:]
    if isinstance(value, dict):
        return {name: _smaller(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_smaller(one) for one in value]
    return value


def make_data(folder: Path) -> None:
    """Write stand-ins of all checkpoints and data sets of the preset, each in the format of the real one."""
    make_llama_checkpoint(folder / "meta-llama/Llama-3.1-8B-Instruct", instruct=True)
    make_llama_checkpoint(folder / "meta-llama/Llama-3.1-8B")
    make_llama_checkpoint(folder / "meta-llama/Meta-Llama-3-8B", rope=None)
    make_mistral_checkpoint(folder / "mistralai/Mistral-7B-v0.3")
    make_gate_file(folder / "SeerAttention/SeerAttention-Llama-3.1-8B-AttnGates", block=BLOCK)
    rng = np.random.default_rng(0)

    books = folder / "emozilla/pg19-test/data/test-00000-of-00001-29a571947c0b5ccc.parquet"
    books.parent.mkdir(parents=True)
    titles = [f"Book {number}" for number in range(4)]
    lengths = [800, 900, 60, 1000]  # words; one book is too short
    pd.DataFrame(
        {
            "short_book_title": titles,
            "publication_date": 1900,
            "url": "http://www.gutenberg.org/ebooks/0",
            "text": [text(rng, words) for words in lengths],
        }
    ).to_parquet(books)

    proofs = folder / "hoskinson-center/proof-pile/test/proofpile_test.jsonl.gz"
    proofs.parent.mkdir(parents=True)
    with gzip.open(proofs, "wt", encoding="utf-8") as file:
        for words in (50, 900, 800, 850):
            file.write(json.dumps({"text": text(rng, words), "meta": {"config": "arxiv"}}) + "\n")

    sample = folder / "togethercomputer/RedPajama-Data-1T-Sample"
    sample.mkdir(parents=True)
    for name in ("arxiv", "book", "c4", "cc_2019-30", "github", "stackexchange", "wikipedia"):
        rows = [{"text": text(rng, int(rng.integers(100, 300))), "meta": {"source": name}} for _ in range(6)]
        (sample / f"{name}_sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    make_longbench(folder / "THUDM/LongBench")


def make_longbench(folder: Path) -> None:
    """Write data.zip with one question per task of LongBench-E, in all buckets; the first prompt has to be cut."""
    rng = np.random.default_rng(1)
    answers = {"trec": "City", "passage_count": "3", "passage_retrieval_en": "Paragraph 3"}
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for number, task in enumerate(longbench.TASKS):
            row = {
                "input": text(rng, 5),
                "context": text(rng, 20 if number else 600),
                "answers": [answers.get(task, "fox")],
                "length": (1000, 5000, 9000)[number % 3],
                "dataset": f"{task}_e",
                "language": "en",
                "all_classes": ["City", "Date"] if task == "trec" else None,
                "_id": f"{number:048x}",
            }
            archive.writestr(f"data/{task}_e.jsonl", json.dumps(row) + "\n")


def text(rng: np.random.Generator, words: int) -> str:
    """Return text of random words."""
    known = np.array(["fox", "dog", "the", "quick", "brown", "over", "lazy", "word", "beginning", "long", "was"])
    return " ".join(rng.choice(known, words))


def write(folder: Path) -> Path:
    """Write the stand-ins and the preset below `folder`; return the preset's file."""
    make_data(folder / "data")
    preset = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    path = folder / "paper-smoke.yaml"
    path.write_text(yaml.safe_dump(derived(preset, folder / "data"), sort_keys=False))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
