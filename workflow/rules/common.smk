# What the rules share: the command, what makes a result stale, and the lists of files.
from pathlib import Path

from seerbench.paths import ROOT
from seerbench.rows.schema import TABLES
from seerbench.rows.source_digest import files_digest, source_digest

WHERE = f"{config.get('preset', 'cpu')} --results {RUN.parent}"
LOGS = f"logs/{PRESET.name}"
GPU = int(
    PRESET.config["device"] == "cuda"
)  # GPU jobs run one at a time (profiles/default)
WHOLE_MACHINE = (
    10_000  # Snakemake scales it down to --cores: nothing else runs beside a timing
)
# What `snakemake compare --config compare=mine.py` compares.
COMPARED = config.get("compare", "")
COMPARED_FILE = COMPARED.partition(":")[0]
COMPARED_NAME = config.get("compare_name", Path(COMPARED_FILE).stem or "none")
TIMED = source_digest()  # measured again when what kernels or methods compute changes


wildcard_constraints:
    model="[^/]+",
    gates="[^/]+",
    experiment="[^/]+",
    sweep="|".join(("kernel", "methods", "training_kernel", "ttft")),
    context=r"\d+",


def reads(step, wildcard=None):
    """The input function of a step: what the preset says that it reads."""
    return lambda wildcards: [
        str(path)
        for path in PRESET.reads(step, getattr(wildcards, wildcard) if wildcard else "")
    ]


def trains_with(*modules):
    """Digest of the training code that a step runs, so that a change trains again."""
    return files_digest(ROOT / "seerbench" / name for name in modules)


def processes(gates):
    """How many processes, with a GPU each, train these gates."""
    return PRESET.config["gates"][gates].get("processes", 1)


def launcher(count):
    """What starts a step in `count` processes (seerbench/sharded.py)."""
    return (
        f"torchrun --standalone --nproc-per-node {count} --no-python "
        if count > 1
        else ""
    )


def drawable(kind=None):
    """The artefacts (of one kind) whose rows this preset measures."""
    return [
        name
        for name, about in ARTEFACTS.items()
        if kind in (None, about.kind) and not PRESET.rows_for(about.needs)[1]
    ]


def files_of(*names):
    """Every file of these artefacts."""
    return [
        f"{FIGURES}/{name}{suffix}"
        for name in names
        for suffix in ARTEFACTS[name].suffixes
    ]


def notebooks():
    """Every notebook, executed."""
    sources = sorted((ROOT / "notebooks").glob("*.py"))
    return [
        f"{FIGURES}/{source.stem}{suffix}"
        for source in sources
        for suffix in (".ipynb", ".html")
    ]


def all_rows():
    """Every rows file of this preset, those of experiments that no artefact draws included."""
    tables = [name for name in TABLES if name != "runs"]
    return [
        str(PRESET.rows(table, part))
        for table in tables
        for part in PRESET.parts(table)
    ]


def rows_of(wildcards):
    """The rows files that an artefact reads; a published run is source, no rule makes it."""
    if DRAWN == RUN:
        return [
            str(path)
            for path in PRESET.rows_for(ARTEFACTS[wildcards.artefact].needs)[0]
        ]
    return [str(path) for path in sorted(DRAWN.glob("*/*.parquet"))]


def compared(wildcards):
    """The figure of what the config names; without a name there is nothing to compare."""
    if not COMPARED:
        raise WorkflowError("name what to compare: --config compare=mine.py")
    return f"figures/compare/{COMPARED_NAME}.svg"


def rows_of_all(wildcards):
    """The rows files of every artefact that this preset draws."""
    if DRAWN != RUN:
        return rows_of(wildcards)
    needs = [need for name in drawable() for need in ARTEFACTS[name].needs]
    return sorted({str(path) for path in PRESET.rows_for(needs)[0]})
