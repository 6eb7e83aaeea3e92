"""The autoregressive prior: what it may look at, how it samples, what a condition does."""

import math

import pytest
import torch

from flextok.errors import IntegrityError, UsageError
from flextok.model.checkpoint import save_checkpoint
from flextok.model.load import load_prior
from flextok.model.priors.base import Prior
from flextok.model.priors.config import LlamaConfig, PriorConfig
from flextok.model.sampling.config import DrawConfig
from flextok.model.sampling.draw import sample_id
from flextok.model.text import TextFeatures, text_encoder

TRUNK, IDS = {"width": 32, "depth": 2, "head_dim": 16}, {"num_tokens": 6, "vocab_size": 11}
TINY = {**TRUNK, **IDS}
CONFIGS = {
    "class": PriorConfig(**TINY, condition="class", num_classes=3),
    "text": PriorConfig(**TINY, condition="text"),
    "none": PriorConfig(**TINY, condition="none", codebooks=2),
    "llama": PriorConfig(model=LlamaConfig(**TRUNK), **IDS, num_classes=3),
    "llama of nothing": PriorConfig(model=LlamaConfig(**TRUNK, condition="none"), **IDS, codebooks=2),
}
CONDITION = {
    "class": {"labels": [0, 2, 1]},
    "text": {"text": ["a red disk", "", "two blue rings on gray"]},
    "none": {"num": 3},
}
CONDITION |= {"llama": CONDITION["class"], "llama of nothing": CONDITION["none"]}


def make_prior(kind: str) -> Prior:
    """A prior with weights large enough that every input matters."""
    prior = Prior.create(CONFIGS[kind], seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return prior


def losses(prior: Prior, kind: str, ids: torch.Tensor, drop: list[bool] | None = None) -> torch.Tensor:
    labels = torch.tensor(CONDITION[kind]["labels"]) if "labels" in CONDITION[kind] else None
    context = prior.text_encoder.encode(CONDITION[kind]["text"]) if kind == "text" else None
    with torch.no_grad():
        return prior.loss(ids, labels, context, torch.tensor(drop) if drop else None)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_new_prior_knows_nothing(kind: str) -> None:
    prior = Prior.create(CONFIGS[kind], seed=0)
    ids = prior.generate(**CONDITION[kind])
    assert losses(prior, kind, ids).mean().item() == pytest.approx(math.log(TINY["vocab_size"]), abs=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_id_depends_on_earlier_ids_only(kind: str) -> None:
    prior = make_prior(kind)
    ids = prior.generate(**CONDITION[kind])
    changed = ids.clone()
    changed.view(3, -1)[:, 3] = (changed.view(3, -1)[:, 3] + 1) % TINY["vocab_size"]
    difference = (losses(prior, kind, ids) - losses(prior, kind, changed)).abs().view(3, -1)
    assert difference[:, :3].max() == 0
    assert difference[:, 3:].min(dim=0).values.max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "guidance"), [("class", 1.0), ("class", 2.5), ("text", 1.0), ("text", 2.5), ("none", 1.0), ("llama", 2.5)]
)
def test_cached_generation_agrees_with_uncached_logits(kind: str, guidance: float) -> None:
    prior = make_prior(kind)
    ids = prior.generate(**CONDITION[kind], temperature=0, guidance=guidance)
    flat = ids.flatten(1)
    for position in range(flat.shape[1]):
        # The log-probabilities of every id at a position, one call of `loss` for each id and no cache.
        candidates = []
        for candidate in range(TINY["vocab_size"]):
            tried = flat.clone()
            tried[:, position] = candidate
            conditional = losses(prior, kind, tried.view(ids.shape)).flatten(1)[:, position]
            unconditional = losses(prior, kind, tried.view(ids.shape), [True] * 3).flatten(1)[:, position]
            candidates.append(unconditional + guidance * (conditional - unconditional))
        assert torch.equal(torch.stack(candidates, dim=1).argmin(1), flat[:, position])


@pytest.mark.parametrize("kind", ["class", "text", "llama"])
def test_a_dropped_condition_leaves_no_trace(kind: str) -> None:
    prior = make_prior(kind)
    ids = torch.zeros(3, TINY["num_tokens"], dtype=torch.long)
    dropped, kept = losses(prior, kind, ids, [True] * 3), losses(prior, kind, ids)
    assert torch.allclose(dropped[0], dropped[1], atol=1e-6) and torch.allclose(dropped[0], dropped[2], atol=1e-6)
    assert (kept[0] - kept[2]).abs().max() > 1e-3


def test_an_empty_caption_is_no_condition() -> None:
    prior = make_prior("text")
    ids = torch.zeros(3, TINY["num_tokens"], dtype=torch.long)
    assert torch.allclose(losses(prior, "text", ids)[1], losses(prior, "text", ids, [True] * 3)[1], atol=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_fewer_tokens_are_a_prefix_of_more(kind: str) -> None:
    prior = make_prior(kind)
    whole = prior.generate(**CONDITION[kind], seed=5)
    assert torch.equal(prior.generate(**CONDITION[kind], seed=5, keep=2), whole[:, :2])
    assert not torch.equal(prior.generate(**CONDITION[kind], seed=6), whole)


def test_an_image_does_not_depend_on_its_batch() -> None:
    prior = make_prior("class")
    whole = prior.generate(labels=[0, 2, 1], seed=5)
    alone = prior.generate(labels=[2], seed=5, sample_ids=[1])
    assert torch.equal(alone[0], whole[1])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("given", [0, 1, 4, 6])
def test_continued_from_its_own_beginning_it_is_the_same(kind: str, given: int) -> None:
    """One pass over all given positions, then step K0 takes the draw of K0: as if they had been drawn."""
    prior = make_prior(kind)
    law = {"seed": 5, "guidance": 1.0 if CONFIGS[kind].condition == "none" else 3.0, "last_temperature": 0.5}
    whole = prior.generate(**CONDITION[kind], **law)
    assert torch.equal(prior.generate(**CONDITION[kind], **law, prefix=whole[:, :given]), whole)
    shorter = prior.generate(**CONDITION[kind], **law, prefix=whole[:, : min(given, 5)], keep=5)
    assert torch.equal(shorter, whole[:, :5])


def test_a_prior_in_bfloat16_draws() -> None:
    prior = make_prior("class").to(torch.bfloat16)
    whole = prior.generate(labels=[0, 2, 1], guidance=2.0)
    assert whole.max() < 11 and whole.unique().numel() > 1
    assert torch.equal(prior.generate(labels=[0, 2, 1], guidance=2.0, prefix=whole[:, :3])[:, :3], whole[:, :3])


def test_what_follows_depends_on_the_beginning() -> None:
    prior = make_prior("class")
    prefix = torch.tensor([[7, 7], [1, 2], [7, 7]])
    continued = prior.generate(labels=[0, 2, 1], seed=5, prefix=prefix)
    assert torch.equal(continued[:, :2], prefix)
    assert not torch.equal(continued, prior.generate(labels=[0, 2, 1], seed=5))


def test_guidance_of_one_is_no_guidance_and_more_changes_ids() -> None:
    prior = make_prior("class")
    assert not torch.equal(prior.generate([0, 1, 2], guidance=6.0), prior.generate([0, 1, 2]))


def test_sampling_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.05, 0.0, 0.6, 0.35])
    uniform = (torch.arange(1000) + 0.5) / 1000
    logits = probabilities.log().expand(1000, -1)
    counts = torch.bincount(sample_id(logits, uniform), minlength=4)
    assert counts.tolist() == [50, 0, 600, 350]
    assert torch.bincount(sample_id(logits, uniform, DrawConfig(top_k=1)), minlength=4).tolist() == [0, 0, 1000, 0]
    nucleus = torch.bincount(sample_id(logits, uniform, DrawConfig(top_p=0.7)), minlength=4) / 1000
    assert nucleus == pytest.approx([0, 0, 0.6 / 0.95, 0.35 / 0.95], abs=2e-3)
    cold = torch.bincount(sample_id(logits, uniform, DrawConfig(temperature=0.5)), minlength=4) / 1000
    assert cold == pytest.approx((probabilities**2 / (probabilities**2).sum()).tolist(), abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"temperature": -1.0}, "'temperature'.* -1"),
        ({"last_temperature": -1.0}, "'last_temperature'.* -1"),
        ({"top_k": 0}, "'top_k'.* 0"),
        ({"top_p": 0.0}, "'top_p'.* 0"),
        ({"min_p": 1.5}, "'min_p'.* 1.5"),
        ({"guidance_schedule": {"kind": "cosin"}}, "nearest is 'cosine'"),
        ({"guidance_schedule": {"kind": "interval", "start": 0.6, "stop": 0.5}}, "start at most stop"),
        ({"prefix": torch.zeros(2, 3, dtype=torch.long)}, r"shape \[3, 0..6\], found \[2, 3\]"),
        ({"prefix": torch.zeros(3, 4, dtype=torch.long), "keep": 3}, r"shape \[3, 0..3\], found \[3, 4\]"),
        ({"prefix": torch.full((3, 2), 11)}, "0..10, found 11..11"),
        ({"keep": 0}, "keep must lie"),
        ({"keep": 7}, "keep must lie"),
        ({"labels": [3, 0, 0]}, "labels must lie"),
    ],
)
def test_senseless_arguments_are_refused(arguments: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_prior("class").generate(**{"labels": [0, 1, 2], **arguments})


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_prior_generates_the_same(kind: str, tmp_path) -> None:
    prior = make_prior(kind)
    saved = save_checkpoint(str(tmp_path), "prior", prior.state_dict(), prior.config, [], {})
    loaded = load_prior(saved.url)
    assert loaded.digest == saved.digest and loaded.config == prior.config
    assert torch.equal(loaded.generate(**CONDITION[kind]), prior.generate(**CONDITION[kind]))


def test_a_checkpoint_of_another_kind_is_refused(tmp_path) -> None:
    prior = make_prior("class")
    saved = save_checkpoint(str(tmp_path), "vae", prior.state_dict(), prior.config, [], {})
    with pytest.raises(UsageError, match="prior"):
        load_prior(saved.url)


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path) -> None:
    prior = make_prior("class")
    state = prior.state_dict()
    del state["start"]
    saved = save_checkpoint(str(tmp_path), "prior", state, prior.config, [], {})
    with pytest.raises(IntegrityError, match="start"):
        load_prior(saved.url)


@pytest.mark.parametrize(
    ("values", "complaint"), [({"condition": "text"}, "class or none"), ({"head_dim": 1}, "even head_dim")]
)
def test_a_llama_reads_no_captions(values: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LlamaConfig(**{**TRUNK, **values})


def test_hashed_words_tell_captions_apart() -> None:
    encoder = text_encoder("hashed-words", torch.device("cpu"))
    features = encoder.encode(["A red disk.", "a red disk", "disk red a", ""])
    assert features.mask.sum(1).tolist() == [3, 3, 3, 0]
    assert torch.equal(features.values[0], features.values[1])
    assert not torch.allclose(features.values[0], features.values[2])


@pytest.mark.parametrize("name", ["wordz", "t5:no/such-model"])
def test_a_text_encoder_that_is_not_there_is_one_line(name: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it has read the environment by now
    with pytest.raises(UsageError, match="expected"):
        text_encoder(name, torch.device("cpu"))


def test_a_caption_does_not_depend_on_the_padding_of_its_neighbours() -> None:
    """Alone, beside a longer one, and with numbers in the padding: the same losses and the same ids."""
    prior, ids = make_prior("text"), torch.tensor([[3, 1, 4, 1, 5, 9]] * 3)
    texts = ["a red disk", "", "two blue rings on gray ground beside a small green square"]
    together = prior.text_encoder.encode(texts)
    spoiled = TextFeatures(torch.where(together.mask[..., None], together.values, 1e3), together.mask)
    drawn = prior.generate(text=texts, guidance=2.0, seed=3)
    with torch.no_grad():
        losses_BN, spoiled_BN = (prior.loss(ids, None, context) for context in (together, spoiled))
        for row, text in enumerate(texts):
            alone = prior.loss(ids[:1], None, prior.text_encoder.encode([text]))
            assert torch.allclose(losses_BN[row], alone[0], atol=1e-5)
            assert torch.equal(prior.generate(text=[text], guidance=2.0, seed=3, sample_ids=[row])[0], drawn[row])
    assert torch.allclose(losses_BN, spoiled_BN, atol=1e-5)
    assert not torch.allclose(losses_BN[0], losses_BN[2], atol=1e-2)


@pytest.mark.parametrize("text", ["", "ring " * 10_000, "🙂🎨 red", "שלום عالم", "\x00\n\t", "\ud83d half a pair"])
def test_any_caption_is_drawn(text: str) -> None:
    prior = make_prior("text")
    assert prior.generate(text=[text], guidance=2.0).shape == (1, 6)
    longer = prior.generate(text=["ring " * 32])
    assert torch.equal(prior.generate(text=["ring " * 10_000]), longer)
