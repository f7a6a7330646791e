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
from seerbench.paths import IN_CHECKOUT_ONLY, IS_CHECKOUT, PUBLISHED
from seerbench.presets.preset import Preset
from seerbench.presets.types import LongBench, ReleasedGates, SourceModel, SourceTokenizer
from seerbench.rows.machine import cpu_name, gpu_facts

# purpose -> packages. All groups but the first are optional.
PACKAGES = {
    "measuring": ("torch", "triton", "transformers", "safetensors"),
    "the workflow": ("snakemake",),
    "tables and figures": ("matplotlib", "tabulate"),
    "LongBench's scores": ("rouge",),
}
INSTALL = "pip install -e '.[workflow,longbench]'" if IS_CHECKOUT else "pip install 'seerbench[workflow,longbench]'"
# A run of the cpu preset writes about 0.1 GiB; the rest is for torch's compile cache.
DISK_GIB = 2


def report(preset: Preset) -> list[str]:
    """Return lines for a person on machine, packages, sources, methods and artefacts, then on what is missing."""
    gpu = gpu_facts().get("name")
    memory = psutil.virtual_memory().total / 2**30
    lines = [
        f"machine    {cpu_name()}, {memory:.0f} GiB; GPU: {gpu or 'none'}",
        f"preset     {preset.name}: {preset.file.scale}",
    ]
    missing = []
    for purpose, names in PACKAGES.items():
        for name in names:
            if importlib.util.find_spec(name) is None:
                missing.append(f"{name} is not installed ({purpose}): {INSTALL}")
            else:
                lines.append(f"package    {name} {metadata.version(name)}")
    if preset.file.device == "cuda" and not has_gpu():
        missing.append("the preset measures on an NVIDIA GPU, and this machine has none: use the cpu preset")
        published = preset.file.published and PUBLISHED / preset.file.published
        if published and published.is_dir():
            drawn = f"make figures PRESET={preset.reference} draws the published run {published.name} here"
            lines.append(f"figures    {drawn}")
    if shutil.which("g++") is None and preset.file.device == "cpu":
        missing.append("g++ not found; torch needs it to compile FlexAttention on a CPU: apt-get install g++")
    for name, corpus in preset.file.corpora.items():
        if isinstance(corpus, ParquetCorpus | FolderCorpus) and not preset.data(corpus.path).exists():
            missing.append(f"corpus {name}: {preset.data(corpus.path)} does not exist; set SEERBENCH_DATA")
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
    lines += [f"missing    {what}" for what in missing] or ["missing    nothing"]
    return lines


def _sources(preset: Preset) -> list[str]:
    """Return the hub ids of the preset's models, gates and data sets."""
    file = preset.file
    parts = [file.tokenizer, *file.models.values(), *file.gates.values()]
    sources = [part.source for part in parts if isinstance(part, SourceTokenizer | SourceModel | ReleasedGates)]
    sources += [corpus.name for corpus in file.corpora.values() if isinstance(corpus, HubCorpus)]
    sources += [tasks.longbench for tasks in file.tasks.values() if isinstance(tasks, LongBench)]
    return list(dict.fromkeys(sources))
