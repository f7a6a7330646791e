# Names that the rules share: the command, the digests that make a result stale, and the lists of files.
import shlex
from fnmatch import fnmatch
from pathlib import Path

from seerbench.devices import usable_gpus
from seerbench.errors import ConfigError
from seerbench.graph.steps import disturbed_timings, measured_parts
from seerbench.paths import ROOT
from seerbench.presets.types import SWEEPS
from seerbench.rows.schema import TABLES
from seerbench.rows.source_digest import files_digest, source_digest

# The preset and the folder of runs, for the commands. They are paths, since Snakemake remembers a parameter only if it
# is text, a number or a collection. What is in the preset decides whether a step runs again (`settings`), and not how
# its file is called or where the checkout is.
REFERENCE = Path(PRESET.reference)
LOGS = f"logs/{PRESET.name}"
SETUP = PRESET.settings_of_all_jobs()
# A job on a GPU sees only one GPU (seerbench/devices.py). As many run side by side as this machine has GPUs, unless
# --resources gpu=N is given. On a cluster (`nodes`) the scheduler shares out the GPUs.
GPU = int(PRESET.file.device == "cuda")
if (
    GPU
    and workflow.is_main_process
    and workflow.nodes is None
    and "gpu" not in workflow.global_resources
):
    workflow.register_resource("gpu", max(len(usable_gpus()), 1))
# Nothing else runs beside a timing: it takes every core (Snakemake scales this down to --cores) and GPU.
WHOLE_MACHINE = 10_000
GPU_LIMIT = workflow.global_resources.get("gpu")  # None or valueless on a cluster
ALL_GPUS = GPU * (getattr(GPU_LIMIT, "value", None) or 1)
# The target of `snakemake compare --config compare=mine.py`: a file, or file:name.
COMPARED = str(config.get("compare", ""))
COMPARED_FILE = COMPARED.partition(":")[0]
COMPARED_NAME = str(config.get("compare_name", Path(COMPARED_FILE).stem or "none"))
TIMED = source_digest()  # timings run again when this digest changes


wildcard_constraints:
    corpus="[^/]+",
    model="[^/]+",
    gates="[^/]+",
    experiment="[^/]+",
    sweep="|".join(SWEEPS),
    context=r"\d+",


def near(path):
    """Return a path below the current folder relative to it, and any other path as it is.

    The checkout can then be moved without a step running again, and be below a folder whose name has braces, in
    which Snakemake sees a wildcard.
    """
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def one_of(names):
    """Return a pattern that restricts a wildcard to these names; without names, the rule never applies."""
    return "|".join(names) or "none"


def code_of(*modules):
    """Return a digest of the modules that a step runs; the step runs again when it changes."""
    return files_digest(ROOT / "seerbench" / name for name in modules)


def timing(wildcards):
    """Return the latency job of a sweep and context."""
    return PRESET.latency(wildcards.sweep, int(wildcards.context))


def gpus(processes):
    """Return the number of GPUs that a step requests.

    torchrun starts on the first GPUs of a machine even if they are in use, so several processes request all.
    """
    return GPU if processes == 1 else max(GPU * processes, ALL_GPUS)


def launcher(processes):
    """Return the torchrun prefix of a step with several processes, one GPU per process; empty for one process."""
    if processes == 1:
        return ""
    return f"torchrun --standalone --nproc-per-node {processes} --no-python "


def is_there(table, pattern):
    """Return whether the run that is drawn has such parts of a table; a published run may lack some."""
    if DRAWN == RUN:
        return True
    parts = measured_parts(DRAWN, table)
    return any(fnmatch(part, one) for part in parts for one in pattern.split("|"))


def artefacts_of(kind=None):
    """Return the names of all artefacts, or of those of one kind."""
    return [name for name, one in ARTEFACTS.items() if kind in (None, one.kind)]


def drawable(kind=None):
    """Return the artefacts (of one kind) that can be drawn: the preset measures their rows and the run has them."""
    return [
        name
        for name in artefacts_of(kind)
        if not PRESET.rows_for(ARTEFACTS[name].needs)[1]
        and all(is_there(*need) for need in ARTEFACTS[name].needs)
    ]


def files_of(*names):
    """Return all files of these artefacts."""
    return [
        f"{FIGURES}/{name}{suffix}"
        for name in names
        for suffix in ARTEFACTS[name].suffixes
    ]


def notebooks():
    """Return the names of all notebooks."""
    return sorted(source.stem for source in (ROOT / "notebooks").glob("*.py"))


def notebook_files():
    """Return the files of every notebook, executed."""
    return [
        f"{FIGURES}/{name}{suffix}"
        for name in notebooks()
        for suffix in (".ipynb", ".html")
    ]


def all_rows():
    """Return every rows file of this preset, those of experiments that no artefact draws included."""
    tables = [name for name in TABLES if name != "runs"]
    return [
        PRESET.paths.rows(table, part)
        for table in tables
        for part in PRESET.parts(table)
    ]


def rows_of(wildcards):
    """Return the rows files that an artefact reads; a published run is source, no rule makes it."""
    if DRAWN == RUN:
        return PRESET.rows_for(ARTEFACTS[wildcards.artefact].needs)[0]
    return sorted(map(near, DRAWN.glob("*/*.parquet")))


def rows_of_all(wildcards):
    """Return the rows files of every artefact that this preset draws."""
    if DRAWN != RUN:
        return rows_of(wildcards)
    needs = [need for name in drawable() for need in ARTEFACTS[name].needs]
    return sorted(set(PRESET.rows_for(needs)[0]))


def drawing_code(artefact):
    """Return a digest of the module of one artefact and of those that artefacts share."""
    modules = (ROOT / "seerbench/artefacts").glob("*.py")
    return files_digest(
        path for path in modules if path.stem == artefact or path.stem not in ARTEFACTS
    )


def what_to_open():
    """Return the lines that end a run: which timings to repeat, and where its results are."""
    page = Path(FIGURES) / "report.html"
    return disturbed_timings(RUN) + ([f"open {page}"] if page.is_file() else [])


def compare_options():
    """Return the options of `seerbench compare` from the config, each quoted for the shell."""
    try:
        return shlex.join(shlex.split(str(config.get("compare_options", ""))))
    except ValueError as error:
        raise ConfigError(f"--config compare_options: {error}") from None


def compared(wildcards):
    """Return the figure of what the config names; without a name there is nothing to compare."""
    if not COMPARED:
        raise ConfigError("name what to compare: --config compare=mine.py")
    return f"figures/compare/{COMPARED_NAME}.svg"
