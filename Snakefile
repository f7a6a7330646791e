# SeerBench's graph: the targets. The rules are in workflow/rules, one file a stage; each calls one
# `seerbench` step. Which preset: --config preset=cpu (the default), gpu, paper, or a YAML file.
from snakemake.utils import min_version

min_version("9.25")

from seerbench.artefacts import ARTEFACTS
from seerbench.presets.preset import load_preset

PRESET = load_preset(
    config.get("preset", "cpu"), config.get("results", "results/fresh")
)
RUN = PRESET.folder  # what this machine measures
# The same, or a published run where it cannot measure; elsewhere=1 plans for a machine that can (as_script.py).
DRAWN = RUN if config.get("elsewhere") else PRESET.drawn_from()
FIGURES = f"{config.get('figures', 'figures')}/{PRESET.name}"


# Used with --sdm conda (the environment) or --sdm conda apptainer (the same inside a container).
container: "docker://condaforge/miniforge3:24.9.2-0"


conda: "environment.yml"


include: "workflow/rules/common.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/gate.smk"
include: "workflow/rules/accuracy.smk"
include: "workflow/rules/latency.smk"
include: "workflow/rules/artefact.smk"
include: "workflow/rules/compare.smk"


onstart:
    print(f"preset {PRESET.name}: {PRESET.config['scale']}")
    print(
        f"rows of {DRAWN}{'' if DRAWN == RUN else ' (no GPU here: a published run)'}, artefacts to {FIGURES}"
    )


rule all:
    default_target: True
    input:
        files_of(*drawable()),
        f"{FIGURES}/report.html",
        notebooks(),


rule figures:
    input:
        files_of(*drawable()),
        f"{FIGURES}/report.html",
        notebooks(),


rule rows:
    input:
        all_rows(),


rule tables:
    input:
        files_of(*drawable("table")),


rule report:
    input:
        f"{FIGURES}/report.html",
        notebooks(),


rule notebooks:
    input:
        notebooks(),
