"""Define names that presets use for measurements, for modules that import no torch."""

# Kinds of block masks in the kernel sweep; `inputs.MASK_KINDS` makes them. The first is the default.
MASKS = ("random", "gate-shaped")
# Methods for decoding beside dense decoding. The first needs a gate; the classes of the others are in
# baselines/decode/by_name.py.
GATE_R = "seer-r"
DECODE_METHODS = (GATE_R, "quest", "streaming", "oracle")
DENSE_DECODE = "dense"
# The mask of the sweep `authors_kernel`, which times as SeerAttention's authors did.
AUTHORS = "authors"
