"""What a length policy is, the register of them, and their short forms."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from flextok.config import Config
from flextok.errors import UsageError
from flextok.registry import ConfigRegister

if TYPE_CHECKING:
    import torch

    from flextok.model.tokenizer import Tokenizer


class LengthPolicy(Config):
    """Settings of a policy, and what it gives. Read on the driver of a job too: torch is imported only in `lengths`."""

    kind: str
    short_form: ClassVar[str] = ""
    """How a command names it, for its messages; "" for the form that every policy has, `KIND:SETTING=VALUE,...`."""

    def require(self, image_px: int) -> None:
        """Raises UsageError where it cannot judge a tokenizer's images, of this side: asked before a job begins."""

    def lengths(
        self, tokenizer: "Tokenizer", pixels: np.ndarray, ids: "torch.Tensor", sample_ids: Sequence[str]
    ) -> np.ndarray:
        """Tokens kept of each image: whole numbers [B] in 1..K.

        pixels: uint8 [B, S, S, 3]; ids: [B, K] or [B, K, C], the stored tokens of the same images; `sample_ids` name
        each image's stream of decoder noise. What an image gets must not depend on the others of its batch.
        """
        raise NotImplementedError

    @classmethod
    def from_short(cls, text: str) -> dict[str, Any] | None:
        """The settings that `text` stands for in this policy's own short form; None where it is not of that form."""
        return None


LENGTHS = ConfigRegister("length policy", home="flextok.tokenize.lengths")


def parse_length(text: str) -> dict[str, Any]:
    """The settings of a policy in its short form, or in the form of every policy: `KIND` or `KIND:SETTING=VALUE,...`.

    Raises UsageError for text of no such form; the settings themselves are checked by whoever reads them.
    """
    kind, _, settings = text.partition(":")
    pairs = [setting.partition("=") for setting in settings.split(",") if settings]
    if kind in LENGTHS.names() and all(equals for _, equals, _ in pairs):
        return {"kind": kind, **{name: value for name, _, value in pairs}}
    members = [LENGTHS[name] for name in LENGTHS.names()]
    policies = [member for member in members if issubclass(member, LengthPolicy)]
    for policy in policies:
        if (values := policy.from_short(text)) is not None:
            return values
    known = ", ".join(policy.short_form for policy in policies if policy.short_form)
    raise UsageError(f"expected --length {known}, or KIND:SETTING=VALUE, found {text}; try mae:0.02")
