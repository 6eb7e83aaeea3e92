"""A workspace: one folder or URL with every artifact, and the Dagster home that remembers how they came to be."""

import contextlib
import glob
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.runtime.lock import LockedError, locked
from flextok.runtime.storage_errors import FULL
from pipelines.record_faults import telling_record_faults

if TYPE_CHECKING:
    import dagster as dg

# The terminal keeps its own stdout and stderr: capturing them would hide progress bars behind a log file.
NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}
SETTINGS = "dagster.yaml"
# SQLite takes 504 bytes for a file with its journals (tried); `/history/runs/<run's id>.db` lies below.
LONGEST_HOME_BYTES = 450
PACKAGE = Path(__file__).resolve().parent
# Where the project's configs/ and infra/dagster/ lie: inside an installed package, beside the code of a checkout.
SHIPPED = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent


class Workspace:
    """Paths of the artifacts below `root` (a folder or any fsspec URL).

    Raises UsageError for a root that cannot be a workspace; nothing is written before.
    """

    def __init__(self, root: str):
        _check_url(root)
        try:
            self.root = storage.absolute(root)
            file = storage.is_local(self.root) and _is_file(self.root)
        # A name that is too long, a link to itself: before Python 3.13 that is a RuntimeError.
        except (OSError, RuntimeError) as error:
            raise UsageError(f"expected a folder for the workspace, found {error}; give another --workspace") from None
        if file:
            raise UsageError(
                f"expected a folder for the workspace, found the file {self.root}; give another --workspace"
            )
        _check_dagster_can_use(self.dagster_home)

    def url(self, *parts: str) -> str:
        """The URL of `parts` below the workspace."""
        return storage.join(self.root, *parts)

    def corpus(self, corpus: str, split: str) -> str:
        """Folder of one split's image shards."""
        return self.url("corpora", corpus, split)

    def checkpoints(self, kind: str) -> str:
        """Folder that holds the checkpoints of a kind: "vae", "tokenizer" or "prior"."""
        return self.url("checkpoints", kind)

    def tokens(self, corpus: str, split: str, tokenizer_digest: str) -> str:
        """Folder of one split's token shards made by one tokenizer."""
        return self.url("tokens", corpus, split, tokenizer_digest)

    def text_features(self, corpus: str, split: str, encoder_digest: str) -> str:
        """Folder of the features of one split's captions by one text encoder."""
        return self.url("text_features", corpus, split, encoder_digest)

    def relative(self, url: str) -> str:
        """`url` below the workspace as a relative path, so that a moved workspace still finds it."""
        return url.removeprefix(self.root + "/") if url.startswith(self.root + "/") else url

    def resolve(self, path: str) -> str:
        """The inverse of `relative`."""
        return path if path.startswith("/") or "://" in path else self.url(path)

    @property
    def dagster_home(self) -> Path:
        """Dagster's own records: always on local disk, also for a workspace on an object store."""
        if storage.is_local(self.root):
            return storage.local_path(self.root) / "dagster"
        return Path("workspace/dagster").resolve() / hashlib.sha256(self.root.encode()).hexdigest()[:12]

    def prepare_dagster_home(self) -> Path:
        """The Dagster home, made with its settings if it is not there yet."""
        home = self.dagster_home
        try:
            home.mkdir(parents=True, exist_ok=True)
            settings = home / SETTINGS
            if not settings.exists():
                storage.write_bytes(str(settings), (SHIPPED / "infra" / "dagster" / SETTINGS).read_bytes())
        except OSError as error:
            if error.errno in FULL:
                raise
            raise UsageError(
                f"expected a workspace that can be written, found {error}; give another --workspace"
            ) from None
        return home

    @property
    def has_records(self) -> bool:
        """Whether Dagster has worked in this workspace on this machine."""
        return (self.dagster_home / SETTINGS).exists()

    @contextlib.contextmanager
    def plain_dagster_home(self) -> Iterator[Path]:
        """A path of the Dagster home for other processes of Dagster's, which take it for a pattern: one without magic."""
        home = self.prepare_dagster_home()
        if not glob.has_magic(str(home)):
            yield home
            return
        with tempfile.TemporaryDirectory(prefix="flextok-") as folder:
            link = Path(folder) / "dagster"
            link.symlink_to(home)
            yield link

    @contextlib.contextmanager
    def instance(self) -> "Iterator[dg.DagsterInstance]":
        """Dagster's instance for work in this process."""
        # Commands that only need paths have no use for Dagster, whose import takes half a second.
        import dagster as dg
        from dagster._core.instance.ref import InstanceRef

        home = self.prepare_dagster_home()
        os.environ["DAGSTER_HOME"] = str(home)
        # A private class of Dagster's, the only one: `DagsterInstance.from_config` takes no overrides, and takes the path of
        # its settings for a pattern, which one with brackets does not fit itself.
        settings = yaml.safe_load((home / SETTINGS).read_text()) or {}
        ref = InstanceRef.from_dir(str(home), overrides={**settings, **NO_CAPTURE})
        with telling_record_faults(home), dg.DagsterInstance.from_ref(ref) as instance:
            yield instance

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one `run` or `refresh` at a time, on all hosts: two would write the same shards and train twice."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.root))
            except LockedError as error:
                raise FlextokError(
                    f"expected this command to be the only one at work in {self.root}, found another run or refresh; "
                    f"wait for it, or give another --workspace ({error})"
                ) from None
            yield


@contextlib.contextmanager
def only_daemon(home: Path) -> Iterator[None]:
    """Only one daemon at a time works on the records in a Dagster home: two would start everything twice."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(str(home)))
        except LockedError as error:
            raise FlextokError(
                f"expected no other `flextok ui` or daemon for {home}, found one; use that one, or end it ({error})"
            ) from None
        yield


def _is_file(path: str) -> bool:
    """Whether something other than a folder is there. Raises OSError where none could be, which `Path.exists` may hide."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_url(root: str) -> None:
    """Raises UsageError for a root whose files would lie elsewhere than it says, or in a store that is not known."""
    if not root.strip():
        raise UsageError("expected a folder or URL for the workspace, found nothing; give --workspace DIR|URL")
    try:
        root.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"expected a workspace whose name is UTF-8, found {os.fsencode(root)!r}; give another --workspace"
        ) from None
    if storage.is_local(root):
        return
    protocol, _, path = root.partition("://")
    if not path.strip("/"):
        raise UsageError(
            f"expected a bucket for the workspace, found only {root}; give --workspace {root}bucket/prefix"
        )
    if protocol in ("http", "https"):
        raise UsageError(f"expected a workspace that can be written, found {root}; give a folder or s3://bucket/prefix")
    if found := re.search(r"[\x00-\x1f\x7f]|\?versionId=|::", path):
        raise UsageError(
            f"expected a workspace URL without {found[0]!r}, which stores do not take for a part of a name, found "
            f"{root!r}; give another --workspace"
        )
    storage.filesystem(root)


def _check_dagster_can_use(home: Path) -> None:
    """Raises UsageError for a path that means another one in the URLs by which Dagster opens its SQLite files, or that is
    too long for SQLite."""
    if (length := len(os.fsencode(home))) > LONGEST_HOME_BYTES:
        raise UsageError(
            f"expected a path of at most {LONGEST_HOME_BYTES} bytes for Dagster's records (SQLite opens no longer ones), "
            f"found {length}: {str(home)[:40]}...; give another --workspace"
        )
    if found := re.search(r"%[0-9A-Fa-f]{2}|\?", str(home)):
        raise UsageError(
            f"expected a path without '{found[0]}' for Dagster's records (they are opened by a URL, where it means "
            f"something else), found {home}; give another --workspace"
        )
