"""Partitions: the splits of corpora, as "<corpus>/<split>"."""

SPLITS = ("train", "val")


def partition_key(corpus: str, split: str) -> str:
    """The partition of one split."""
    return f"{corpus}/{split}"


def corpus_of(partition: str) -> str:
    """The corpus a partition key names."""
    return partition.rpartition("/")[0]


def split_of(partition: str) -> str:
    """The split a partition key names."""
    return partition.rpartition("/")[2]
