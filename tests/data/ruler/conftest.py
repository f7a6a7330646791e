import pytest

from seerbench.data.ruler import counting, needles, tracking
from seerbench.data.ruler.draws import NOISE
from seerbench.data.tokens import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """Return a tokenizer that has the words of RULER's templates, without a chat template."""
    codes = "3fa1c2d4-90b7-4e1f-8a6b-c05d7e2f9b18 VAR QWERT = VAR ZXCVB"
    texts = [*needles.MANY, *needles.ONE, tracking.TURN, tracking.PREFIX, counting.COMMON_TURN, NOISE, codes]
    return train_tokenizer([" ".join(texts)] * 20, 700)
