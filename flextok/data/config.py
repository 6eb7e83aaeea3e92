"""Configuration of a corpus: where pictures come from, which are kept, and how they are sharded."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from flextok.config import Added, Config, Operational
from flextok.data.scenes import ScenesConfig
from flextok.data.sources.registry import AUTO, SOURCES
from flextok.data.words import WordsConfig

SCENES, DRAWN_WORDS = "scenes", "drawn_words"


def _known_format(name: str) -> str:
    if name != AUTO and name not in SOURCES.names():
        raise ValueError(SOURCES.unknown(name))
    return name


FormatName = Annotated[str, AfterValidator(_known_format)]
"""A format of `flextok.data.sources.registry.SOURCES`, or "auto"."""


class SourceConfig(Config):
    """One of several sources of a corpus."""

    url: str = Field(
        description='Path or fsspec URL of a folder or file, or "scenes" or "drawn_words" for those that are built in.'
    )
    name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="Prefix of its samples' names; default: last part of the URL.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="How often its pictures are drawn in the training of autoencoder and tokenizer, relative to the others'.",
    )
    format: FormatName = Field(default="auto", description="How to read it; auto looks at the content.")


class ImageLimits(Config):
    """Which pictures are fit for training; anything else is rejected with a reason."""

    min_side: int = Field(default=16, ge=1, description="Shortest allowed side in pixels.")
    max_aspect: float = Field(default=16.0, ge=1, description="Largest allowed ratio of the long to the short side.")
    max_pixels: int = Field(
        default=64 * 2**20,
        ge=1,
        le=170_000_000,
        description="Largest allowed width x height, checked on the header before decoding.",
    )
    max_bytes: int = Field(
        default=64 * 2**20, ge=1, le=2**30, description="Largest allowed file; larger ones are not read."
    )


class InputsConfig(Config):
    """Which pictures. What they lead to is a listing, and shards are made of that: moved pictures give the same shards."""

    source: str = Field(
        default=SCENES,
        description='"scenes" or "drawn_words" (drawn, built in), or path or fsspec URL of a folder or file.',
    )
    sources: tuple[SourceConfig, ...] = Field(
        default=(), description="Several sources at once; takes the place of `source`."
    )
    scenes: ScenesConfig = Field(
        default_factory=lambda: ScenesConfig.model_validate({}), description="The built-in drawn corpus."
    )
    words: Added[WordsConfig] = Field(
        default_factory=lambda: WordsConfig.model_validate({}), description="The built-in corpus of drawn words."
    )


class ListingConfig(InputsConfig):
    """What a listing of the source depends on."""

    format: FormatName = Field(default="auto", description="How to read `source`; auto looks at the content.")
    label_csv: str | None = Field(
        default=None,
        description="CSV with the labels: a file beside the pictures, left out where there is none, or a path or URL.",
    )
    captions_file: str | None = Field(
        default=None, description="Captions file inside the source; default: found by name."
    )


class CorpusConfig(ImageLimits, ListingConfig):
    """A corpus and its shards. The same settings and the same source give the same digest.

    A folder of classes with its own labels: `source: /data/birds, format: imagenet`.
    Captioned pictures on S3: `source: s3://bucket/coco, format: captions`.
    """

    name: Operational[str] = Field(
        default="corpus", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the corpus and its folder."
    )
    label_key: str = Field(default="key", description="Its column with class folder, file name or sample key.")
    label_id: str | None = Field(
        default=None, description="Its column with class ids 0..n-1; default: rank of the class name."
    )
    label_name: str = Field(default="label", description="Its column with class names.")

    image_column: str | None = Field(
        default=None, description="Column of the file name (CSV) or the image (Parquet); default: found."
    )
    text_column: str | None = Field(
        default=None, description="Column of the caption(s) in CSV, JSON lines or Parquet; default: found."
    )
    label_column: str | None = Field(default=None, description="Column of the class in Parquet; default: found.")

    val_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of samples put in the val split, by a hash of their name, where the source has no splits.",
    )
    shard_samples: int = Field(default=1000, ge=1, description="Most samples in a shard.")
    shard_bytes: int = Field(
        default=512 * 2**20, ge=1, description="Most bytes of input in a shard (one input may exceed it)."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the shuffle that mixes the shards.")

    max_reject_fraction: Operational[float] = Field(
        default=0.05, ge=0, le=1, description="More rejects than this share of the inputs is a failure."
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="Pictures with equal bytes: count them, or drop all but one."
    )
    near_duplicates: bool = Field(
        default=False, description="Report pictures that look alike (near_duplicates.parquet); none is dropped."
    )
    resize_short_side: int | None = Field(
        default=None,
        ge=16,
        description="Re-encode larger pictures to this short side; default: keep the original bytes.",
    )

    @model_validator(mode="after")
    def _source_names_are_unique(self) -> "CorpusConfig":
        names = [source_name(source) for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources need different names, found {names}; set `name` for each")
        return self

    def limits(self) -> ImageLimits:
        """The limits on single pictures alone."""
        return self.part(ImageLimits)

    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The sources as a list, be it one or several."""
        return self.sources or (SourceConfig(url=self.source, format=self.format),)


def source_name(source: SourceConfig) -> str:
    """The name of one source among several: as given, or the last part of its URL made safe."""
    last = source.url.rstrip("/").rpartition("/")[2].partition(".")[0]
    return source.name or "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in last) or "source"
