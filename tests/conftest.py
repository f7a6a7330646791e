"""Small tensors, many tests: one thread is faster, and leaves the machine to the others."""

import torch

torch.set_num_threads(1)
