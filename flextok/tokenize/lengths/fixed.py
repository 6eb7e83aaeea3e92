"""Every image keeps the same number of tokens."""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flextok.tokenize.lengths.base import LENGTHS, LengthPolicy


@LENGTHS.register
class FixedLength(LengthPolicy):
    """Every image keeps the same number of tokens (all are stored; `length` says how many count)."""

    kind: Literal["fixed"] = "fixed"
    tokens: int = Field(ge=1, description="Tokens kept.")
    short_form: ClassVar[str] = "a number of tokens"

    def lengths(self, tokenizer: Any, pixels: np.ndarray, ids: Any, sample_ids: Any) -> np.ndarray:
        """See LengthPolicy."""
        rows, stored = ids.shape[:2]
        return np.full(rows, min(self.tokens, stored))

    @classmethod
    def from_short(cls, text: str) -> dict[str, Any] | None:
        """`16`."""
        return {"kind": "fixed", "tokens": int(text)} if text.isdecimal() else None
