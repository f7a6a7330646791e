"""colors."""

from __future__ import annotations

import hashlib
import re

import numpy as np

# method -> (name, colour, marker), in the order of every legend and table.
METHODS: dict[str, tuple[str, str, str]] = {
    "dense": ("Dense", "#000000", "o"),
    "fa2": ("FlashAttention-2", "#000000", "h"),
    "fa3": ("FlashAttention-3", "#444444", "p"),
    "fa4": ("FlashAttention-4", "#666666", "*"),
    "cudnn": ("cuDNN", "#888888", "8"),
    "flash-attn": ("FlashAttention-2, its package", "#222222", "h"),
    "flex": ("FlexAttention", "#AAAAAA", "p"),
    "seer": ("SeerAttention", "#D55E00", "o"),
    "seer-v2": ("SeerAttention v2", "#B36A00", "o"),
    "seer-128": ("SeerAttention, 128", "#8A3C00", "o"),
    "moa": ("MoA", "#009E73", "^"),
    "minference": ("MInference", "#0072B2", "s"),
    "minference-aligned": ("MInference, whole blocks", "#4477AA", "D"),
    "minference-searched": ("MInference, searched", "#004C7A", "s"),
    "minference-v1": ("MInference, v1 mix", "#66AADD", "s"),
    "minference-upstream": ("MInference, its package", "#99C7E8", "s"),
    "flexprefill": ("FlexPrefill", "#AA4499", "<"),
    "xattention": ("XAttention", "#117733", ">"),
    "flashprefill": ("FlashPrefill", "#AA3377", "H"),
    "streaming": ("StreamingLLM", "#56B4E9", "v"),
    "oracle": ("Oracle top-k (upper bound)", "#CC79A7", "D"),
    "random": ("Random blocks (lower bound)", "#999999", "X"),
    "block_sparse": ("Block-sparse kernel", "#E69F00", "P"),
    "block_sparse-128": ("Block-sparse kernel, 128", "#8C6D1F", "P"),
    "fa4-sparse": ("FlashAttention-4 sparse", "#6A3D9A", "*"),
    "fa4-sparse-128": ("FlashAttention-4 sparse, 128", "#B294C7", "*"),
    "pooled": ("Pooled-map kernel", "#882255", "d"),
    "naive": ("Naive torch", "#999933", "<"),
}
OTHERS = ("#332288", "#117733", "#44AA99", "#AA4499", "#661100", "#6699CC")  # third parties' methods
OTHER_MARKERS = (">", "H", "p", "8")


def known(method: str) -> tuple[str, str, str] | None:
    """The entry of METHODS; "flexprefill-128" is FlexPrefill at blocks of 128, "seer+mean" has means for blocks."""
    if method in METHODS:
        return METHODS[method]
    for mark, said in (("+mean", " with means"), ("+fa4", " on FlashAttention-4")):
        if (base := known(method.replace(mark, "")) if mark in method else None) is not None:
            return base[0] + said, base[1], base[2]
    base, _, block = method.rpartition("-")
    if base in METHODS and block.isdigit():
        return f"{METHODS[base][0]}, {block}", *METHODS[base][1:]
    return None


def display(method: str, gate: str | None = None) -> str:
    """The method's name for a legend or a table, with its gate or plan where it has one.

    Of MoA's plan files the budget is left out, which the column or axis of sparsities has.
    """
    name = entry[0] if (entry := known(method)) else method
    if method == "moa" and isinstance(gate, str):
        gate = re.sub(r"-(kv)?\d\.\d\d$", "", gate)
    return f"{name} ({gate})" if isinstance(gate, str) and gate else name


def colour(method: str) -> str:
    """The method's colour, the same in all figures; an unknown method's follows from its name."""
    return entry[1] if (entry := known(method)) else OTHERS[_digest(method) % len(OTHERS)]


def marker(method: str) -> str:
    """The method's marker."""
    return (
        entry[2] if (entry := known(method)) else OTHER_MARKERS[_digest(method) // len(OTHERS) % len(OTHER_MARKERS)]
    )


def rank(method: str) -> int:
    """Its place in legends and tables; variants stand with their method, unknown methods come last."""
    names = list(METHODS)
    base = method.partition("+")[0]
    for name in (method, base, base.rpartition("-")[0]):
        if name in METHODS:
            return names.index(name)
    return len(names)


def _digest(method: str) -> int:
    return int(hashlib.sha256(method.encode()).hexdigest()[:8], 16)


def shades(base: str, count: int) -> list[tuple[float, float, float]]:
    """`count` steps from a light tint of `base` to a dark shade of it: ordered lines of one method."""
    from matplotlib.colors import to_rgb

    rgb, steps = np.array(to_rgb(base)), np.linspace(-0.55, 0.45, count) if count > 1 else [0.0]
    return [tuple(rgb + (1 - rgb) * -step if step < 0 else rgb * (1 - step)) for step in steps]
