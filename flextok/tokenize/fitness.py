"""What a worker proves before it takes a shard: that its node sees the same corpus, tokenizer and destination."""

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator

from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.runtime.storage_errors import telling_storage_errors

ADVICE = "every node must see the same files: use a shared file system or s3:// URLs"


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a node must be able to do: read `source`, see `mark` beside the token files, and write there."""

    source: str
    source_bytes: int
    mark: str

    def give(self) -> None:
        """Raises FlextokError naming the path where this node cannot."""
        with telling_storage_errors(f"read {self.source}"):
            if (found := storage.size(self.source)) != self.source_bytes:
                raise UsageError(f"expected {self.source_bytes} bytes in {self.source}, found {found}")
        folder, _, name = self.mark.rpartition("/")
        with telling_storage_errors(f"write into {folder}"):
            # Without the mark, a folder of that name would be the node's own, and what is written there lost.
            if not storage.exists(self.mark):
                raise UsageError(f"expected the destination {folder} as the driver sees it, found another or none")
            own = storage.join(folder, f"{name}-{uuid.uuid4().hex}")
            storage.write_bytes(own, b"")
            storage.remove(own)


@contextlib.contextmanager
def proof_of_access(source: str, dest: str) -> Iterator[Proof]:
    """The proof that workers give while the block runs: that they see the file `source`, and a mark in `dest`."""
    mark = storage.join(dest, f"{storage.TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    storage.write_bytes(mark, b"")
    try:
        yield Proof(source, storage.size(source), mark)
    finally:
        with contextlib.suppress(OSError, FlextokError):
            storage.remove(mark)


def unfit_line(fault: Exception) -> str:
    """What to say of this node, which cannot take part because of `fault`."""
    import ray

    why = " ".join(str(fault).split()) or type(fault).__name__
    return f"node {ray.util.get_node_ip_address()} takes no part: {storage.redact(why)}; {ADVICE}"
