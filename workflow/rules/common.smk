# What the rules share: the command, what makes a result stale, and the lists of files.
from pathlib import Path

from seerbench.paths import ROOT
from seerbench.presets.types import SWEEPS
from seerbench.rows.schema import TABLES
from seerbench.rows.source_digest import files_digest, source_digest

WHERE = f"{config.get('preset', 'cpu')} --results {RUN.parent}"
LOGS = f"logs/{PRESET.name}"
SETUP = PRESET.settings_of_all_jobs()
# A job on a GPU sees one of them (seerbench/devices.py). How many run at a time: --resources gpu=4;
# profiles/default says one.
GPU = int(PRESET.file.device == "cuda")
# Nothing else runs beside a timing: it takes every core (Snakemake scales this down to --cores) and GPU.
WHOLE_MACHINE = 10_000
GPU_LIMIT = workflow.global_resources.get("gpu")  # None or without a value on a cluster
ALL_GPUS = GPU * (getattr(GPU_LIMIT, "value", None) or 1)
# What `snakemake compare --config compare=mine.py` compares.
COMPARED = config.get("compare", "")
COMPARED_FILE = COMPARED.partition(":")[0]
COMPARED_NAME = config.get("compare_name", Path(COMPARED_FILE).stem or "none")
TIMED = source_digest()  # measured again when what kernels or methods compute changes


wildcard_constraints:
    corpus="[^/]+",
    model="[^/]+",
    gates="[^/]+",
    experiment="[^/]+",
    sweep="|".join(SWEEPS),
    context=r"\d+",


def one_of(names):
    """A constraint of a wildcard to these names; a rule with none of them never applies."""
    return "|".join(names) or "none"


def code_of(*modules):
    """Digest of the code that a step runs, so that a change runs it again."""
    return files_digest(ROOT / "seerbench" / name for name in modules)


def timing(wildcards):
    """The job of a timing."""
    return PRESET.latency(wildcards.sweep, int(wildcards.context))


def gpus(processes):
    """How many GPUs a step asks for.

    Several processes take the first GPUs of a machine without asking who uses them: on one machine they get all.
    """
    return GPU if processes == 1 else max(GPU * processes, ALL_GPUS)


def launcher(processes):
    """What starts a step in several processes with a GPU each (seerbench/training/fsdp.py)."""
    if processes == 1:
        return ""
    return f"torchrun --standalone --nproc-per-node {processes} --no-python "


def is_there(table):
    """Whether the run that is drawn has rows of a table: a published run need not have all of them."""
    return DRAWN == RUN or any((DRAWN / table).glob("*.parquet"))


def drawable(kind=None):
    """The artefacts (of one kind) whose rows this preset measures and the run that is drawn has."""
    return [
        name
        for name, about in ARTEFACTS.items()
        if kind in (None, about.kind)
        and not PRESET.rows_for(about.needs)[1]
        and all(is_there(table) for table, _ in about.needs)
    ]


def files_of(*names):
    """Every file of these artefacts."""
    return [
        f"{FIGURES}/{name}{suffix}"
        for name in names
        for suffix in ARTEFACTS[name].suffixes
    ]


def notebook_files():
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
        PRESET.paths.rows(table, part)
        for table in tables
        for part in PRESET.parts(table)
    ]


def rows_of(wildcards):
    """The rows files that an artefact reads; a published run is source, no rule makes it."""
    if DRAWN == RUN:
        return PRESET.rows_for(ARTEFACTS[wildcards.artefact].needs)[0]
    return sorted(DRAWN.glob("*/*.parquet"))


def rows_of_all(wildcards):
    """The rows files of every artefact that this preset draws."""
    if DRAWN != RUN:
        return rows_of(wildcards)
    needs = [need for name in drawable() for need in ARTEFACTS[name].needs]
    return sorted(set(PRESET.rows_for(needs)[0]))


def drawing_code(artefact):
    """Digest of the module of one artefact and of those that artefacts share."""
    modules = (ROOT / "seerbench/artefacts").glob("*.py")
    return files_digest(
        path for path in modules if path.stem == artefact or path.stem not in ARTEFACTS
    )


def compared(wildcards):
    """The figure of what the config names; without a name there is nothing to compare."""
    if not COMPARED:
        raise WorkflowError("name what to compare: --config compare=mine.py")
    return f"figures/compare/{COMPARED_NAME}.svg"
