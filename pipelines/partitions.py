"""Partitions: the two splits of the profile's corpus, as "<corpus>/train" and "<corpus>/val"."""

import dagster as dg

SPLITS = ("train", "val")


def partition_key(corpus: str, split: str) -> str:
    """The partition of one split."""
    return f"{corpus}/{split}"


def split_of(partition: str) -> str:
    """The split a partition key names."""
    return partition.rpartition("/")[2]


def corpus_partitions(corpus: str) -> dg.StaticPartitionsDefinition:
    """Both splits of `corpus`. Shards are a manifest inside one partition: staleness ignores a fan-in of 100."""
    return dg.StaticPartitionsDefinition([partition_key(corpus, split) for split in SPLITS])


def only(corpus: str, *splits: str) -> dg.SpecificPartitionsPartitionMapping:
    """A dependency on the named splits only, so that editing the others makes nothing downstream stale."""
    return dg.SpecificPartitionsPartitionMapping([partition_key(corpus, split) for split in splits])
