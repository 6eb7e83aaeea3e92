"""Where what belongs to samples lies in their folder, beside their shards of tokens."""

from flextok import storage

DECODED = "decoded"
IMAGES, FEATURES = "images", "features"
FILE_THREADS = 8
"""Pictures that are read or written at once."""


def image_folder(url: str, keep: int) -> str:
    """Where the pictures at `keep` tokens are."""
    return storage.join(url, IMAGES, f"k{keep:03d}")


def image_url(url: str, keep: int, key: str) -> str:
    """Where the picture of sample `key` at `keep` tokens is."""
    return storage.join(image_folder(url, keep), f"{key}.png")


def features_folder(url: str, keep: int) -> str:
    """Where the features of pictures at `keep` tokens are, if they were gathered."""
    return storage.join(url, FEATURES, f"k{keep:03d}")


def features_url(url: str, keep: int, shard: str) -> str:
    """Where those of the pictures of a shard's samples are."""
    return storage.join(features_folder(url, keep), f"{shard}.safetensors")


def decoded_url(url: str, shard: str) -> str:
    """The file that says what was made of a shard of samples."""
    return storage.join(url, DECODED, f"{shard}.json")
