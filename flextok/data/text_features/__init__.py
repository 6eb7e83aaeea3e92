"""Stores of text features: the file of a shard, and the reader `TextFeatureStore`."""

from flextok.data.text_features.shard import FORMAT, StoredFeatures, TextMeta, read_feature_shard, write_feature_shard
from flextok.data.text_features.store import TextFeatureStore, verify_text_features, write_feature_manifest

__all__ = [
    "FORMAT",
    "StoredFeatures",
    "TextFeatureStore",
    "TextMeta",
    "read_feature_shard",
    "verify_text_features",
    "write_feature_manifest",
    "write_feature_shard",
]
