"""Artefacts: the tables and figures of the paper, and some beyond it, drawn from the rows of a run.

Each artefact is one module. A figure has `collect(run, paper) -> frame` and `draw(frame) -> Figure`. A table has
`collect`, `render(frame) -> frame of strings` and `remarks(frame) -> lines of text`. Either may have
`chart(frame) -> Chart` for the report (chart.py). `make` writes the files of one
artefact. Listing the artefacts imports neither matplotlib nor torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from seerbench.errors import ResultsError
from seerbench.rows.store import Run
from seerbench.writing import write_bytes


@dataclass(frozen=True)
class Artefact:
    """Describe one artefact: its title, its kind and the rows that it reads.

    kind: "table" or "figure". needs: pairs of a table of rows and a part, which is the stem of a file; "*"
    matches any ending, and "a|b" matches either of two.
    """

    title: str
    kind: str
    needs: tuple[tuple[str, str], ...]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Return the suffixes of the files that `make` writes."""
        return (".csv", ".md", ".tex") if self.kind == "table" else (".svg", ".png", ".csv")


def _timings(*sweeps: str) -> tuple[tuple[str, str], ...]:
    """Return the needs of an artefact that reads these timing sweeps."""
    return tuple((table, f"{sweep}-*") for sweep in sweeps for table in ("cells", "samples"))


ARTEFACTS: dict[str, Artefact] = {
    "table1": Artefact("Perplexity over context and sparsity", "table", (("perplexity", "contexts"),)),
    "table2": Artefact("Task accuracy over length buckets", "table", (("tasks", "longbench|retrieval"),)),
    "table3": Artefact("Long-context extension with YaRN", "table", (("perplexity", "yarn*"),)),
    "table4": Artefact("Time to first token", "table", _timings("ttft")),
    "fig1": Artefact(
        "Fine-tuning loss, perplexity against sparsity, kernel speed-up",
        "figure",
        (
            *(("training", "finetune-*"), ("perplexity", "yarn*")),
            *((table, "kernel-*|authors_kernel-*") for table in ("cells", "samples")),
        ),
    ),
    "fig4": Artefact("Perplexity against sparsity", "figure", (("perplexity", "contexts*"),)),
    "fig5": Artefact("Where the time of sparse attention goes", "figure", _timings("methods")),
    "fig6": Artefact("Attention speed-up against sparsity", "figure", _timings("methods", "kernel")),
    "fig7": Artefact("True and predicted block maps", "figure", (("maps", "maps"),)),
    "fig8": Artefact("Cost of the training kernel", "figure", _timings("training_kernel")),
    "fig9": Artefact("Gates with and without RoPE", "figure", (("perplexity", "rope"), ("training", "distill-*"))),
    "fig10": Artefact("All 49 poolings", "figure", (("perplexity", "pooling"),)),
    "pareto": Artefact(
        "Loss against speed-up at the same masks", "figure", (("perplexity", "contexts"), *_timings("methods"))
    ),
    "losses": Artefact("Loss over dense by sparsity, beside the paper's", "table", (("perplexity", "contexts*"),)),
    "methods": Artefact("Time of every method: plan, attention and both", "table", _timings("methods")),
    "decode": Artefact("Speed-up of sparse decoding by context, batch and sparsity", "figure", _timings("decode")),
    "decode_quality": Artefact(
        "What sparse decoding costs by how much of the cache it reads",
        "figure",
        (("perplexity", "decode*"), ("tasks", "decode*")),
    ),
    "ablation": Artefact("Parts of a gate, ways to select blocks, oracles", "table", (("perplexity", "gates"),)),
    "budget": Artefact(
        "Loss of gates over the tokens that they were trained on",
        "figure",
        (("perplexity", "gates"), ("training", "distill-quarter"), ("training", "distill-*")),
    ),
    "context_use": Artefact(
        "What the model gains from its context", "figure", (("perplexity", "use*"), ("tasks", "retrieval|yarn"))
    ),
    "dilution": Artefact(
        "Look-ups by the number of rows in the asking block", "table", (("tasks", "asking-rows"),)
    ),
    "needle": Artefact("Needles found by depth and length", "figure", (("tasks", "ruler*"),)),
    "ruler": Artefact("RULER by task and length", "table", (("tasks", "ruler*"),)),
    "recall": Artefact("Block recall at equal sparsity", "table", (("recall", "gates*"),)),
}


def artefact(name: str) -> Artefact:
    """Return the entry of one artefact. Raises ResultsError, which lists the known names, for an unknown one."""
    if name not in ARTEFACTS:
        raise ResultsError(f"no artefact {name!r}; the artefacts are {', '.join(ARTEFACTS)}")
    return ARTEFACTS[name]


def make(name: str, run_dir: Path | str, paper_dir: Path | str, out_dir: Path | str) -> list[Path]:
    """Write the files of one artefact into `out_dir` and return their paths.

    run_dir: the folder of rows. paper_dir: the folder with the paper's values.csv. Every file is made before the
    first is renamed into place, so an error leaves nothing behind. Raises MissingRows if the run lacks the rows,
    and ResultsError for an unknown artefact or rows that cannot be read.
    """
    # Imported here: listing the artefacts needs neither pandas nor matplotlib.
    from seerbench.artefacts.paper_numbers import paper_values

    entry = artefact(name)
    module = importlib.import_module(f"seerbench.artefacts.{name}")
    frame = module.collect(Run(run_dir), paper_values(paper_dir))
    contents = {".csv": frame.to_csv(index=False).encode()}
    if entry.kind == "table":
        from seerbench.artefacts import table_format

        cells, notes = module.render(frame), [*module.remarks(frame), *table_format.notes(frame)]
        contents[".md"] = table_format.markdown(entry.title, cells, notes).encode()
        contents[".tex"] = table_format.latex(name, entry.title, cells, notes).encode()
    else:
        from seerbench.artefacts import style

        figure = style.laid_out(module.draw(frame))
        contents |= {f".{kind}": style.image(figure, kind) for kind in ("svg", "png")}
    written = []
    for suffix in entry.suffixes:
        path = Path(out_dir) / f"{name}{suffix}"
        write_bytes(path, contents[suffix])
        written.append(path)
    return written
