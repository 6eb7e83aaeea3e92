"""What a node of a cluster must see before it makes shards: the sources and the destination that the driver sees.

Without this a node that lacks a source would reject every picture of its shards as unreadable.
"""

import dataclasses
import hashlib
from collections.abc import Iterable

from flextok.data.corpus.builder import PlannedInput, ShardBuilder
from flextok.data.sources.base import InputError
from flextok.errors import UsageError
from flextok.runtime.fitness import DestinationProof


@dataclasses.dataclass(frozen=True)
class Sight:
    """Inputs, with the hashes of their bytes as the driver read them, and the destination."""

    inputs: tuple[tuple[PlannedInput, str], ...]
    destination: DestinationProof

    @classmethod
    def wanted(cls, builder: ShardBuilder, inputs: Iterable[PlannedInput]) -> "Sight":
        """Of `inputs` those that can be read here, one for each of their readers; the lock of the destination is held."""
        found: dict[int, tuple[PlannedInput, str]] = {}
        for planned in inputs:
            if planned.reader not in found:
                raw = builder.read(planned)
                if not isinstance(raw, InputError):
                    found[planned.reader] = planned, hashlib.sha256(raw.image).hexdigest()
        return cls(tuple(found.values()), DestinationProof.wanted(builder.dest))

    def prove(self, builder: ShardBuilder) -> None:
        """Raises FlextokError where this node does not see what the driver saw."""
        self.destination.give()
        for planned, sha256 in self.inputs:
            raw = builder.read(planned)
            if isinstance(raw, InputError):
                raise UsageError(f"expected to read {planned.source} as the driver does, found {raw}")
            if hashlib.sha256(raw.image).hexdigest() != sha256:
                raise UsageError(f"expected {planned.source} as the driver reads it, found other bytes")
