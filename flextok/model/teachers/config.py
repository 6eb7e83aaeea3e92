"""Settings of teachers, light to import.

A new teacher is one file in this room, named as its kind: a class of settings whose `build` gives a `Teacher` (see base.py),
registered by the decorator.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from flextok.config import Config, Operational
from flextok.registry import ConfigRegister

if TYPE_CHECKING:
    import torch

    from flextok.model.teachers.base import Teacher


class TeacherSettings(Config):
    """What decides a teacher's features; the base of each kind's settings."""

    kind: str

    def build(self, device: "torch.device") -> "Teacher":
        """The teacher, on `device`."""
        raise NotImplementedError


TEACHERS = ConfigRegister("teacher", home="flextok.model.teachers")
TeacherConfig = Annotated[TeacherSettings, TEACHERS]


@TEACHERS.register
class DinoV2Config(TeacherSettings):
    """DINOv2 (arXiv 2304.07193) in transformers' format, the teacher of REPA and FlexTok."""

    kind: Literal["dinov2"] = "dinov2"
    folder: Operational[str | None] = Field(
        default=None, description="Local folder with its config.json and model.safetensors, the same on every node."
    )
    hub_id: Operational[str | None] = Field(
        default=None, description="Or its name on the Hub, as facebook/dinov2-large: fetched from there where missing."
    )
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="Hash of model.safetensors, as sha256sum prints it: the weights decide what the training comes to.",
    )
    input_px: int = Field(
        default=224, gt=0, multiple_of=14, description="Images are resized to this; a patch is 14 pixels wide."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "DinoV2Config":
        if (self.folder is None) == (self.hub_id is None):
            raise ValueError("exactly one of 'folder' and 'hub_id' must be given")
        if self.folder is not None and not self.folder.startswith("/"):
            raise ValueError(f"expected an absolute path as folder, which all workers see, found {self.folder}")
        return self

    def build(self, device: "torch.device") -> "Teacher":
        from flextok.model.teachers.dinov2 import DinoV2

        return DinoV2(self, device)


@TEACHERS.register
class EfficientNetLite0Config(TeacherSettings):
    """EfficientNet-Lite0, whose ImageNet weights come as a Python package: it works with no network."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    input_px: int = Field(
        default=224, gt=0, multiple_of=32, description="Images are resized to this; its map has a place a 16 pixels."
    )

    def build(self, device: "torch.device") -> "Teacher":
        from flextok.model.teachers.efficientnet_lite0 import EfficientNetLite0Teacher

        return EfficientNetLite0Teacher(self, device)


@TEACHERS.register
class RandomConvolutionConfig(TeacherSettings):
    """A random convolution: tiny, for tests."""

    kind: Literal["random_convolution"] = "random_convolution"
    seed: int = Field(default=0, ge=0, description="Seed of its weights.")
    width: int = Field(default=16, gt=0, description="Numbers in a feature.")
    stride: int = Field(default=8, gt=0, description="Pixels a feature covers along each side.")

    def build(self, device: "torch.device") -> "Teacher":
        from flextok.model.teachers.random_convolution import RandomConvolution

        return RandomConvolution(self, device)
