"""Define names that presets use for measurements, for modules that import no torch."""

# Kinds of block masks in the kernel sweep; `inputs.MASK_KINDS` makes them. The first is the default.
MASKS = ("random", "gate-shaped")
# Methods of the sweep `decode` beside dense decoding; sweeps/decode.py makes them.
DECODE_METHODS = ("seer-r", "quest", "streaming", "oracle")
# The mask of the sweep `authors_kernel`, which times as SeerAttention's authors did.
AUTHORS = "authors"
