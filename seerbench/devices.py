"""devices."""

from __future__ import annotations

import shutil


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers here; asks the driver's tool, not torch."""
    return shutil.which("nvidia-smi") is not None
