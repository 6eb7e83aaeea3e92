"""The captions of token rows as stored features, of which a training reads those that it draws."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from flextok.data.text_features import TextFeatureStore
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.model.priors.config import PriorModelConfig
from flextok.model.text import TextFeatures, text_encoder

FILL = b"\xff"


class StoredCaptions:
    """Features of the captions of the rows of several token stores, one after another.

    Raises UsageError where a row has none, or the features are of several encoders.
    """

    def __init__(self, parts: Sequence[tuple[TokenStore, TextFeatureStore]]):
        self._stores = [features for _, features in parts]
        self.encoder, self.width = self._stores[0].encoder, self._stores[0].width
        for features in self._stores:
            if features.encoder != self.encoder:
                raise UsageError(
                    f"expected text features of one encoder, {self.encoder[:12]}, found {features.encoder[:12]} in "
                    f"{features.url}; run `flextok encode-text` with one encoder"
                )
        # For each token shard: where its rows end, whose features they have, and which image each row is of: None where
        # that is the number of the row, as it is where no picture was rejected and there are no views.
        self._ends = np.cumsum([shard.rows for tokens, _ in parts for shard in tokens.shards])
        self._shards: list[tuple[int, int]] = []
        self._images: list[np.ndarray | None] = []
        for part, (tokens, features) in enumerate(parts):
            for shard, keys in zip(tokens.shards, tokens.scan("key"), strict=True):
                found = features.shard_number(shard.name)
                images = None if found is None else _images_of(keys, features.shards[found].keys())
                if found is None or images is None:
                    raise UsageError(
                        f"expected features of the captions of {shard.url} in {features.url}, found none for some images; "
                        "run `flextok encode-text` on the corpus of these tokens"
                    )
                self._shards.append((part, found))
                is_row = np.array_equal(images, np.arange(shard.rows))
                self._images.append(None if is_row else images)

    def features(self, rows: Sequence[int], draws_B: Tensor | None) -> TextFeatures:
        """Of each row one caption: that which its draw in [0, 1) falls on, or without draws its first."""
        found: list[np.ndarray] = []
        for place, row in enumerate(rows):
            shard = int(np.searchsorted(self._ends, row, side="right"))
            part, number = self._shards[shard]
            image = row - (int(self._ends[shard - 1]) if shard else 0)
            if (images := self._images[shard]) is not None:
                image = int(images[image])
            store = self._stores[part]
            caption = 0 if draws_B is None else int(draws_B[place] * store.captions(number, image))
            found.append(store.features(number, image, caption))
        return _padded(found, self.width)


def _images_of(rows: pa.ChunkedArray, keys: list[str]) -> np.ndarray | None:
    """For rows with these keys, the number of the image of each among `keys`; None where one is not among them."""
    found = pc.index_in(rows, value_set=pa.array(keys, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
    return None if found.null_count else found.to_numpy().astype(np.min_scalar_type(len(keys)))


def packed(texts: Sequence[str | None]) -> Tensor:
    """Texts as uint8 [B, n], UTF-8 filled up with a byte that it has not; one that is missing is empty."""
    encoded = [(text or "").encode() for text in texts]
    length = max(map(len, encoded), default=0)
    content = b"".join(text.ljust(length, FILL) for text in encoded)
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8).view(len(encoded), length)
        if length
        else torch.empty(len(texts), 0, dtype=torch.uint8)
    )


def unpacked(texts: Tensor) -> list[str]:
    """What `packed` was given, on whatever device."""
    return [bytes(row).rstrip(FILL).decode() for row in texts.cpu().numpy()]


def _padded(captions: Sequence[np.ndarray], width: int) -> TextFeatures:
    values = np.zeros((len(captions), max(map(len, captions), default=0), width), np.float32)
    mask = np.zeros(values.shape[:2], bool)
    for row, caption in enumerate(captions):
        values[row, : len(caption)] = caption
        mask[row, : len(caption)] = True
    return TextFeatures(torch.from_numpy(values), torch.from_numpy(mask))


def require_encoder(captions: StoredCaptions, stored_name: str, model: PriorModelConfig) -> None:
    """Raises UsageError where the features are not those that the prior `model` reads; `stored_name` is their encoder's."""
    if captions.width != model.context_width:
        raise UsageError(
            f"expected text features {model.context_width} wide, as the prior's context_width says, found {captions.width}; "
            f"set context_width to {captions.width}"
        )
    if stored_name == model.text_encoder:
        return
    # One encoder may have several names: a folder and a Hub id.
    digest = text_encoder(model.text_encoder, torch.device("cpu")).digest
    if digest != captions.encoder:
        raise UsageError(
            f"expected text features of {model.text_encoder}, {digest[:12]}, found those of {stored_name}, "
            f"{captions.encoder[:12]}; run `flextok encode-text --encoder {model.text_encoder}`"
        )
