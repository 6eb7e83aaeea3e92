"""Whether what was made of samples is still there."""

from flextok import storage
from flextok.data.tokens import verify_tokens
from flextok.evaluate.samples.decoding import Decoded
from flextok.evaluate.samples.drawing import sample_key
from flextok.evaluate.samples.layout import DECODED, image_folder


def verify_samples(url: str) -> list[str]:
    """What is wrong with the samples in the folder `url`, one line each: what `verify_tokens` finds, features with another
    hash, and pictures that are missing or have another size than was recorded."""
    problems = verify_tokens(url)
    if problems:
        return problems
    sizes: dict[str, dict[str, int]] = {}
    first = 0
    rows = {entry["shard"]: entry["rows"] for entry in storage.read_json(storage.join(url, "manifest.json"))["shards"]}
    made = storage.list_names(storage.join(url, DECODED))  # samples of earlier versions have none
    for shard, count in rows.items():
        if f"{shard}.json" in made:
            decoded = Decoded(**storage.read_json(storage.join(url, DECODED, f"{shard}.json")))
            for keep in decoded.lost_features(url, shard):
                problems.append(f"features of shard {shard} at K={keep}: missing, or not as they were written")
            for keep, bytes_of in decoded.pictures.items():
                found = sizes.setdefault(keep, storage.sizes(image_folder(url, int(keep))))
                keys = [sample_key(first + place) for place in range(len(bytes_of))]
                if lost := decoded.lost_pictures(keep, keys, found):
                    problems.append(
                        f"pictures of shard {shard} at K={keep}: {len(lost)} missing or of another size, the first {lost[0]}"
                    )
        first += count
    return problems
