"""The base of all typed settings: frozen pydantic models that refuse unknown keys and name the nearest known one.

Presets, corpora and trainings use `Settings` and the scalar types below for their fields. `seerbench.presets.load`
turns an error that they raise into one line with its place in the file. Imports no torch.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

SLUG = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
MIN_CONTEXT = 16  # tokens: one of the smallest blocks
MAX_CONTEXT = 2**27  # tokens: a thousand times the longest that is measured
BLOCKS = (16, 32, 64, 128)  # tokens per block that the kernels take; 16 on a CPU alone


@dataclass(frozen=True, eq=False)
class OneOf:
    """Annotate a field whose valid values are the names (or integers) that another module defines."""

    names: Iterable[str | int]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))


def _one_line(text: str) -> str:
    if not text.strip() or any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in text):
        raise ValueError("expected one line of text")
    return text


Name = Annotated[str, Field(strict=True, pattern=SLUG, max_length=100)]
"""A name that becomes part of a path: letters, digits, `.`, `_` and `-`, not starting with a dot or a dash."""
Text = Annotated[str, Field(strict=True, min_length=1, max_length=1000), AfterValidator(_one_line)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**12)]
Index = Annotated[int, Field(strict=True, ge=0, le=10**12)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Context = Annotated[int, Field(strict=True, ge=MIN_CONTEXT, le=MAX_CONTEXT)]
"""A number of tokens in one window."""
Block = Annotated[int, OneOf(BLOCKS)]
"""Tokens per block."""
Gain = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e6, le=1e6)]
Scale = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1e6)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=1e12)]
NonNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
LearningRate = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=1)]
Share = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, lt=1)]
"""A share below 1, such as a sparsity."""
Portion = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1)]
"""A share that may be 1."""


class Settings(BaseModel):
    """Base of typed settings: frozen, no unknown key; a field's docstring becomes its description in the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            refuse_unknown_keys(value, cls.model_fields)
        return value


def refuse_unknown_keys(given: Iterable[Any], known: Iterable[str]) -> None:
    """Raise the pydantic error `unknown_key`, with the nearest known key, for the first key that is not known."""
    known = list(known)
    for key in given:
        if key not in known:
            context = {"key": printable(str(key)), "advice": advice(str(key), known)}
            raise PydanticCustomError("unknown_key", "unknown key; {advice}", context)


def tokens_in(text: str) -> int:
    """Return a number of tokens that a person writes: 2048, or 2k for 2 x 1024, as every table shows it.

    Raises ValueError for anything else, and for numbers below 1 or above MAX_CONTEXT.
    """
    written = re.fullmatch(r"([0-9]{1,12})(k?)", text.strip(), re.IGNORECASE)
    tokens = int(written[1]) * (1024 if written[2] else 1) if written else 0
    if not 1 <= tokens <= MAX_CONTEXT:
        raise ValueError(f"expected a number of tokens, such as 2048 or 2k, not {text!r}")
    return tokens


def printable(text: str) -> str:
    """Return the text with every character that is not printable, such as a line's end, as an escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def advice(name: str, known: Iterable[str]) -> str:
    """Return what to write instead of an unknown name: the nearest known one, or all of them where none is near."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there are none"
