"""Define names that presets use for measurements, for modules that import no torch."""

# Kinds of block masks in the kernel sweep; `inputs.MASK_KINDS` makes them. The first is the default.
MASKS = ("random", "gate-shaped")
# The mask of the sweep `authors_kernel`, which times as SeerAttention's authors did.
AUTHORS = "authors"
