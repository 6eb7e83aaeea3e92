"""Training a tokenizer from the weights of another: parts frozen, registers cut and grown, another image size."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import official_config, official_state, write_official
from tiny_models import scrambled
from torch import Tensor
from toy_family import EmaCodebookConfig

from flextok.aliases import promote
from flextok.config import parse_config
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.scenes import ScenesConfig
from flextok.errors import UsageError
from flextok.model.autoencoders.config import AutoencoderKLConfig
from flextok.model.checkpoint import save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.load import load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.nn.patching import sincos_table
from flextok.model.quantizers.config import QUANTIZERS, FSQConfig
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import lineage
from flextok.runtime.compute import ComputeConfig
from flextok.train.config import InitFromConfig, TokenizerRecipe
from flextok.train.job import TrainResult, run_member
from flextok.train.origin import origin_of, pinned
from flextok.train.parallel import DistContext
from flextok.train.tokenizer import TokenizerJob, train_tokenizer

HERE = ComputeConfig(train_workers=0)
SIZE, REGISTERS = 32, 5
SMALL = TokenizerConfig(
    latents=AutoencoderKLConfig(
        block_out_channels=(4, 8, 8), layers_per_block=2, latent_channels=5, norm_num_groups=2, sample_posterior=False
    ),
    image_size=SIZE,
    registers=REGISTERS,
    encoder=TrunkConfig(width=24, depth=2, head_dim=12),
    quantizer=FSQConfig(levels=(7, 5)),
    decoder=FlowDecoderConfig(trunk=TrunkConfig(width=32, depth=2, head_dim=16)),
    posemb_scaling="interpolate",
)
NO_CHANGE = {"steps": 1, "optimizer": {"lr": 1e-30}}
TABLES = {"encoder.patches.positions", "decoder.patches.positions"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("init_from")


@pytest.fixture(scope="module")
def corpus_url(root: Path) -> str:
    config = CorpusConfig(scenes=ScenesConfig(train_samples=12, val_samples=4, image_px=SIZE), shard_samples=12)
    return shard_corpus(config, "train", str(root / "corpus"), progress=False).url


@pytest.fixture(scope="module")
def source(root: Path) -> Tokenizer:
    return scrambled(SMALL)


@pytest.fixture(scope="module")
def latents_url(root: Path, source: Tokenizer) -> str:
    return save_checkpoint(str(root / "vae"), "vae", source.latents.state_dict(), SMALL.latents, [], {}).url


@pytest.fixture(scope="module")
def source_url(root: Path, source: Tokenizer) -> str:
    return saved(source, root / "tokenizer")


@pytest.fixture
def ema_codebook() -> Iterator[None]:
    QUANTIZERS.register(EmaCodebookConfig)
    yield
    QUANTIZERS.remove("toy_ema")


def saved(tokenizer: Tokenizer, parent: Path) -> str:
    return save_checkpoint(str(parent), "tokenizer", tokenizer.state_dict(), tokenizer.config, [], {}).url


def recipe(checkpoint: str, freeze: tuple[str, ...] = (), train: Any = NO_CHANGE, **model: Any) -> TokenizerRecipe:
    architecture = SMALL.model_dump(exclude={"latents", "image_size"})
    values = {
        "model": {**architecture, **model},
        "train": {"batch_size": 4, "precision": "float32", "log_every": 2, **train},
        "init_from": {"checkpoint": checkpoint, "freeze": freeze},
    }
    return parse_config(TokenizerRecipe, values, "test")


@pytest.fixture(scope="module")
def trained(latents_url: str, corpus_url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def train(recipe: TokenizerRecipe, size: int = SIZE, latents: str = latents_url) -> TrainResult:
        return train_tokenizer(recipe, latents, corpus_url, size, str(tmp_path_factory.mktemp("trained")), HERE)

    return train


def images(size: int = SIZE) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def unequal(one: Tokenizer, other: Tokenizer) -> set[str]:
    """Names of the weights that differ in any bit."""
    theirs = other.state_dict()
    return {name for name, tensor in one.state_dict().items() if not torch.equal(tensor, theirs[name])}


@pytest.mark.parametrize("kind", ["tokenizer", "official"])
def test_what_learns_nothing_is_what_it_began_from(
    kind: str, source: Tokenizer, source_url: str, trained: Any, tmp_path: Path
) -> None:
    url = source_url
    if kind == "official":
        url = str(write_official(tmp_path, official_config(source), official_state(source), groups=2))
    made = trained(recipe(url))
    tokenizer = load_tokenizer(made.url)
    assert unequal(tokenizer, source) == set()
    ids, noise = source.tokenize(images()), torch.randn(2, *source.latent_shape)
    assert torch.equal(tokenizer.tokenize(images()), ids)
    arguments: dict[str, Any] = {"noise": noise, "steps": 2, "keep": 2}
    assert torch.equal(tokenizer.detokenize(ids, **arguments), source.detokenize(ids, **arguments))
    # what it began from is in its lineage
    began = lineage(made.url)["inputs"][-1]
    origin = origin_of(recipe(url).init_from)  # type: ignore[arg-type]
    assert (began["kind"], began["digest"], began["found"]) == (kind, origin["digest"], True)
    assert began["uri"] == url


@pytest.mark.parametrize("freeze", [("encoder",), ("decoder",), ("encoder", "quantizer")], ids=",".join)
def test_frozen_parts_stay_bit_for_bit(
    freeze: tuple[str, ...], source: Tokenizer, source_url: str, trained: Any
) -> None:
    train = {"steps": 3, "optimizer": {"lr": 1e-2, "warmup_steps": 1}, "ema_decay": 0.5}
    changed = unequal(load_tokenizer(trained(recipe(source_url, freeze, train)).url), source)
    assert {name.partition(".")[0] for name in changed} == {"encoder", "decoder"} - set(freeze)
    assert not changed & TABLES


@pytest.mark.parametrize(
    "freeze", [(), ("quantizer",), ("encoder", "quantizer")], ids=lambda parts: ",".join(parts) or "none"
)
def test_a_frozen_codebook_of_running_means_stays(
    freeze: tuple[str, ...], trained: Any, ema_codebook: None, source: Tokenizer, tmp_path: Path
) -> None:
    other = scrambled(SMALL.model_copy(update={"quantizer": EmaCodebookConfig()}))
    other.latents.load_state_dict(source.latents.state_dict())
    train = {"steps": 3, "optimizer": {"lr": 1e-2, "warmup_steps": 1}, "ema_decay": 0.5}
    settings = recipe(saved(other, tmp_path), freeze, train, quantizer=EmaCodebookConfig().model_dump())
    changed = {name.partition(".")[0] for name in unequal(load_tokenizer(trained(settings).url), other)}
    assert changed == {"encoder", "quantizer", "decoder"} - set(freeze)


@pytest.mark.parametrize("registers", [3, 8])
def test_first_registers_stay_where_they_are_cut_or_grown(
    registers: int, source: Tokenizer, source_url: str, trained: Any
) -> None:
    tokenizer = load_tokenizer(trained(recipe(source_url, registers=registers)).url)
    both = min(registers, REGISTERS)
    ids, before = tokenizer.tokenize(images()), source.tokenize(images())
    assert ids.shape == (2, registers) and torch.equal(ids[:, :both], before[:, :both])
    for keep in (1, both):  # what the decoder reads of them; it attends to other masks beside them
        kept = torch.tensor([keep, keep])
        now = tokenizer.decoder.registers(tokenizer.quantizer.codes(ids), kept)
        was = source.decoder.registers(source.quantizer.codes(before), kept)
        assert torch.equal(now[:, :both], was[:, :both])
    assert tokenizer.detokenize(ids, steps=1).isfinite().all()
    new = tokenizer.encoder.registers[both:]
    assert len(new) == max(0, registers - REGISTERS) and (len(new) == 0 or new.std() > 0.1)


@pytest.mark.parametrize(("scaling", "size"), [("interpolate", 48), ("interpolate", 16), ("absolute", 16)])
def test_another_image_size_is_what_the_first_tokenizer_made_of_it(
    scaling: str, size: int, source_url: str, trained: Any, tmp_path: Path
) -> None:
    before = load_tokenizer(source_url)
    before = Tokenizer.from_state(before.config.model_copy(update={"posemb_scaling": scaling}), before.state_dict(), "")
    tokenizer = load_tokenizer(trained(recipe(source_url, posemb_scaling=scaling), size).url)
    assert tokenizer.config.image_size == size
    assert unequal_but_tables(tokenizer, before) == set()
    ids, noise = before.tokenize(images(size)), torch.randn(2, *tokenizer.latent_shape)
    assert torch.equal(tokenizer.tokenize(images(size)), ids)
    assert torch.equal(tokenizer.detokenize(ids, noise=noise, steps=2), before.detokenize(ids, noise=noise, steps=2))


def test_a_larger_image_has_further_absolute_positions(source: Tokenizer, source_url: str, trained: Any) -> None:
    made = trained(recipe(source_url, ("encoder",), posemb_scaling="absolute"), 48)
    tokenizer = load_tokenizer(made.url)
    assert unequal_but_tables(tokenizer, source) == set()
    assert torch.equal(tokenizer.decoder.patches.positions, sincos_table(32, (6, 6)))


def unequal_but_tables(one: Tokenizer, other: Tokenizer) -> set[str]:
    return unequal(one, other) - TABLES


@pytest.mark.parametrize(
    ("freeze", "model", "said"),
    [
        (
            (),
            {"encoder": TrunkConfig(width=36, depth=2, head_dim=12)},
            r"with encoder\.width 36 as in .* found 24 in .*",
        ),
        ((), {"quantizer": FSQConfig(levels=(7, 7))}, r"quantizer\.levels \[7, 7\] as in .*, found \[7, 5\]"),
        (("encoder",), {"registers": 6}, "at most the 5 registers of .*, found 6"),
        (("encoder", "decoder"), {}, "something left to learn by tokenizer.init_from.freeze, found encoder, decoder"),
    ],
)
def test_what_does_not_fit_is_one_line(
    freeze: tuple[str, ...], model: dict[str, Any], said: str, source_url: str, trained: Any
) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        trained(recipe(source_url, freeze, **model))
    assert "\n" not in str(raised.value)


def test_other_checkpoints_are_one_line(source_url: str, latents_url: str, trained: Any, tmp_path: Path) -> None:
    stranger = scrambled(SMALL, seed=1)
    parent = str(tmp_path / "vae")
    other = save_checkpoint(parent, "vae", stranger.latents.state_dict(), SMALL.latents, [], {})
    with pytest.raises(UsageError, match=f"autoencoder {other.digest[:12]} .*, found {Path(latents_url).name[:12]} in"):
        trained(recipe(source_url), latents=other.url)
    with pytest.raises(UsageError, match=f"expected a tokenizer checkpoint .*, found a vae at {latents_url}"):
        trained(recipe(latents_url))
    with pytest.raises(UsageError, match=r"found no model\.safetensors there"):
        trained(recipe(str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match=r"expected the checkpoint 0000.*, found"):
        trained(pinned(recipe(source_url), "0" * 64))
    with pytest.raises(UsageError, match=r"decoder that learns in train\.decoder_only, found it frozen"):
        recipe(source_url, ("decoder",), {"steps": 3, "decoder_only": {"from_step": 1}})


def test_a_training_that_was_killed_goes_on_as_if_it_had_not(
    source_url: str, latents_url: str, corpus_url: str, tmp_path: Path
) -> None:
    settings = recipe(source_url, ("encoder",), {"steps": 4, "checkpoint_every": 2}, registers=4)
    origin = origin_of(settings.init_from)  # type: ignore[arg-type]
    digests = []
    for name, killed in (("undisturbed", False), ("killed", True)):
        job = TokenizerJob(
            pinned(settings, origin["digest"]), latents_url, corpus_url, SIZE, str(tmp_path / name), None, origin
        )

        def kill(step: int, note: str) -> None:
            if step == 3:
                raise KeyboardInterrupt

        if killed:
            with pytest.raises(KeyboardInterrupt):
                run_member(job, DistContext(), HERE, kill)
        steps: list[int] = []
        made = run_member(job, DistContext(), HERE, lambda step, note: steps.append(step))  # noqa: B023
        assert made is not None and steps[0] == (2 if killed else 0)
        digests.append(made.digest)
    assert digests[0] == digests[1]


def test_published_weights_are_known_by_their_hash(source: Tokenizer, tmp_path: Path) -> None:
    stranger = scrambled(SMALL, seed=1)
    for tokenizer in (source, stranger):  # the second in the place of the first, of the same size
        write_official(tmp_path, official_config(tokenizer), official_state(tokenizer), groups=2)
        hashed = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
        for name in (tmp_path, tmp_path / "model.safetensors"):
            assert origin_of(InitFromConfig(checkpoint=str(name))) == {
                "kind": "official",
                "digest": hashed,
                "uri": str(name),
            }


def test_a_promoted_checkpoint_is_another_training(
    source: Tokenizer, latents_url: str, corpus_url: str, tmp_path: Path
) -> None:
    stranger = scrambled(SMALL, seed=1)
    stranger.latents.load_state_dict(source.latents.state_dict())
    prints = []
    for tokenizer in (source, stranger):
        promote(str(tmp_path), Path(saved(tokenizer, tmp_path)).name, "production")
        settings = recipe(f"{tmp_path}@production")
        origin = origin_of(settings.init_from)  # type: ignore[arg-type]
        assert origin["digest"] == tokenizer.digest and origin["uri"].endswith(tokenizer.digest)
        prints.append(
            TokenizerJob(
                pinned(settings, origin["digest"]), latents_url, corpus_url, SIZE, "parent", None, origin
            ).fingerprint()
        )
    assert prints[0] != prints[1]
