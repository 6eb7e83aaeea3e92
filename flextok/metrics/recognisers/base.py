"""What a recogniser is, its settings, and the register of them. One is named by its `kind`, a file of this package."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np

from flextok.config import Config
from flextok.metrics.base import Content
from flextok.registry import ConfigRegister


class Recogniser(ABC):
    """Reads words, or knows faces."""

    record: Mapping[str, Any]
    """What decides what it makes of a picture, for the protocol."""

    @abstractmethod
    def __call__(self, regions: Sequence[np.ndarray]) -> Any:
        """Of uint8 pictures [H, W, 3] of a word each, what they say: a list of texts; of a face each, features float64 [R, D]."""


class RecogniserConfig(Config):
    """Which recogniser."""

    kind: str
    looks_for: ClassVar[Content]
    """What it is for."""

    @property
    def called(self) -> str:
        """Ends the names of its numbers."""
        return self.kind

    def build(self) -> Recogniser:
        """The recogniser; raises UsageError where what it needs is not there."""
        raise NotImplementedError


RECOGNISERS = ConfigRegister("recogniser", home="flextok.metrics.recognisers")
AnyRecogniser = Annotated[RecogniserConfig, RECOGNISERS]
"""Type of a setting that names one."""
