"""What a prior is: a model over the token ids of images, conditioned on a class, a caption or nothing.

Shapes: B images, L positions of C codebooks, N = L*C ids in position-major order, K positions kept, V vocabulary.
"""

import dataclasses
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flextok.config import parse_config
from flextok.errors import FlextokError, UsageError
from flextok.model.nn.dropout import Dropout
from flextok.model.priors.config import PriorConfig
from flextok.model.rng import SampleRng, Seed
from flextok.model.sampling.config import ConstantGuidance, DrawConfig, GuidanceScheduleConfig
from flextok.model.sampling.draw import NONE
from flextok.model.text import TextEncoder, TextFeatures, text_encoder


@dataclass(frozen=True)
class Sampling:
    """Which ids are drawn, and how."""

    keep: int
    """Positions to draw, K."""
    law: DrawConfig
    seed: Seed
    sample_ids: Sequence[int]
    """For each image, the stream of its seed that it draws from."""
    prefix: Tensor | None = None
    """Ids of the first positions, [B,K0] or [B,K0,C], where these are given and the others follow from them."""


class Prior(nn.Module):
    """p(ids | condition). Make one with `Prior.create` or `load_prior`; a kind gives `loss` and `sample`."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        self.digest = ""
        self._encoder: TextEncoder | None = None

    @classmethod
    def create(cls, config: PriorConfig, seed: int) -> "Prior":
        """The prior of `config`, with random weights that depend on `seed` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return config.build()

    def loss(
        self,
        ids: Tensor,
        labels_B: Tensor | None = None,
        context: TextFeatures | None = None,
        drop_B: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each id in nats, in the shape of `ids`; its mean is the loss a token.

        `ids`: int64 [B,L] or [B,L,C]. `labels_B`: int64 class indices. `context`: from `text_encoder.encode`.
        `drop_B`: bool, true where the condition is left out (the unconditional model of guidance).
        """
        raise NotImplementedError

    def sample(self, count: int, labels_B: Tensor | None, texts: Sequence[str] | None, sampling: Sampling) -> Tensor:
        """Ids of `count` images, int64 [B,K] or [B,K,C]; `labels_B` or `texts` is given where that is the condition.

        They begin with `sampling.prefix`, as if it had been drawn: what follows takes the draws of its own positions.
        Image i depends on `sampling.sample_ids[i]`, not on the batch; fewer positions are a prefix of more.
        """
        raise NotImplementedError

    def stages(
        self,
        count: int,
        labels_B: Tensor | None,
        texts: Sequence[str] | None,
        sampling: Sampling,
        stops: Sequence[int],
    ) -> Generator[Tensor, Tensor | None, None]:
        """Ids as `sample` gives them, at each of the growing `stops` positions in turn; `sampling.keep` is the last.

        After a stage the numbers [B'] of those images may be sent with which alone it goes on. By default each stage
        continues the one before.
        """
        kept_B, prefix = torch.arange(count), sampling.prefix
        for stop in stops:
            rows: list[int] = kept_B.tolist()
            own_labels_B = None if labels_B is None else labels_B[kept_B.to(labels_B.device)]
            own_texts = None if texts is None else [texts[row] for row in rows]
            seed = sampling.seed if isinstance(sampling.seed, int) else [sampling.seed[row] for row in rows]
            streams = [sampling.sample_ids[row] for row in rows]
            own = dataclasses.replace(sampling, keep=stop, seed=seed, sample_ids=streams, prefix=prefix)
            prefix = self.sample(len(rows), own_labels_B, own_texts, own)
            sent = yield prefix
            if sent is not None:
                kept_B, prefix = kept_B[sent.cpu()], prefix[sent]

    def training_step(
        self, ids: Tensor, labels_B: Tensor | None, context: TextFeatures | None, drop_B: Tensor | None, rng: SampleRng
    ) -> dict[str, Tensor]:
        """Losses of each image, [B], by name; by default `nll`, the mean loss of its ids. All draws come from `rng`."""
        return {"nll": self.loss(ids, labels_B, context, drop_B).flatten(1).mean(dim=1)}

    def add_z_loss(self) -> None:
        """Have `training_step` give `z` as well: squares of the logarithms of softmaxes' normalisers, in nats."""
        raise UsageError(
            f"expected prior.train.z_loss 0 for a prior of kind {self.config.model.kind}, which has none; leave it out"
        )

    def flops(self) -> float | None:
        """Operations of the matrix products of `loss` for an image; None if not known."""
        return None

    def set_dropout(self, probability: float) -> None:
        """Drop activations with `probability` in training, where the kind has `flextok.model.nn.dropout.Dropout`."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.p = probability

    def prepare(self, rows: int, dtype: torch.dtype = torch.float32) -> "Prior":
        """Freeze for drawing many ids: faster, for twice the memory of the weights. Gives the prior itself.

        `rows` are the images of a call, twice where guided; other calls work too. `dtype` is that of the matrix
        products, float32 or bfloat16. The layouts of the weights are chosen by timing, so that the last bits of logits,
        and with them an id now and then, may differ between two loads; what must be made again to the bit is drawn
        without. Does nothing more in kinds that have nothing to prepare.
        """
        self.requires_grad_(False)
        return self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        first = next(itertools.chain(self.parameters(), self.buffers()), None)
        return first.device if first is not None else torch.device("cpu")

    @property
    def text_encoder(self) -> TextEncoder:
        """The frozen encoder of captions, loaded when first needed; raises UsageError as `take_encoder` does."""
        if self._encoder is None:
            self.take_encoder(text_encoder(self.config.model.text_encoder, self.device))
        assert self._encoder is not None
        return self._encoder

    def take_encoder(self, encoder: TextEncoder) -> None:
        """Read captions by `encoder`.

        Raises UsageError where its width is not the config's, or it is not the one that the prior was trained with.
        """
        name, width, digest = (
            self.config.model.text_encoder,
            self.config.model.context_width,
            self.config.text_encoder_digest,
        )
        if encoder.width != width:
            raise UsageError(
                f"expected context_width {encoder.width}, the width of {name}, found {width}; set it in the prior's model"
            )
        if digest not in ("", encoder.digest):
            raise UsageError(
                f"expected the text encoder {name} that this prior was trained with, {digest[:12]}, found "
                f"{encoder.digest[:12]}; bring back its files"
            )
        self._encoder = encoder

    @torch.no_grad()
    def conditions(self, labels_B: Tensor, texts: Sequence[str | None]) -> tuple[Tensor | None, TextFeatures | None]:
        """Labels and text features as `loss` takes them, of rows with these labels and captions; None where not asked."""
        labels = labels_B.to(self.device) if self.config.condition == "class" else None
        if self.config.condition != "text":
            return labels, None
        return labels, self.text_encoder.encode([text or "" for text in texts]).to(self.device)

    @torch.no_grad()
    def generate(
        self,
        labels: Sequence[int] | Tensor | None = None,
        text: Sequence[str] | None = None,
        keep: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        seed: Seed = 0,
        sample_ids: Sequence[int] | None = None,
        num: int | None = None,
        min_p: float | None = None,
        last_temperature: float | None = None,
        guidance_schedule: GuidanceScheduleConfig = ConstantGuidance(),  # noqa: B008 - immutable
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Sampled ids, int64 [B,K] ([B,K,C] with several codebooks), for `keep` = K positions (default all).

        One image for each of `labels` or `text` (whichever the prior is conditioned on; `num` images when on nothing).
        `guidance` g mixes the logits as u + g*(c - u) with those u of the dropped condition, more or less of it along
        the way by `guidance_schedule`. `temperature` 0 takes the likeliest id; it goes evenly to `last_temperature`,
        where given. `top_k`, `top_p` and `min_p` cut the tail (see `DrawConfig`). Image i draws from a stream of its
        own, of `seed` (or its own `seed[i]`) and `sample_ids[i]` (default i), so neither the batch nor `keep` changes its ids. `prefix` are ids
        [B,K0] ([B,K0,C]) to continue: the result begins with them, and one continued from its own beginning is the same.
        Raises ValueError for what makes no sense, FlextokError for logits that are no numbers.
        """
        keep = self.config.num_tokens if keep is None else keep
        law = _law(
            temperature=temperature,
            last_temperature=last_temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
        )
        training = self.training
        self.eval()
        try:
            return next(self.generate_in_stages([keep], law, labels, text, num, seed, sample_ids, prefix))
        finally:
            self.train(training)

    @torch.no_grad()
    def generate_in_stages(
        self,
        stops: Sequence[int],
        law: DrawConfig,
        labels: Sequence[int] | Tensor | None = None,
        text: Sequence[str] | None = None,
        num: int | None = None,
        seed: Seed = 0,
        sample_ids: Sequence[int] | None = None,
        prefix: Tensor | None = None,
    ) -> Generator[Tensor, Tensor | None, None]:
        """What `generate` gives with `keep` at each of the growing `stops`, the later ids following from the earlier ones.

        After a stage the numbers of those images may be sent with which alone it goes on: `stages.send(kept_B)`.
        """
        count = self._count(labels, text, num)
        if not 1 <= stops[0] <= stops[-1] <= self.config.num_tokens:
            raise ValueError(f"keep must lie in 1..{self.config.num_tokens}, got {stops[-1]}")
        if sample_ids is not None and len(sample_ids) != count:
            raise ValueError(f"expected {count} sample_ids, got {len(sample_ids)}")
        streams = range(count) if sample_ids is None else sample_ids
        by_class, by_text = self.config.condition == "class", self.config.condition == "text"
        labels_B = torch.as_tensor(labels, dtype=torch.long, device=self.device) if by_class else None
        texts = list(text or ()) if by_text else None
        sampling = Sampling(stops[-1], law, seed, streams, self._checked(prefix, count, stops[-1]))
        stages = self.stages(count, labels_B, texts, sampling, stops)
        kept_B = None
        for _ in stops:
            ids = stages.send(kept_B)
            if bool((ids == NONE).any()):
                raise FlextokError(
                    "expected finite logits, found NaN or infinity; the prior is damaged, or the temperature too low"
                )
            kept_B = yield ids

    def _checked(self, prefix: Tensor | None, count: int, keep: int) -> Tensor | None:
        if prefix is None:
            return None
        codes = (self.config.codebooks,) if self.config.codebooks > 1 else ()
        if prefix.shape[:1] != (count,) or prefix.shape[2:] != codes or prefix.dim() < 2 or prefix.shape[1] > keep:
            shape = ", ".join(map(str, (count, f"0..{keep}", *codes)))
            raise ValueError(f"expected a prefix of shape [{shape}], found {list(prefix.shape)}")
        if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < self.config.vocab_size:
            found = f"{int(prefix.min())}..{int(prefix.max())}"
            raise ValueError(f"expected ids of the prefix in 0..{self.config.vocab_size - 1}, found {found}")
        return prefix.to(self.device, torch.long)

    def _count(self, labels: Sequence[int] | Tensor | None, text: Sequence[str] | None, num: int | None) -> int:
        given = {"class": labels, "text": text}.get(self.config.condition)
        if self.config.condition == "none":
            if num is None:
                raise ValueError("an unconditional prior needs num, the number of images")
            return num
        if given is None:
            wanted = "labels" if self.config.condition == "class" else "text"
            raise ValueError(f"this prior is conditioned on {self.config.condition}: give {wanted}")
        return len(given)


def _law(**values: Any) -> DrawConfig:
    try:
        return parse_config(DrawConfig, values, "generate")
    except UsageError as error:
        raise ValueError(str(error)) from None
