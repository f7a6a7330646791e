"""Names that presets give to what is measured, where they are defined for modules that import no torch."""

# Kinds of block masks in the kernel sweep; `inputs.MASK_KINDS` makes them. The first is the default.
MASKS = ("random", "gate-shaped")
