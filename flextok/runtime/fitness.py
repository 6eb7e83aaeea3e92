"""What a worker on a cluster proves before it takes work: that its node sees the driver's destination and can write there."""

import dataclasses
import tempfile
import uuid

from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.runtime.lock import holder_token
from flextok.runtime.storage_errors import telling_storage_errors

PROOF_BYTES = 4096
ADVICE = "every node must see the same files: use a shared file system or s3:// URLs"


class UnfitNodeError(FlextokError):
    """A node can no longer do what it once could; the work is another's."""


@dataclasses.dataclass(frozen=True)
class DestinationProof:
    """What a node must be able to do: write into the very `dest` whose lock the driver holds."""

    dest: str
    lock_token: str

    @classmethod
    def wanted(cls, dest: str) -> "DestinationProof":
        """As the driver sees it, which holds the lock of `dest`."""
        return cls(dest, holder_token(dest))

    def give(self) -> None:
        """Raises FlextokError naming the path where this node cannot."""
        with telling_storage_errors(f"write into {self.dest}"):
            # Without the lock, a folder of that name would be the node's own, and what is written there lost.
            if holder_token(self.dest) != self.lock_token:
                raise UsageError(f"expected the destination {self.dest} as the driver sees it, found another or none")
            _write_into(self.dest)


def _write_into(folder: str) -> None:
    """Write and leave nothing: on a disk a file without a name, which not even a kill leaves behind."""
    if storage.is_local(folder):
        with tempfile.TemporaryFile(dir=storage.local_path(folder)) as file:
            file.write(bytes(PROOF_BYTES))  # an empty file fits a full disk
    else:
        own = storage.join(folder, f"{storage.TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        storage.write_bytes(own, b"")
        storage.remove(own)


def unfit_line(fault: Exception) -> str:
    """What to say of this node, which cannot take part because of `fault`."""
    import ray

    why = " ".join(str(fault).split()) or type(fault).__name__
    return f"node {ray.util.get_node_ip_address()} takes no part: {storage.redact(why)}; {ADVICE}"
