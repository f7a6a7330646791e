# The targets of SeerBench's graph. The rules are in workflow/rules, one file per subject; each rule calls one
# `seerbench` step. --config preset=... selects the preset: cpu (the default), gpu, speed, paper, or a YAML file.
from snakemake.utils import min_version

min_version("9.25")

from seerbench.artefacts import ARTEFACTS
from seerbench.presets.load import load_preset
from seerbench.settings import advice

CONFIG_KEYS = (
    "preset",
    "results",
    "figures",
    "plan_for_gpu",
    "compare",
    "compare_name",
    "compare_options",
)
for key in config:
    if key not in CONFIG_KEYS:
        raise WorkflowError(f"--config {key}: unknown key; {advice(key, CONFIG_KEYS)}")

PRESET = load_preset(
    config.get("preset", "cpu"), config.get("results", "results/fresh")
)
RUN = PRESET.folder  # the run that this machine measures
# The run to draw: RUN, or a published run if this machine cannot measure the preset. `plan_for_gpu=1` plans as on
# a machine that can.
DRAWN = RUN if config.get("plan_for_gpu") else PRESET.artefact_run()
FIGURES = f"{config.get('figures', 'figures')}/{PRESET.name}"


# `--sdm conda` uses the environment below; `--sdm conda apptainer` uses it inside this container.
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
    print(f"preset {PRESET.name}: {PRESET.file.scale}")
    print(
        f"rows of {DRAWN}{'' if DRAWN == RUN else ' (no GPU here: a published run)'}, artefacts to {FIGURES}"
    )


rule rows:
    input:
        all_rows(),


rule tables:
    input:
        files_of(*drawable("table")),


rule notebooks:
    input:
        notebook_files(),


rule report:
    input:
        f"{FIGURES}/report.html",
        rules.notebooks.input,


rule figures:
    input:
        files_of(*drawable()),
        rules.report.input,


rule all:
    default_target: True
    input:
        rules.figures.input,
