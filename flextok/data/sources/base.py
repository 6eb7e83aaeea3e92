"""What workers know of a source: readers and what they give. Light to import: a worker starts in half a second."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class RawInput:
    """One input as read: the picture's bytes and what the source says about it."""

    image: bytes
    label: int | str | None = None
    """A class id, or the name of a class."""
    label_keys: tuple[str, ...] = ()
    """Under which of these keys a label CSV may know it."""
    captions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further fields of the source, carried into the sample's JSON."""
    view: str = ""
    """Its name among several pictures that the source keeps together; "" when there is none."""


class InputError(Exception):
    """An input that cannot be read; `reason` is one of the fixed reject reasons."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Reader(Protocol):
    """Reads inputs in a worker. Small, picklable, and free of the listing."""

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network, so that several reads at once pay."""
        ...

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """The input listed as (name, size, where); raises InputError."""
        ...
