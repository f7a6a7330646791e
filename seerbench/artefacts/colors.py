"""The palette: one name, one color and one marker per method, the same in every table and figure.

The palette is Okabe and Ito's (2008), which color-blind readers can tell apart, with a few colors of Paul Tol's.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from matplotlib.colors import to_rgb

from seerbench.methods.registry import catalogue

# method -> (name, color, marker), in the order of every legend and table.
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
    "seer-r": ("SeerAttention-R", "#F08A3C", "o"),
    "seer-r-last-position": ("SeerAttention-R, blocks by last position", "#C4691F", "d"),
    "quest": ("Quest", "#332288", "s"),
    "moa": ("MoA", "#009E73", "^"),
    "minference": ("MInference", "#0072B2", "s"),
    "minference-aligned": ("MInference, whole blocks", "#4477AA", "D"),
    "minference-searched": ("MInference, searched", "#004C7A", "s"),
    "minference-v1": ("MInference, v1 mix", "#66AADD", "s"),
    "minference-upstream": ("MInference, its package", "#99C7E8", "s"),
    "flexprefill": ("FlexPrefill", "#AA4499", "<"),
    "xattention": ("XAttention", "#117733", ">"),
    "flashprefill": ("FlashPrefill", "#AA3377", "H"),
    "flashprefill-v2": ("FlashPrefill V2", "#7A1F4D", "H"),
    "streaming": ("StreamingLLM", "#56B4E9", "v"),
    "oracle": ("Oracle by maximum", "#CC79A7", "D"),
    "oracle-mass": ("Oracle by mass", "#8F3F71", "D"),
    "random": ("Random blocks", "#999999", "X"),
    "block_sparse": ("Block-sparse kernel", "#E69F00", "P"),
    "block_sparse-128": ("Block-sparse kernel, 128", "#8C6D1F", "P"),
    "split_kv": ("Split-KV kernel for decoding", "#E6B800", "P"),
    "fa4-sparse": ("FlashAttention-4 sparse", "#6A3D9A", "*"),
    "fa4-sparse-128": ("FlashAttention-4 sparse, 128", "#B294C7", "*"),
    "pooled": ("Training kernel", "#882255", "d"),
    "naive": ("Naive torch", "#999933", "<"),
}
# For methods that are not in METHODS, such as those of third parties.
OTHER_COLORS = ("#332288", "#117733", "#44AA99", "#AA4499", "#661100", "#6699CC")
OTHER_MARKERS = (">", "H", "p", "8")
# Suffix of a variant's name in rows (methods/wrappers.py) -> what its display name adds, and its marker. The words
# of the last one come first.
SUFFIXES = {
    r"\+last(\d+)": (r", last \1 rows dense", "P"),
    r"\+fa4": (" on FlashAttention-4", "*"),
    r"\+mean": (" with means", "d"),
    r"\+forced": (", sink and diagonal forced (ours)", "X"),
    r"\+threshold": (", threshold rule", "p"),
    r"\+layer": (", one threshold per layer", "s"),
}

# A block size or a setting at the end of a method's name in timings, such as "128", "tau0.8" or "dense_layers4".
VARIANT = re.compile(r"[a-z_]*\d[\d.]*")


def entry_of(method: str) -> tuple[str, str, str] | None:
    """Return (name, color, marker) of a method, or None if it is unknown.

    A variant has the color of its method: "flexprefill-128" is FlexPrefill with blocks of 128,
    "xattention-tau0.8-s16" is XAttention at another setting, "seer+layer" is
    SeerAttention with one threshold for all heads of a layer. A suffix with a plus has its own marker.
    """
    if method in METHODS:
        return METHODS[method]
    for suffix, (words, shape) in SUFFIXES.items():
        found = re.search(suffix, method)
        base_entry = entry_of(method.replace(found[0], "", 1)) if found else None
        if found and base_entry is not None:
            return base_entry[0] + found.expand(words), base_entry[1], shape
    base, _, rest = method.rpartition("-")
    base_entry = entry_of(base) if base and VARIANT.fullmatch(rest) else None
    return base_entry and (f"{base_entry[0]}, {rest}", *base_entry[1:])


def base_of(method: str) -> str:
    """Return the method of which `method` is a variant: "seer" for "seer+last2", and itself for "oracle-mass"."""
    return method.partition("+")[0]


def display(method: str, gate: str | None = None) -> str:
    """Return the name of a method for a legend or a table, with its gate reference or plan file if it has one.

    The budget at the end of a MoA plan's name is left out, since the column or axis of sparsities shows it.
    """
    entry = entry_of(method)
    name = entry[0] if entry else title_of(method)
    if method == "moa" and isinstance(gate, str):
        gate = re.sub(r"-(kv)?\d\.\d\d(-last\d+)?$", "", gate)
    return f"{name} ({gate})" if isinstance(gate, str) and gate else name


def title_of(method: str) -> str:
    """Return the title on the card of a registered method, or the name itself."""
    card = catalogue().get(method)
    return card.title if card and card.title else method


def color(method: str) -> str:
    """Return the color of a method, the same in all figures; that of an unknown method follows from its name."""
    entry = entry_of(method)
    return entry[1] if entry else OTHER_COLORS[_digest(method) % len(OTHER_COLORS)]


def marker(method: str) -> str:
    """Return the marker of a method, the same in all figures."""
    entry = entry_of(method)
    return entry[2] if entry else OTHER_MARKERS[_digest(method) // len(OTHER_COLORS) % len(OTHER_MARKERS)]


def rank(method: str) -> int:
    """Return the place of a method in legends and tables: variants with their method, unknown ones last."""
    names = list(METHODS)
    base = base_of(method)
    for name in (method, base, base.rpartition("-")[0]):
        if name in METHODS:
            return names.index(name)
    return len(names)


def _digest(method: str) -> int:
    return int(hashlib.sha256(method.encode()).hexdigest()[:8], 16)


def shades(base: str, count: int) -> list[tuple[float, ...]]:
    """Return `count` colors from a light tint of `base` to a dark shade of it, for ordered lines of one method."""
    rgb, steps = np.array(to_rgb(base)), np.linspace(-0.55, 0.45, count) if count > 1 else [0.0]
    return [tuple(rgb + (1 - rgb) * -step if step < 0 else rgb * (1 - step)) for step in steps]
