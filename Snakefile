# The targets of SeerBench's graph. The rules are in workflow/rules, one file per subject; each rule calls one
# `seerbench` step. --config preset=... selects the preset: cpu (the default), gpu, speed, paper, or a YAML file.
from snakemake.utils import min_version

min_version("9.25")

from pathlib import Path

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.logging import logger

from seerbench.artefacts import ARTEFACTS
from seerbench.errors import ConfigError
from seerbench.graph.failures import Failures
from seerbench.graph.lock import LockAtStart
from seerbench.graph.progress import tell_progress
from seerbench.graph.steps import measured_durations
from seerbench.paths import PUBLISHED
from seerbench.presets.load import load_preset
from seerbench.settings import advice

# A job that an executor starts elsewhere reads this file too. It talks to Snakemake alone, and its graph has the lock.
if workflow.is_main_process:
    tell_progress(
        logger,
        workflow.output_settings,
        nothing_to_do=NOTHING_TO_BE_DONE_MSG,
        durations=lambda: measured_durations(
            PRESET.name, [*sorted(PUBLISHED.glob("*")), RUN]
        ),
        closing=lambda: what_to_open(),
    )
    if not workflow.output_settings.dryrun:
        logger.addFilter(LockAtStart(Path.cwd()))

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
        raise ConfigError(f"--config {key}: unknown key; {advice(key, CONFIG_KEYS)}")

PRESET = load_preset(
    str(config.get("preset", "cpu")), str(config.get("results", "results/fresh"))
)
FAILURES = Failures(Path.cwd(), PRESET.name)
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
        f"rows of {DRAWN}{'' if DRAWN == RUN else ' (no GPU here: a published run)'}, artefacts to {FIGURES}",
        flush=True,
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


# A step that failed runs again, since the number of its failures is a parameter that has changed.
for each in workflow.rules:
    if each.shellcmd is not None:
        each.set_params(failures=FAILURES.counter(each.name))
if workflow.is_main_process:
    logger.addFilter(FAILURES)
