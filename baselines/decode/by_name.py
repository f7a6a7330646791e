"""List the methods for decoding that need no gate, by the names that presets use."""

from __future__ import annotations

from typing import Any

from seerbench.baselines.decode.oracle import OracleDecode
from seerbench.baselines.decode.quest import QuestDecode
from seerbench.baselines.decode.streaming import StreamingDecode
from seerbench.methods.decode_protocol import BudgetDecode

BASELINES: dict[str, type[BudgetDecode[Any]]] = {
    "quest": QuestDecode,
    "streaming": StreamingDecode,
    "oracle": OracleDecode,
}
