"""Training on several processes, in slices, in shards, with activations computed again: the losses of one process."""

import os
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_jobs import make_tokens

from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import AlignmentConfig, FlowDecoderConfig, FlowTraining
from flextok.model.nn.config import TrunkConfig
from flextok.model.nn.dropout import BatchRows, Dropout
from flextok.model.priors.base import Prior
from flextok.model.priors.config import AutoregressiveConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.teachers.config import RandomConvolutionConfig
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.compute import ComputeConfig
from flextok.train.alignment import begun_alignment
from flextok.train.config import (
    DecoderOnlyConfig,
    KeepBestConfig,
    OptimizerConfig,
    PriorRecipe,
    PriorTrainConfig,
    TokenizerTrainConfig,
)
from flextok.train.data import CachedLatents
from flextok.train.loop import StopTraining, train
from flextok.train.objective import Batch, Objective
from flextok.train.parallel import CPU, DistContext
from flextok.train.prior import PriorObjective, prior_config
from flextok.train.state import HistoryRow, latest_step
from flextok.train.tokenizer import TokenizerObjective

STEPS = 10
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 25, "precision": "float32", "log_every": 1, "checkpoint_every": 4, "validate_every": 5,
}  # fmt: skip
TRUNK = TrunkConfig(width=16, depth=2, head_dim=8)
KINDS = ("tokenizer", "prior")
ENCODER_STEPS = 5
ALIGNED_STEPS = 6
ALIGNMENT = AlignmentConfig(
    teacher=RandomConvolutionConfig(stride=4), layer=1, projector_width=24, until_step=ALIGNED_STEPS
)
DECODER_ONLY = "tokenizer whose decoder only is trained in the end"
ALIGNED = "tokenizer aligned with a teacher at first"


class Crops:
    """Noise as pictures, in memory."""

    in_memory, weights, windows = True, None, None

    def __init__(self, samples: int):
        generator = torch.Generator().manual_seed(1)
        self._images = torch.randint(256, (samples, 3, 32, 32), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self._images)

    def fetch(self, indices: np.ndarray) -> Batch:
        return {"images": self._images[torch.from_numpy(indices)]}


def tokenizer_objectives(decoder_only: bool = False, aligned: bool = False) -> tuple[Objective, Objective]:
    """A tokenizer of all parts trained by Muon, in the end its decoder only, beside a frozen autoencoder."""
    config = TokenizerConfig(
        latents=ConvAutoencoderConfig(channels=8, blocks=1, latent_channels=4, factor=4),
        image_size=32,
        registers=4,
        encoder=TRUNK,
        decoder=FlowDecoderConfig(trunk=TRUNK),
        quantizer=FSQConfig(levels=(5, 5)),
        patch_size=2,
    )
    tokenizer = Tokenizer.create(config, seed=0)
    settings = TokenizerTrainConfig(
        **SETTINGS,
        optimizer=OptimizerConfig(
            kind="muon", lr=3e-3, warmup_steps=3, final_lr_fraction=1.0 if decoder_only else 0.05
        ),
        decoder_only=DecoderOnlyConfig(from_step=ENCODER_STEPS, keep_mode="pow2") if decoder_only else None,
        decoder=FlowTraining(alignment=ALIGNMENT if aligned else None),
    )
    alignment = begun_alignment(tokenizer, settings, CPU)
    crops, shape = [Crops(40), Crops(7)], tokenizer.latent_shape
    source = CachedLatents(crops[0], tokenizer.encode_images, shape, DistContext(), alignment)
    held_out = CachedLatents(crops[1], tokenizer.encode_images, shape, DistContext())
    return TokenizerObjective(tokenizer, source, settings, alignment), TokenizerObjective(tokenizer, held_out, settings)


def prior_objectives(tokens: str) -> tuple[Objective, Objective]:
    """A prior conditioned on captions, trained by AdamW, with dropout."""
    model = AutoregressiveConfig(width=16, depth=2, head_dim=8, condition="text")
    settings = PriorTrainConfig(**SETTINGS, optimizer=OptimizerConfig(lr=3e-3, warmup_steps=3))
    store = TokenStore.open(tokens)
    prior = Prior.create(prior_config(PriorRecipe(model=model, train=settings), store), seed=0)
    prior.set_dropout(0.1)
    return PriorObjective(prior, store, settings), PriorObjective(prior, store, settings)


@dataclass(frozen=True)
class Case:
    """How a training is spread, and in how many slices."""

    parallel: str = "ddp"
    slices: int = 1
    checkpointing: str = "none"

    def __str__(self) -> str:
        return f"{self.parallel}-{self.slices}-{self.checkpointing}"


ALONE = [Case(slices=4), Case(checkpointing="full"), Case(checkpointing="selective", slices=4), Case("fsdp")]
TOGETHER = {
    2: [Case(), Case(slices=4, checkpointing="full"), Case("fsdp"), Case("fsdp", 4, "full"), Case("hsdp")],
    3: [Case(slices=4), Case("fsdp", checkpointing="selective")],
}


class Stopped(Exception):
    """What a test raises to end a run as a kill would."""


def stop_at(step_to_stop: int, error: type[Exception]):
    def on_progress(step: int, note: str) -> None:
        if step == step_to_stop:
            raise error

    return on_progress


Found = tuple[list[HistoryRow], dict[str, np.ndarray]]


def trained(
    kind: str, case: Case, world: DistContext, root: str, run: str, on_progress=lambda step, note: None
) -> Found:
    """The history, but for speeds, and the first member's weights."""
    if kind == "prior":
        objective, validation = prior_objectives(f"{root}/tokens")
    else:
        objective, validation = tokenizer_objectives(kind == DECODER_ONLY, kind == ALIGNED)
    config = objective.config if isinstance(objective, TokenizerObjective) else PriorTrainConfig(**SETTINGS)
    config = config.model_copy(
        update={"gradient_accumulation_steps": case.slices, "keep_best": KeepBestConfig() if validation else None}
    )
    compute = ComputeConfig(parallel=case.parallel, activation_checkpointing=case.checkpointing)  # pyright: ignore[reportArgumentType]
    rows = train(objective, config, world, f"{root}/{run}", validation, on_progress, compute)
    state = objective.model.state_dict() if world.is_first else {}
    # Rounding may change a single id, which perplexity, entropy and the small gradients of single modules show.
    others = (
        "train/images_per_s", "machine/", "train/codebook_perplexity", "train/entropy_by_position/", "train/grad_norm/",
        "train/update_ratio/",
    )  # fmt: skip
    recorded = [row for row in rows if not row[1].startswith(others)]
    return recorded, {key: t.numpy() for key, t in state.items()}


def leave_state(kind: str, world: DistContext, root: str, error: type[Exception], run: str) -> None:
    """Train in shards until the sixth step, and end as a kill would, or as a wish of the first member."""
    progress = stop_at(6, error) if error is Stopped or world.is_first else lambda step, note: None
    with pytest.raises(error):
        trained(kind, Case("fsdp"), world, root, run, progress)


def _member(rank: int, size: int, root: str, results) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = "1"  # as if each were on a node of its own, for hsdp
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous-{size}", rank=rank, world_size=size)
    world = DistContext(rank, size)
    found: dict[tuple[str, str], Found] = {}
    for kind in KINDS:
        for case in TOGETHER[size]:
            found[kind, str(case)] = trained(kind, case, world, root, f"{size}-{kind}-{case}")
        if size == 2:
            leave_state(kind, world, root, Stopped, f"state-{kind}")
            leave_state(kind, world, root, StopTraining, f"stopped-{kind}")
        else:
            if world.is_first:
                shutil.copytree(f"{root}/state-{kind}", f"{root}/resumed-{kind}")
            found[kind, "resumed"] = trained(kind, Case("fsdp"), world, root, f"resumed-{kind}")
    if size == 2:
        for kind in (DECODER_ONLY, ALIGNED):
            for case in (Case(slices=2), Case("fsdp")):
                found[kind, str(case)] = trained(kind, case, world, root, f"2-{kind}-{case}")
        os.environ["LOCAL_WORLD_SIZE"] = str(1 + rank)
        with pytest.raises(UsageError, match=r"as many workers on each node for .* hsdp, found 1 to 2; take fsdp"):
            trained("prior", Case("hsdp"), world, root, "uneven")
    if rank == 0:
        results[size] = found
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("parallel")
    make_tokens(folder / "tokens", [row % 5 for row in range(40)])
    return str(folder)


@pytest.fixture(scope="module")
def straight(root: str) -> dict[str, Found]:
    return {
        kind: trained(kind, Case(), DistContext(), root, f"straight-{kind}") for kind in (*KINDS, DECODER_ONLY, ALIGNED)
    }


@pytest.fixture(scope="module")
def together(root: str) -> dict[int, dict[tuple[str, str], Found]]:
    """What groups of 2 and of 3 came to; a batch of 25 has unequal parts in both."""
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        for size in (2, 3):
            mp.spawn(_member, args=(size, root, results), nprocs=size)
        return dict(results)


def assert_equal(found: Found, expected: Found) -> None:
    assert [row[:2] for row in found[0]] == [row[:2] for row in expected[0]]
    assert [row[2] for row in found[0]] == pytest.approx([row[2] for row in expected[0]], abs=1e-5)
    # Weights less so: optimizers make whole steps of first gradients that are next to nothing, as rounding left them.
    assert found[1].keys() == expected[1].keys()
    assert all(np.allclose(found[1][name], tensor, atol=5e-3) for name, tensor in expected[1].items())


@pytest.mark.parametrize("case", ALONE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_one_process_comes_to_the_same_in_any_way(kind: str, case: Case, straight: dict[str, Found], root: str) -> None:
    assert_equal(trained(kind, case, DistContext(), root, f"1-{kind}-{case}"), straight[kind])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "case"), [(size, case) for size, cases in TOGETHER.items() for case in cases], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_group_comes_to_the_same_in_any_way(
    kind: str,
    case: Case,
    size: int,
    straight: dict[str, Found],
    together: dict[int, dict[tuple[str, str], Found]],
) -> None:
    assert_equal(together[size][kind, str(case)], straight[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_two_with_shards_is_resumed_by_one_and_by_three(
    kind: str, straight: dict[str, Found], together: dict[int, dict[tuple[str, str], Found]], root: str
) -> None:
    assert latest_step(f"{root}/state-{kind}") == 4
    assert_equal(together[3][kind, "resumed"], straight[kind])
    assert_equal(trained(kind, Case(), DistContext(), root, f"state-{kind}"), straight[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("together")
def test_a_wish_to_stop_has_all_members_write_their_shards(kind: str, straight: dict[str, Found], root: str) -> None:
    assert latest_step(f"{root}/stopped-{kind}") == 7  # the step after the wish
    assert_equal(trained(kind, Case(), DistContext(), root, f"stopped-{kind}"), straight[kind])


def test_the_encoder_stays_at_its_average_where_only_the_decoder_is_trained(
    straight: dict[str, Found], root: str
) -> None:
    """And a run that was ended in that part goes on to the bit."""
    objective, _ = tokenizer_objectives(True)
    assert isinstance(objective, TokenizerObjective)
    encoder_alone = objective.config.model_copy(update={"steps": ENCODER_STEPS})
    train(objective, encoder_alone, DistContext(), f"{root}/encoder")
    with pytest.raises(Stopped):
        trained(DECODER_ONLY, Case(), DistContext(), root, "ended", stop_at(9, Stopped))
    history, weights = trained(DECODER_ONLY, Case(), DistContext(), root, "ended")
    expected_history, expected = straight[DECODER_ONLY]
    assert history == expected_history
    assert all((weights[name] == tensor).all() for name, tensor in expected.items())
    made = {name: (tensor.numpy(), expected[name]) for name, tensor in objective.model.state_dict().items()}
    changed = {name.partition(".")[0] for name, (then, now) in made.items() if not np.array_equal(then, now)}
    assert changed == {"decoder"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DECODER_ONLY, ALIGNED])
@pytest.mark.parametrize("case", [Case(slices=2), Case("fsdp")], ids=str)
def test_a_group_trains_in_parts_of_a_run(
    kind: str, case: Case, straight: dict[str, Found], together: dict[int, dict[tuple[str, str], Found]]
) -> None:
    """The decoder only in the end; with a teacher at first."""
    assert_equal(together[2][kind, str(case)], straight[kind])


def test_a_tokenizer_aligned_at_first_is_the_same_in_slices_and_after_a_stop(
    straight: dict[str, Found], root: str
) -> None:
    history, weights = straight[ALIGNED]
    aligned = [value for _, name, value in history if name == "train/loss/alignment"]
    assert all(-1 < value < 0.5 and value != 0 for value in aligned[:ALIGNED_STEPS])
    assert aligned[ALIGNED_STEPS - 1] < aligned[0] and aligned[ALIGNED_STEPS:] == [0] * (STEPS - ALIGNED_STEPS)
    assert "decoder.projector.0.weight" in weights
    assert_equal(trained(ALIGNED, Case(slices=4), DistContext(), root, "aligned-slices"), straight[ALIGNED])
    with pytest.raises(Stopped):
        trained(ALIGNED, Case(), DistContext(), root, "aligned-stopped", stop_at(5, Stopped))
    assert trained(ALIGNED, Case(), DistContext(), root, "aligned-stopped")[0] == history


def test_masks_of_dropout_are_the_batchs_in_any_parts() -> None:
    """Those of nn.Dropout where all rows go through at once, as they were before there were parts."""
    x, ours, theirs = torch.randn(7, 5, 3), Dropout(0.3), torch.nn.Dropout(0.3)
    with BatchRows.of_step(0, 7, seed=5):
        whole = [ours(x), ours(x)]
    torch.manual_seed(5)
    assert all(torch.equal(found, theirs(x)) for found in whole) and not torch.equal(*whole)
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        with BatchRows.of_step(start, 7, seed=5):
            assert all(torch.equal(ours(x[start:stop]), found[start:stop]) for found in whole)
    assert torch.equal(ours.eval()(x), x)
