"""Name the methods for decoding that need no gate, for the sweep `decode` and for experiments that decode."""

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
