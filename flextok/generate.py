"""Images drawn from a prior: a few as PNG files, for a person who wants to see some; or many, as a store of samples."""

import torch

from flextok import storage
from flextok.data.images import ImageError, center_crop, decode, to_model, to_png, to_uint8
from flextok.errors import UsageError
from flextok.evaluate.config import SamplingConfig, SetComparisonConfig
from flextok.evaluate.samples.condition import Condition
from flextok.evaluate.samples.job import plan_samples
from flextok.evaluate.sampling import SamplesResult, sample_into
from flextok.model.load import load_prior, load_tokenizer
from flextok.model.priors.config import PriorConfig
from flextok.model.sampling.config import DrawConfig
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors


@storage_errors("draw images from {prior_url} into {dest}")
def generate_images(
    prior_url: str,
    tokenizer_url: str,
    dest: str,
    label: int | None = None,
    text: str | None = None,
    keep: int | None = None,
    num: int = 8,
    seed: int = 0,
    law: DrawConfig = DrawConfig(),  # noqa: B008 - immutable
    picture: str | None = None,
    keep_from: int | None = None,
) -> list[str]:
    """Draw `num` images and write them to the folder `dest`; gives their URLs.

    A prior over classes draws class `label`, or all in turn; one that reads captions draws `text`. `keep` tokens of each
    image are drawn, all by default; the first `keep_from` are those of the file `picture`, where one is given. Raises
    UsageError for a condition that this prior does not know, or a picture that cannot be read.
    """
    prior, tokenizer = load_prior(prior_url), load_tokenizer(tokenizer_url)
    _check(prior.config, label, text, keep, picture, keep_from)
    by_class, by_text = prior.config.condition == "class", prior.config.condition == "text"
    labels = (
        [index % prior.config.num_classes if label is None else label for index in range(num)] if by_class else None
    )
    prefix = None if picture is None else _tokens_of(picture, tokenizer)[:, :keep_from].repeat_interleave(num, dim=0)
    ids = prior.generate(
        labels=labels,
        text=[text or ""] * num if by_text else None,
        keep=keep,
        seed=seed,
        num=None if by_class or by_text else num,
        prefix=prefix,
        **dict(law),
    )
    images = to_uint8(tokenizer.detokenize(ids, seed=seed))
    urls = []
    for index, image in enumerate(images):
        stem = f"{index:04d}" + (f"_class{labels[index]:04d}" if labels is not None else "")
        urls.append(storage.join(dest, f"{stem}.png"))
        storage.write_bytes(urls[-1], to_png(image))
    return urls


def generate_samples(
    prior_url: str,
    tokenizer_url: str,
    dest: str,
    config: SamplingConfig,
    label: int | None = None,
    text: str | None = None,
    keep: int | None = None,
    compute: ComputeConfig | None = None,
    sets: SetComparisonConfig | None = None,
) -> SamplesResult:
    """Draw `config.samples.num` images as a store of samples in the folder `dest`, of any number in bounded memory.

    Conditions and `keep` are those of `generate_images`, and so are the ids: image i depends on the seed and i. The work is
    a sharded job like a tokenization, by actors as `compute` says; one that ended early is resumed by the same call. Of the
    first `config.samples.pictures` there are pictures, and of all features for the metrics of `sets`, if any are given.
    """

    def steer(prior: PriorConfig) -> Condition:
        _check(prior, label, text, keep, None, None)
        if label is not None:
            return Condition(f"class {label}", [label], [None])
        return Condition.of(prior, None, None if text is None else [text])

    return sample_into(plan_samples(prior_url, tokenizer_url, config, steer, compute, sets, keep), dest)


def _tokens_of(picture: str, tokenizer: Tokenizer) -> torch.Tensor:
    """Ids of one picture, [1,L] or [1,L,C]."""
    if not storage.exists(picture):
        raise UsageError(f"expected a picture, found nothing at {picture}; check the path")
    try:
        pixels = center_crop(decode(storage.read_bytes(picture)).rgb, tokenizer.config.image_size)
    except ImageError as error:
        raise UsageError(f"expected a picture that decodes, found {picture}: {error}") from None
    return tokenizer.tokenize(to_model(pixels[None]))


def _check(
    config: PriorConfig,
    label: int | None,
    text: str | None,
    keep: int | None,
    picture: str | None,
    keep_from: int | None,
) -> None:
    for name, value in (("class", label), ("text", text)):
        if value is not None and name != config.condition:
            raise UsageError(f"expected a {config.condition} for this prior, found a {name}; it was not trained on any")
    if config.condition == "text" and text is None:
        raise UsageError("expected --text for a prior that reads captions, found none")
    if label is not None and not 0 <= label < config.num_classes:
        raise UsageError(f"expected --label within 0..{config.num_classes - 1}, found {label}")
    if keep is not None and not 1 <= keep <= config.num_tokens:
        raise UsageError(f"expected --keep within 1..{config.num_tokens}, found {keep}")
    if (picture is None) != (keep_from is None):
        raise UsageError("expected --from and --keep-from together: a picture, and how many of its tokens stay")
    most = (keep or config.num_tokens) - 1
    if keep_from is not None and not 1 <= keep_from <= most:
        raise UsageError(f"expected --keep-from within 1..{most}, fewer than are kept in all, found {keep_from}")
