"""Held-out images as a tokenizer in training decodes them: pictures to look at, and their distance from the originals."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_uint8
from flextok.errors import UsageError
from flextok.metrics.frechet import distance_name, frechet_of_rows
from flextok.model.decoders.config import SamplerConfig
from flextok.model.efficientnet_lite0 import efficientnet_lite0, network_input
from flextok.model.tokenizer import Tokenizer
from flextok.train.config import PicturesConfig, ValidateFdConfig
from flextok.train.data import CorpusImages, computed_once, model_images
from flextok.train.parallel import DistContext
from flextok.train.sharding import is_sharded

AT_ONCE = 64
EXTRACTOR = "efficientnet_lite0"


class HeldOutImages:
    """The first `count` images of a corpus at the tokenizer's size, and what it makes of their first tokens."""

    def __init__(self, tokenizer: Tokenizer, corpus_url: str, count: int, sampler: SamplerConfig):
        source = CorpusImages(Corpus.open(corpus_url), tokenizer.config.image_size, cache_bytes=0)
        self.originals_B3HW = source.fetch(np.arange(min(count, len(source))))["images"]
        self._tokenizer, self._arguments = tokenizer, sampler.arguments()

    def __len__(self) -> int:
        return len(self.originals_B3HW)

    @torch.no_grad()
    def decoded(self, keep: int, rows: Sequence[int]) -> Tensor:
        """uint8 [B,3,H,W] on the CPU of images `rows` from their first `keep` tokens, each with the same noise each time."""
        tokenizer = self._tokenizer.eval()
        parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
        return torch.cat([self._decoded(tokenizer, keep, part) for part in parts])

    def _decoded(self, tokenizer: Tokenizer, keep: int, rows: Sequence[int]) -> Tensor:
        images = model_images(self.originals_B3HW[list(rows)].to(tokenizer.device))
        made = tokenizer.autoencode(images, keep=keep, sample_ids=list(rows), **self._arguments)
        return torch.from_numpy(to_uint8(made)).permute(0, 3, 1, 2)


class HeldOutPictures:
    """The originals in the first row, below them what they decode to from each number of tokens."""

    def __init__(self, tokenizer: Tokenizer, corpus_url: str, config: PicturesConfig):
        self.every = config.every
        self._keeps = config.keeps(tokenizer.num_tokens)
        self._held_out = HeldOutImages(tokenizer, corpus_url, config.images, config)

    def drawn(self) -> np.ndarray:
        """See `Pictures.drawn`."""
        held_out = self._held_out
        rows = [held_out.originals_B3HW, *(held_out.decoded(keep, range(len(held_out))) for keep in self._keeps)]
        return torch.cat([torch.cat(list(images), dim=2) for images in rows], dim=1).permute(1, 2, 0).numpy()


class HeldOutDistance:
    """`fd_efficientnet_lite0` of what held-out images decode to, against the same images."""

    def __init__(self, tokenizer: Tokenizer, corpus_url: str, config: ValidateFdConfig, world: DistContext):
        self._keeps, self._world, self._tokenizer = config.keeps(tokenizer.num_tokens), world, tokenizer
        self._held_out = HeldOutImages(tokenizer, corpus_url, config.images, config)
        if len(self._held_out) < 2:
            raise UsageError(
                f"expected two held-out images or more for tokenizer.train.validate_fd, found {len(self._held_out)}"
            )
        self._input_px = config.input_px
        self._network = efficientnet_lite0(config.input_px).eval().requires_grad_(False).to(world.device)
        self._reference = self._features(self._held_out.originals_B3HW)

    def numbers(self) -> dict[str, float]:
        """`val/fd_<extractor>/<tokens>` by the weights that the model has now; all members call it."""
        name = distance_name(EXTRACTOR)
        return {
            f"val/{name}/{keep}": frechet_of_rows(self._reference, self._features(self._decoded(keep)))
            for keep in self._keeps
        }

    def _decoded(self, keep: int) -> Tensor:
        held_out = self._held_out
        if is_sharded(self._tokenizer.encoder.registers):  # then all members take part in each
            return held_out.decoded(keep, range(len(held_out)))
        empty = torch.zeros_like(held_out.originals_B3HW, dtype=torch.float32)
        return computed_once(empty, lambda rows: held_out.decoded(keep, rows.tolist()), self._world).byte()

    @torch.no_grad()
    def _features(self, images_B3HW: Tensor) -> np.ndarray:
        """float64 [N,1280] as the evaluation's extractor has them."""
        parts = images_B3HW.to(self._world.device).split(AT_ONCE)
        maps = (self._network.extract_features(network_input(part, self._input_px)) for part in parts)
        return torch.cat([each.mean(dim=(2, 3)).double().cpu() for each in maps]).numpy()
