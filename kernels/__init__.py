"""GPU kernels, one folder or file per operation; imported as seerbench.kernels.

A folder has `api.py` (signature, checks, choice of the kernel), `reference.py` (plain torch, any device) and one
file per kernel: `triton.py` for any GPU from Ampere on, `hopper.py` for H100 and H200. What several operations
use is in `primitives.py`, the checks of tensors and masks are in `checks.py`. Kernels import seerbench.core and
nothing above it.
"""
