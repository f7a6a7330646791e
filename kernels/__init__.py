"""The kernels: one file each, with its maths, its oracle in plain torch, the kernel and the launcher."""
