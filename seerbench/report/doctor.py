"""What this machine can measure, what is missing, and which artefacts that costs. Imports no torch."""

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
from seerbench.presets.preset import Preset
from seerbench.presets.types import LongBench, ReleasedGates, SourceModel, SourceTokenizer
from seerbench.rows.machine import cpu_name, gpu_facts

# Packages by what they are for; all but the first group are optional.
PACKAGES = {
    "measuring": ("torch", "triton", "transformers", "safetensors"),
    "the workflow": ("snakemake",),
    "tables and figures": ("matplotlib", "tabulate"),
    "LongBench's scores": ("rouge",),
}
DISK_GIB = 2  # a cpu run writes about 0.1 GiB; torch's compile cache and slack


def report(preset: Preset) -> list[str]:
    """Lines for a person: machine, packages, corpora, methods, artefacts that this preset cannot make."""
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
                missing.append(f"{name} is not installed ({purpose}): pip install -e '.[workflow,longbench]'")
            else:
                lines.append(f"package    {name} {metadata.version(name)}")
    if preset.file.device == "cuda" and not has_gpu():
        missing.append("the preset measures on an NVIDIA GPU and there is none: take the cpu preset")
    if shutil.which("g++") is None and preset.file.device == "cpu":
        missing.append("g++ is not there; FlexAttention on a CPU is compiled with it: apt-get install g++")
    for name, corpus in preset.file.corpora.items():
        if isinstance(corpus, ParquetCorpus | FolderCorpus) and not preset.data(corpus.path).exists():
            missing.append(f"corpus {name}: {preset.data(corpus.path)} does not exist; set SEERBENCH_DATA")
    for source in _sources(preset):
        folder = preset.local(source)
        lines.append(f"source     {source}: {'the hub or its cache' if folder == source else folder}")
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free < DISK_GIB:
        missing.append(f"{free:.1f} GiB of disk are free; a run wants {DISK_GIB}")
    for card in catalogue().values():
        refusal = card.refused_here()
        lines.append(f"method     {card.name}: {'refused, ' + refusal if refusal else 'can run'}")
    for name, about in ARTEFACTS.items():
        absent = preset.rows_for(about.needs)[1]
        lines.append(f"artefact   {name}: " + (f"not from this preset ({', '.join(absent)})" if absent else "yes"))
    lines += [f"missing    {what}" for what in missing] or ["missing    nothing"]
    return lines


def _sources(preset: Preset) -> list[str]:
    """Return the hub ids of the preset's models, gates and data sets."""
    file = preset.file
    parts = [file.tokenizer, *file.models.values(), *file.gates.values()]
    found = [part.source for part in parts if isinstance(part, SourceTokenizer | SourceModel | ReleasedGates)]
    found += [corpus.name for corpus in file.corpora.values() if isinstance(corpus, HubCorpus)]
    found += [tasks.longbench for tasks in file.tasks.values() if isinstance(tasks, LongBench)]
    return list(dict.fromkeys(found))
