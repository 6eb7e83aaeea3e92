"""Resources of the assets: where artifacts lie. Ray is reached by the jobs that need it (flextok.runtime.cluster)."""

import dagster as dg
from pydantic import Field

from flextok.errors import FlextokError
from pipelines import staleness
from pipelines.graph import label
from pipelines.workspace import Workspace


class Store(dg.ConfigurableResource):
    """The workspace, and in it the latest artifact of each asset."""

    root: str = Field(description="Folder or fsspec URL of the workspace.")

    @property
    def workspace(self) -> Workspace:
        """Its paths."""
        return Workspace(self.root)

    def latest(self, instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None = None) -> str:
        """URL of the latest artifact of an asset; raises FlextokError when there is none."""
        metadata = staleness.metadata_of(staleness.latest_record(instance, key, partition))
        if "path" not in metadata:
            name = label(key, partition)
            raise FlextokError(f"expected {name} in {self.root}, found it was never made; run `flextok refresh`")
        return self.workspace.resolve(metadata["path"])
