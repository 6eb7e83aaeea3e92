"""Representation alignment (REPA) in the training of a tokenizer: the teacher on the decoder's grid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flextok.model.decoders.config import AlignmentConfig
from flextok.model.decoders.flow import FlowDecoder
from flextok.model.teachers.base import Teacher
from flextok.model.tokenizer import Tokenizer
from flextok.train.config import TokenizerTrainConfig

HALF_BYTES = 2


@dataclass(frozen=True)
class Alignment:
    """A teacher and the grid of patches that its features are brought to."""

    settings: AlignmentConfig
    teacher: Teacher
    grid: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """[P,F] of an image's features."""
        rows, columns = self.grid
        return rows * columns, self.teacher.width

    @property
    def bytes_each(self) -> int:
        """Memory of an image's features."""
        patches, width = self.shape
        return patches * width * HALF_BYTES

    def features(self, images_B3HW: Tensor) -> Tensor:
        """float16 [B,P,F] of uint8 images."""
        return self.teacher.features(images_B3HW, self.grid)


def begun_alignment(tokenizer: Tokenizer, train: TokenizerTrainConfig, device: torch.device) -> Alignment | None:
    """The alignment that `train` asks for, with a projector in the tokenizer's decoder; None where it asks for none.

    Raises UsageError where the teacher cannot be had as its settings say.
    """
    decoder, settings = tokenizer.decoder, getattr(train.decoder, "alignment", None)
    if settings is None or not isinstance(decoder, FlowDecoder):
        return None
    teacher = settings.teacher.build(device)
    decoder.begin_alignment(settings, teacher.width, train.seed)
    return Alignment(settings, teacher, decoder.grid)
