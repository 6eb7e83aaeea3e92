"""Reference sets: crops of held-out images and their features, made once, and read by every evaluation against them.

<parent>/<digest>/
  crops/<shard>.npz             the pictures, uint8 [N, H, W, 3] as `arr_0`, in corpus order
  features/<shard>.safetensors  float64, as the metrics need them: sums of features, or the features themselves
  statistics.npz                mean and covariance of all under the names that ADM's evaluator reads (mu, sigma, mu_s, ...)
  manifest.json                 written last

The digest is that of what decides the numbers: corpus, chosen images, crop, extractor with its weights, and what is kept.
Each shard of the corpus becomes a part; whatever was killed, the same call resumes with the parts that are missing.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.images import preprocess
from flextok.data.npz import write_pictures
from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.evaluate.config import ReferenceConfig
from flextok.evaluate.gathered import Gathered
from flextok.evaluate.images import choose_keys, stream_images
from flextok.evaluate.measure import ImageSets
from flextok.evaluate.protocol import corpus_record, evaluation_device
from flextok.metrics.statistics import FeatureStatistics
from flextok.provenance import artifact_input, make_provenance, read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.progress import track
from flextok.runtime.spread import spread
from flextok.runtime.storage_errors import storage_errors

FORMAT = "flextok.reference/1"
KIND = "reference"
MANIFEST, STATISTICS = "manifest.json", "statistics.npz"


@dataclass(frozen=True)
class Reference:
    """A stored reference set; `manifest` says what decides it."""

    url: str
    digest: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, url: str) -> "Reference":
        """That in the folder `url`; raises UsageError where it holds something else."""
        block = read_provenance(url)
        if block["kind"] != KIND:
            raise UsageError(f"expected a reference set in {url}, found {block['kind']}; give a folder of {KIND}/")
        return cls(url, block["digest"], storage.read_json(storage.join(url, MANIFEST)))

    @property
    def images(self) -> dict[str, Any]:
        """Which images they are, as protocols have it."""
        return self.manifest["images"]

    def gathered(self, sets: ImageSets) -> Gathered:
        """All its features, in corpus order, as far as `sets` needs them."""
        merged = Gathered(sets.kept_of_reference)
        for part in self.manifest["parts"]:
            merged.merge(Gathered.read(_features_url(self.url, part["shard"]), sets.kept_of_reference))
        return merged

    def require(self, corpus_digest: str, size_px: int, sets: ImageSets) -> None:
        """Raises UsageError where it is of another corpus or crop, or its features are not those that `sets` compares."""
        asked = {"corpus": corpus_digest, "crop": preprocess(size_px)}
        found = {"corpus": self.images["digest"], "crop": self.manifest["preprocess"]}
        for what, wanted in asked.items():
            if found[what] != wanted:
                raise UsageError(
                    f"expected a reference of {what} {_short(wanted)}, found {_short(found[what])} in {self.url}; make it "
                    "again, or give another"
                )
        kept, records = self.manifest["kept"], self.manifest["features"]
        for source, needed in sets.kept_of_reference.items():
            if records.get(source) != sets.records()[source] or not needed <= set(kept[source]):
                described = ", ".join(f"{name} ({' and '.join(kept[name])})" for name in records) or "none"
                raise UsageError(
                    f"expected a reference with {' and '.join(sorted(needed))} by {source} (the same weights and input size), "
                    f"found {described} in {self.url}; make it again with these settings"
                )


@storage_errors("make a reference set of {corpus_url} in {parent_url}", keeps="finished shards are kept")
def make_reference(
    corpus_url: str, parent_url: str, config: ReferenceConfig, size_px: int, compute: ComputeConfig | None = None
) -> Reference:
    """The reference set of a corpus split in `parent_url/<digest>/`, as it is there or made now.

    Here or, where `compute` has the address of a cluster, by workers on its nodes.

    Of the images of the split those `config.distance_images` that evaluations choose, cropped to `size_px`.
    """
    config = config.part(ReferenceConfig)
    sets = ImageSets(config, evaluation_device())
    corpus = Corpus.open(corpus_url)
    index = corpus.index("key")
    keys = choose_keys(index["key"].to_list(), config.distance_images)
    if len(keys) < 2:
        raise UsageError(f"expected at least 2 images in {corpus_url} for a reference set, found {len(keys)}")
    sets.require(len(keys), corpus_url)
    decides = {
        "format": FORMAT,
        "images": corpus_record(corpus, keys, len(index)),
        "preprocess": preprocess(size_px),
        "features": {source: sets.records()[source] for source in sets.kept_of_reference},
        "kept": {source: sorted(kept) for source, kept in sets.kept_of_reference.items()},
    }
    digest = digest_of(decides)
    url = storage.join(parent_url, digest)
    if storage.exists(storage.join(url, MANIFEST)):
        if not verify_reference(url):
            return Reference.open(url)
        storage.remove(url)
    shards = _by_shard(corpus, keys)
    _make_parts(url, corpus, shards, config, size_px, compute)
    parts = [
        {"shard": shard, "images": len(names), "sha256": storage.sha256_file(_features_url(url, shard))}
        for shard, names in shards.items()
    ]
    provenance = make_provenance(KIND, digest, [artifact_input(corpus_url)], config.content(), url)
    made = Reference(url, digest, {**decides, "parts": parts, "provenance": provenance})
    _write_statistics(made, sets)
    storage.write_json(storage.join(url, MANIFEST), made.manifest)
    return made


def read_reference(
    reference_url: str, sets: ImageSets, corpus: Corpus, keys: Sequence[str], size_px: int
) -> Gathered | None:
    """The features of the images `keys` as the reference set has them; None where it is of other images of the corpus.

    Raises UsageError where it is of another corpus or crop, or has not the features that `sets` compares.
    """
    reference = Reference.open(reference_url)
    reference.require(corpus.digest, size_px, sets)
    return reference.gathered(sets) if reference.images["rows"] == digest_of(sorted(keys)) else None


def verify_reference(url: str) -> list[str]:
    """What is wrong with the files of a reference set: nothing when they have the recorded hashes."""
    problems = []
    for part in storage.read_json(storage.join(url, MANIFEST))["parts"]:
        place = _features_url(url, part["shard"])
        if not storage.exists(place):
            problems.append(f"{place} is not there")
        elif storage.sha256_file(place) != part["sha256"]:
            problems.append(f"{place} has other bytes than recorded")
    return problems


class ShardMaker:
    """What a worker holds to make the parts of shards of a corpus."""

    def __init__(self, url: str, corpus: Corpus, config: ReferenceConfig, size_px: int, device: str):
        self._url, self._corpus, self._config, self._size_px = url, corpus, config, size_px
        self._sets = ImageSets(config, device)

    def __call__(self, item: tuple[str, Sequence[str]]) -> int:
        """Write the part of a shard, of which `keys` belong to the set, and give back how many these are."""
        shard, keys = item
        gathered = Gathered(self._sets.kept_of_reference)

        def batches() -> Iterator[np.ndarray]:
            alone = dataclasses.replace(
                self._corpus, shards=[each for each in self._corpus.shards if each.name == shard]
            )
            for batch in stream_images(alone, keys, self._size_px, self._config.batch_size):
                gathered.add(len(batch), self._sets.features(batch.images_BHWC))
                yield batch.images_BHWC

        shape = (len(keys), self._size_px, self._size_px, 3)
        write_pictures(storage.join(self._url, "crops", f"{shard}.npz"), shape, batches())
        storage.write_bytes(_features_url(self._url, shard), gathered.to_bytes())
        return len(keys)


def _make_parts(
    url: str,
    corpus: Corpus,
    shards: dict[str, list[str]],
    config: ReferenceConfig,
    size_px: int,
    compute: ComputeConfig | None,
) -> None:
    missing = [item for item in shards.items() if not storage.exists(_features_url(url, item[0]))]
    arguments = (storage.absolute(url), corpus, config, size_px, evaluation_device(compute))
    with (
        track("reference", sum(len(keys) for _, keys in missing), "images") as task,
        spread("a worker of the reference set", ShardMaker, arguments, compute) as make,
    ):
        for images in make(missing):
            task.advance(images)


def _by_shard(corpus: Corpus, keys: Sequence[str]) -> dict[str, list[str]]:
    """Those of `keys` in each shard that has any, in corpus order."""
    chosen, found = frozenset(keys), dict[str, list[str]]()
    for key, shard in corpus.index("key").iter_rows():
        if key in chosen:
            found.setdefault(shard, []).append(key)
    return found


def _write_statistics(reference: Reference, sets: ImageSets) -> None:
    """Those that have names with ADM's evaluator, in one file that it and `flextok evaluate --reference` read."""
    gathered, arrays = reference.gathered(sets), dict[str, np.ndarray]()
    for metric in sets.metrics:
        if metric.given is not None and isinstance(found := sets.of(metric, gathered), FeatureStatistics):
            arrays |= dict(zip(metric.given, (found.mean(), found.covariance()), strict=True))
    if arrays:
        with storage.atomic_write(storage.join(reference.url, STATISTICS)) as file:
            np.savez(file, allow_pickle=False, **arrays)


def _features_url(url: str, shard: str) -> str:
    return storage.join(url, "features", f"{shard}.safetensors")


def _short(value: Any) -> str:
    return f"{value['size']} px" if isinstance(value, dict) else str(value)[:12]
