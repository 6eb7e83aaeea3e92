"""What an actor proves before it takes a shard: that its node sees the same corpus and destination."""

import dataclasses

from flextok import storage
from flextok.errors import UsageError
from flextok.runtime.fitness import DestinationProof
from flextok.runtime.storage_errors import telling_storage_errors


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a node must be able to do: read `source`, and write into the driver's destination."""

    source: str
    source_bytes: int
    destination: DestinationProof

    @classmethod
    def wanted(cls, source: str, dest: str) -> "Proof":
        """As the driver sees both, which holds the lock of `dest`."""
        return cls(source, storage.size(source), DestinationProof.wanted(dest))

    def give(self) -> None:
        """Raises FlextokError naming the path where this node cannot."""
        with telling_storage_errors(f"read {self.source}"):
            if (found := storage.size(self.source)) != self.source_bytes:
                raise UsageError(f"expected {self.source_bytes} bytes in {self.source}, found {found}")
        self.destination.give()
