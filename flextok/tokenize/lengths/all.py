"""Every image keeps all its tokens."""

from typing import Any, ClassVar, Literal

import numpy as np

from flextok.tokenize.lengths.base import LENGTHS, LengthPolicy


@LENGTHS.register
class AllTokens(LengthPolicy):
    """Every image keeps all its tokens."""

    kind: Literal["all"] = "all"
    short_form: ClassVar[str] = "all"

    def lengths(self, tokenizer: Any, pixels: np.ndarray, ids: Any, sample_ids: Any) -> np.ndarray:
        """See LengthPolicy."""
        return np.full(*ids.shape[:2])
