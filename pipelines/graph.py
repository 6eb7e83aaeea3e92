"""The graph of assets: what each reads, partition by partition, out of their public specs."""

from collections.abc import Iterable

import dagster as dg

AssetPart = tuple[dg.AssetKey, str | None]


def label(key: dg.AssetKey, partition: str | None) -> str:
    """How a person calls an asset or one of its partitions: `tokenizer`, `image_shards[scenes/val]`."""
    return key.path[-1] + (f"[{partition}]" if partition else "")


class Graph:
    """Assets by their keys, and what depends on what."""

    def __init__(self, specs: Iterable[dg.AssetSpec]):
        self._specs = {spec.key: spec for spec in specs}
        self.keys = self._in_order()
        """All assets, in an order in which they can be built."""

    def code_version(self, key: dg.AssetKey) -> str:
        """The version that the code of an asset has now; empty where it tells none."""
        return self._specs[key].code_version or ""

    def partitions(self, key: dg.AssetKey) -> list[str | None]:
        """The partition keys of an asset, [None] when it has none."""
        definition = self._specs[key].partitions_def
        return list(definition.get_partition_keys()) if definition else [None]

    def parents(self, key: dg.AssetKey) -> list[dg.AssetKey]:
        """The assets that an asset reads, sorted."""
        return sorted(dep.asset_key for dep in self._specs[key].deps)

    def ancestors(self, key: dg.AssetKey) -> set[dg.AssetKey]:
        """All that an asset depends on, at any distance."""
        parents = self.parents(key)
        return set(parents).union(*(self.ancestors(parent) for parent in parents))

    def reads(self, key: dg.AssetKey, partition: str | None) -> dict[dg.AssetKey, list[AssetPart]]:
        """What an asset (its `partition`) reads of each of its parents, sorted."""
        found: dict[dg.AssetKey, list[AssetPart]] = {}
        for dep in sorted(self._specs[key].deps, key=lambda dep: dep.asset_key):
            parent, mapping = dep.asset_key, dep.partition_mapping
            parts = self.partitions(parent)
            if isinstance(mapping, dg.SpecificPartitionsPartitionMapping):
                parts = sorted(mapping.partition_keys)
            elif partition in parts:
                parts = [partition]
            found[parent] = [(parent, part) for part in parts]
        return found

    def _in_order(self) -> list[dg.AssetKey]:
        """Level by level, sorted within each."""
        levels: list[list[dg.AssetKey]] = []
        placed: set[dg.AssetKey] = set()
        while len(placed) < len(self._specs):
            level = sorted(key for key in self._specs.keys() - placed if placed.issuperset(self.parents(key)))
            levels.append(level)
            placed.update(level)
        return [key for level in levels for key in level]
