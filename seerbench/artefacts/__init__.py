"""Artefacts: the paper's tables and figures (and some beyond it), drawn from a run's rows.

One module an artefact. A figure has `collect(run, paper) -> frame` and `draw(frame) -> Figure`, a table
`collect`, `render(frame) -> frame of strings` and `remarks(frame)`. `make` writes one of them;
listing them imports neither matplotlib nor torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from seerbench.errors import ResultsError
from seerbench.rows.store import Run, atomically


@dataclass(frozen=True)
class Artefact:
    """What an artefact is and what it reads: (table, part), a part being a file stem or its beginning and *.

    "a|b" is any of them.
    """

    title: str
    kind: str  # table | figure
    needs: tuple[tuple[str, str], ...]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The files that `make` writes."""
        return (".csv", ".md", ".tex") if self.kind == "table" else (".svg", ".png", ".csv")


def _timed(*sweeps: str) -> tuple[tuple[str, str], ...]:
    return tuple((table, f"{sweep}-*") for sweep in sweeps for table in ("cells", "samples"))


ARTEFACTS: dict[str, Artefact] = {
    "table1": Artefact("Perplexity over context and sparsity", "table", (("perplexity", "contexts"),)),
    "table2": Artefact("Task accuracy over length buckets", "table", (("tasks", "longbench|retrieval"),)),
    "table3": Artefact("Long-context extension with YaRN", "table", (("perplexity", "yarn*"),)),
    "table4": Artefact("Time to first token", "table", _timed("ttft")),
    "fig1": Artefact(
        "Fine-tuning loss, perplexity against sparsity, kernel speed-up",
        "figure",
        (("training", "finetune-*"), ("perplexity", "yarn*"), *_timed("kernel")),
    ),
    "fig4": Artefact("Perplexity against sparsity", "figure", (("perplexity", "contexts*"),)),
    "fig5": Artefact("Where the time of sparse attention goes", "figure", _timed("methods")),
    "fig6": Artefact("Attention speed-up against sparsity", "figure", _timed("methods", "kernel")),
    "fig7": Artefact("True and predicted block maps", "figure", (("maps", "maps"),)),
    "fig8": Artefact("Cost of the training kernel", "figure", _timed("training_kernel")),
    "fig9": Artefact("Gates with and without RoPE", "figure", (("perplexity", "rope"), ("training", "distill-*"))),
    "fig10": Artefact("All 49 poolings", "figure", (("perplexity", "pooling"),)),
    "pareto": Artefact(
        "Loss against speed-up at the same masks", "figure", (("perplexity", "contexts"), *_timed("methods"))
    ),
    "methods": Artefact("Time of every method: plan, attention and both", "table", _timed("methods")),
    "ablation": Artefact("What a gate is made of", "table", (("perplexity", "gates"),)),
    "recall": Artefact("Block recall at equal sparsity", "table", (("recall", "gates"),)),
}


def artefact(name: str) -> Artefact:
    """The entry of one artefact; ResultsError names the known ones for another."""
    if name not in ARTEFACTS:
        raise ResultsError(f"no artefact {name!r}; the artefacts are {', '.join(ARTEFACTS)}")
    return ARTEFACTS[name]


def make(name: str, run_dir: Path | str, paper_dir: Path | str, out_dir: Path | str) -> list[Path]:
    """Write one artefact into `out_dir` from a run's rows and the paper's numbers; the files' paths.

    Nothing is written if anything is wrong: every file is made first, then renamed into place.
    """
    from seerbench.artefacts.frames import paper_values

    entry = artefact(name)
    module = importlib.import_module(f"seerbench.artefacts.{name}")
    frame = module.collect(Run(run_dir), paper_values(paper_dir))
    contents = {".csv": frame.to_csv(index=False).encode()}
    if entry.kind == "table":
        from seerbench.artefacts import table_format

        shown, notes = module.render(frame), [*module.remarks(frame), *table_format.notes(frame)]
        contents[".md"] = table_format.markdown(entry.title, shown, notes).encode()
        contents[".tex"] = table_format.latex(name, entry.title, shown, notes).encode()
    else:
        from seerbench.artefacts import style

        figure = module.draw(frame)
        contents |= {f".{kind}": style.image(figure, kind) for kind in ("svg", "png")}
    written = []
    for suffix in entry.suffixes:
        path = Path(out_dir) / f"{name}{suffix}"
        atomically(path, lambda part, suffix=suffix: part.write_bytes(contents[suffix]))
        written.append(path)
    return written
