"""Load a preset by name or YAML file and check it. An error is one line with its place in the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from seerbench.errors import ConfigError
from seerbench.paths import CONFIG, FRESH, ROOT
from seerbench.presets.file import PresetFile
from seerbench.presets.preset import Preset, expanded
from seerbench.presets.yaml_text import parse_yaml
from seerbench.settings import printable, tokens_in

SUFFIXES = (".yaml", ".yml")
# Our messages for pydantic's error types; all other errors keep pydantic's message.
_MAPPING = "expected a mapping (key: value)"
_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "dataclass_type"), _MAPPING),
    **dict.fromkeys(("tuple_type", "list_type"), "expected a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "string_pattern_mismatch": "expected a name of letters, digits, '.', '_' and '-', with no dot or dash first",
    "union_tag_not_found": "the key kind is missing",
    "missing": "this key is missing",
}
# Parts of pydantic's messages, and ours.
_WORDS = {"greater than or equal to": "at least", "less than or equal to": "at most", "greater than": "more than"}
_LIMITS = {"too_short": "least {min_length}", "too_long": "most {max_length}"}
# Error types whose message is complete; all other messages are followed by the wrong value.
_TOLD_IN_FULL = ("missing", "too_short", "too_long", "unknown_key", "preset", "value_error", "union_tag_not_found")


def known_presets() -> list[str]:
    """Return the names of the presets in config/."""
    return sorted(path.stem for path in CONFIG.glob("*.yaml"))


def load_preset(which: str, results: Path | str = FRESH) -> Preset:
    """Return a preset by its name (config/<name>.yaml) or by the path of a YAML file, checked.

    A relative path is looked for below the current folder, then below the project's root.

    Raises ConfigError for an unknown name, a file that cannot be read, or a key, value or name that does not fit.
    """
    try:
        path = _file_of(str(which))
        file = read(path)
        preset = Preset(file, expanded(results) / file.preset, reference_to(path))
        try:
            preset.require_patterns()
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return preset
    except OSError as error:
        raise ConfigError(f"{which} cannot be read: {error.strerror}") from None


def _file_of(which: str) -> Path:
    if which in known_presets():
        return CONFIG / f"{which}.yaml"
    given = Path(which)
    for path in (given, ROOT / given):
        if given.suffix in SUFFIXES and path.exists():
            return path
    raise ConfigError(f"no preset {which!r}; known presets: {', '.join(known_presets())}, or a YAML file")


def reference_to(path: Path) -> str:
    """Return the one text by which commands and rows name a preset, whatever its path was written as.

    It is the name of a preset in config/, the path below the project's root of another file of the project, and
    the absolute path of any other. Symbolic links are followed. `load_preset` finds the same file by it from every
    folder.
    """
    path = path.resolve()
    if path.parent == CONFIG and path.stem in known_presets():
        return path.stem
    if not path.is_relative_to(ROOT):
        return str(path)
    inside = path.relative_to(ROOT)
    hidden = inside.exists() and not inside.samefile(path)  # by a file of that name below the current folder
    return str(path if hidden else inside)


def read(path: Path) -> PresetFile:
    """Read and check a YAML file (UTF-8, with or without a byte order mark).

    Raises ConfigError with the place of the first mistake, and OSError for a file that cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    return parse(parse_yaml(text, str(path)), str(path))


def parse(content: Any, where: str) -> PresetFile:
    """Check the content of a YAML file. Raises ConfigError with `where` and the place of the first mistake."""
    try:
        return PresetFile.model_validate(content)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise ConfigError(f"{where}: {_told(mistakes[0], content)}{more}") from None


def _told(mistake: Mapping[str, Any], content: Any) -> str:
    """Return one mistake as `place: what is wrong`."""
    context = mistake.get("ctx", {})
    place = context.get("place") or "/".join(_place(mistake["loc"], content))
    if mistake["type"] == "unknown_key":
        place = "/".join(filter(None, (place, context["key"])))
    text = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    text = _EXPECTED.get(mistake["type"], text)
    if mistake["type"] in ("too_short", "too_long"):
        text = f"expected at {_LIMITS[mistake['type']].format(**context)}, with {context['actual_length']} given"
    if mistake["type"] == "union_tag_invalid":
        text = f"unknown kind {context['tag']!r}; known: {context['expected_tags']}"
    elif mistake["type"] not in _TOLD_IN_FULL:
        text = f"{text}, not {_short(mistake['input'])}{_hint(mistake)}"
    return f"{place}: {text}" if place else text


def _hint(mistake: Mapping[str, Any]) -> str:
    """Return how to write a number that a person wrote in a form that YAML reads as text; empty if it is none."""
    given = mistake["input"]
    if mistake["type"] not in ("float_type", "int_type") or not isinstance(given, str):
        return ""
    try:
        number = float(tokens_in(given)) if given[-1:] in "kK" else float(given)
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    written = str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    if "e" in written and "." not in written:  # YAML takes 1e-05 for text, and 1.0e-05 for a number
        written = written.replace("e", ".0e")
    return f"; write {written}, without quotes"


def _place(steps: Sequence[str | int], content: Any) -> list[str]:
    """Return a mistake's location without the names of types that pydantic adds to it."""
    found = []
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        in_list = isinstance(content, list) and isinstance(step, int) and step < len(content)
        if in_list or (isinstance(content, Mapping) and step in content):
            content = content[step]
        elif not (last and isinstance(step, str) and isinstance(content, Mapping) and step.isidentifier()):
            continue  # the name of a type
        found.append(printable(str(step)))
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
