"""Time kernels and methods in sweeps, which decide the methods of each cell and their inputs.

    kernel_sweep           kernels on random inputs, all on the same masks: speed against sparsity
    captured_sweep         kernels on a layer of a model and the mask that a method planned there
    authors_kernel_sweep   our kernel under the conditions of the authors' kernel benchmark
    methods_sweep          planning and attention of whole methods on one layer's q, k and v, captured or random
    training_kernel_sweep  attention with the pooled map: time and memory (Figure 8)
    ttft_sweep             time to first token of a whole model (Table 4)
    decode_sweep           one step of decoding in one layer, over batch sizes
    decode_kernel_sweep    kernels for decoding on random caches, all on the same lists

Each call measures one context, locks the device (gpu_lock.py) while it runs, and returns rows of the tables `cells`
and `samples`. steps/latency.py and compare/run.py call the sweeps; cells.py times each cell.
"""

from seerbench.measure.sweeps.decode import decode_sweep
from seerbench.measure.sweeps.decode_kernel import decode_kernel_sweep
from seerbench.measure.sweeps.kernel import authors_kernel_sweep, captured_sweep, kernel_sweep
from seerbench.measure.sweeps.methods import methods_sweep
from seerbench.measure.sweeps.training_kernel import training_kernel_sweep
from seerbench.measure.sweeps.ttft import ttft_sweep

__all__ = [
    "authors_kernel_sweep",
    "captured_sweep",
    "decode_kernel_sweep",
    "decode_sweep",
    "kernel_sweep",
    "methods_sweep",
    "training_kernel_sweep",
    "ttft_sweep",
]
