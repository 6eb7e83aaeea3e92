"""A patch discriminator in an autoencoder's training: its losses and weight by their formulas, on any number of workers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from saved_states import load_latest_state
from test_alignment import HERE, SIZE, corpus_url  # noqa: F401 - fixture
from test_parallel import Case, Crops, Stopped, stop_at
from torch import Tensor, nn

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.model.autoencoders.config import AutoencoderKLConfig, AutoencoderSettings, ConvAutoencoderConfig
from flextok.model.checkpoint import read_checkpoint
from flextok.model.load import load_autoencoder
from flextok.model.rng import SampleRng
from flextok.runtime.compute import ComputeConfig
from flextok.train.adversarial import Adversary
from flextok.train.autoencoder import AutoencoderObjective, train_autoencoder
from flextok.train.config import AutoencoderRecipe, AutoencoderTrainConfig, DiscriminatorConfig
from flextok.train.data import model_images
from flextok.train.discriminator import PatchDiscriminator
from flextok.train.loop import train
from flextok.train.parallel import DistContext
from flextok.train.perceptual import PerceptualLoss
from flextok.train.sinks.base import HistoryRow

CONV = ConvAutoencoderConfig(channels=8, blocks=1, latent_channels=4, factor=4)
KL = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
START, STEPS = 3, 8
SMALL: dict[str, Any] = {"weight": 0.5, "start_step": START, "channels": 8, "layers": 2, "lr": 2e-3}
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 9, "precision": "float32", "log_every": 1, "checkpoint_every": 2, "discriminator": SMALL,
    "perceptual": {"weight": 0.2, "input_px": 32, "scales": 1}, "ema_decay": 0.9,
    "optimizer": {"lr": 3e-3, "warmup_steps": 2}, "autoencoder": {"kind": "conv"},
}  # fmt: skip


def config(**changes: Any) -> AutoencoderTrainConfig:
    return parse_config(AutoencoderTrainConfig, {**SETTINGS, **changes}, "test")


def objective(settings: AutoencoderTrainConfig, world: DistContext = DistContext()) -> AutoencoderObjective:  # noqa: B008
    torch.manual_seed(0)
    autoencoder = CONV.build()
    adversary = None
    if settings.discriminator is not None:
        adversary = Adversary(settings.discriminator, settings.batch_size, world)
    perceptual = PerceptualLoss(settings.perceptual, world.device) if settings.perceptual is not None else None
    return AutoencoderObjective(autoencoder, Crops(20), settings, perceptual, adversary)  # pyright: ignore[reportArgumentType]


def test_the_discriminator_is_the_published_one_with_group_norm() -> None:
    network = PatchDiscriminator(DiscriminatorConfig())
    published = nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.GroupNorm(32, 128), nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False), nn.GroupNorm(32, 256), nn.LeakyReLU(0.2),
        nn.Conv2d(256, 512, 4, 1, 1, bias=False), nn.GroupNorm(32, 512), nn.LeakyReLU(0.2),
        nn.Conv2d(512, 1, 4, 1, 1),
    )  # fmt: skip
    order = [network.first, *(part for pair in zip(network.convs, network.norms, strict=True) for part in pair)]
    layers = [module for module in published if not isinstance(module, nn.LeakyReLU)]
    for ours, theirs in zip([*order, network.head], layers, strict=True):
        theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(network(images), published(images).flatten(1))
        assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 30 * 30)
        alone = network(images[:1])
    torch.testing.assert_close(alone, network(images)[:1].detach())


def test_one_backward_pass_gives_both_networks_the_gradients_of_their_own_losses() -> None:
    made = objective(config())
    batch = made.source.fetch(torch.arange(9).numpy())  # pyright: ignore[reportArgumentType]
    rng = SampleRng(0, range(START * 9, START * 9 + 9))
    made.train()
    (made(batch, rng).sum() / 9).backward()
    found = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}

    images = model_images(batch["images"])
    reconstructions, losses = made._reconstructed(images, rng)
    own = (losses["reconstruction"] + 0.2 * losses["perceptual"]).mean()
    assert made.adversary is not None
    network = made.adversary.network
    generator = -network(reconstructions).mean()
    last = made.model.last_layer()
    sizes = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (own, generator)]
    weight = 0.5 * sizes[0] / (sizes[1] + 1e-4)
    assert made.adversary.weight is not None and made.adversary.weight.item() == pytest.approx(weight.item(), rel=1e-4)
    parameters = dict(made.model.named_parameters())
    expected = torch.autograd.grad(own + weight * generator, list(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[f"model.{name}"], gradient, rtol=1e-3, atol=1e-6)
    hinge = 0.5 * (torch.relu(1 - network(images)).mean() + torch.relu(1 + network(reconstructions.detach())).mean())
    for name, gradient in zip(
        dict(network.named_parameters()), torch.autograd.grad(hinge, list(network.parameters())), strict=True
    ):
        torch.testing.assert_close(found[f"adversary.network.{name}"], gradient, rtol=1e-3, atol=1e-6)


def recorded(rows: list[HistoryRow]) -> list[HistoryRow]:
    return [row for row in rows if not row[1].startswith(("train/images_per_s", "machine/", "alarm/"))]


def trained(
    folder: str, case: Case = Case(), world: DistContext = DistContext(), stop: int = 0, **changes: Any  # noqa: B008
) -> tuple[list[HistoryRow], dict[str, Tensor]]:  # fmt: skip
    settings = config(gradient_accumulation_steps=case.slices, **changes)
    made = objective(settings, world)
    on_progress = stop_at(stop, Stopped) if stop else lambda step, note: None
    compute = ComputeConfig(parallel=case.parallel)  # pyright: ignore[reportArgumentType]
    rows = train(made, settings, world, folder, on_progress=on_progress, compute=compute)
    return recorded(rows), made.model.state_dict()


def _member(rank: int, size: int, root: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=size)
    world = DistContext(rank, size)
    for case in (Case(), Case(slices=3), Case("fsdp"), Case("fsdp", slices=2)):
        rows, state = trained(f"{root}/{case}", case, world)
        if rank == 0:
            results[str(case)] = rows, {name: tensor.numpy() for name, tensor in state.items()}
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[HistoryRow], dict[str, Tensor]]:
    return trained(str(tmp_path_factory.mktemp("straight")))


def assert_losses_equal(found: list[HistoryRow], expected: list[HistoryRow]) -> None:
    kept = [[row for row in rows if "update_ratio" not in row[1]] for rows in (found, expected)]
    assert [row[:2] for row in kept[0]] == [row[:2] for row in kept[1]]
    values = [[row[2] for row in rows] for rows in kept]
    assert values[0] == pytest.approx(values[1], abs=1e-5, rel=1e-4)


def test_it_is_recorded_from_its_start_on(straight: tuple[list[HistoryRow], dict[str, Tensor]]) -> None:
    rows = {(step, name): value for step, name, value in straight[0]}
    for name in ("train/loss/generator", "train/loss/discriminator", "train/adversarial_weight"):
        assert [step for step, found in rows if found == name] == list(range(START + 1, STEPS + 1))
    for step in range(1, STEPS + 1):
        own = rows[step, "train/loss/reconstruction"] + 0.2 * rows[step, "train/loss/perceptual"]
        weight, generator = (
            rows.get((step, f"train/{name}"), 0.0) for name in ("adversarial_weight", "loss/generator")
        )
        assert rows[step, "train/loss"] == pytest.approx(own + weight * generator, rel=1e-4)


def test_two_processes_and_slices_have_the_losses_of_one(
    straight: tuple[list[HistoryRow], dict[str, Tensor]], tmp_path: Path
) -> None:
    assert_losses_equal(trained(str(tmp_path / "slices"), Case(slices=4))[0], straight[0])
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_member, args=(2, str(tmp_path), results), nprocs=2)
        assert len(results) == 4
        for rows, _ in results.values():
            assert_losses_equal(rows, straight[0])


@pytest.mark.parametrize("stop", [3, 7])
def test_a_stopped_run_goes_on_exactly(
    stop: int, straight: tuple[list[HistoryRow], dict[str, Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        trained(str(tmp_path), stop=stop)
    state = load_latest_state(str(tmp_path))
    assert state is not None and state.step == stop - 1
    moments = [tensor for name, tensor in state.tensors.items() if name.startswith("companion.exp_avg.")]
    assert moments and all((tensor != 0).any() == (state.step > START) for tensor in moments)
    _, resumed = trained(str(tmp_path))
    assert all(torch.equal(tensor, straight[1][name]) for name, tensor in resumed.items())


def test_before_its_start_nothing_changes(tmp_path: Path) -> None:
    with_it, without = (_state(tmp_path / name, chosen) for name, chosen in (("with", SMALL), ("without", None)))
    assert {name for name in with_it if not name.startswith("companion.")} == without.keys()
    assert all(torch.equal(with_it[name], tensor) for name, tensor in without.items())


def _state(folder: Path, discriminator: dict[str, Any] | None) -> dict[str, Tensor]:
    with pytest.raises(Stopped):
        trained(str(folder), stop=START, discriminator=discriminator)
    state = load_latest_state(str(folder))
    assert state is not None
    return state.tensors


def test_a_step_whose_discriminator_has_no_finite_gradient_is_left_out(tmp_path: Path) -> None:
    settings = config(skip_spikes=8.0, discriminator={**SMALL, "start_step": 0})
    made = objective(settings)
    assert made.adversary is not None
    before = [parameter.detach().clone() for parameter in made.model.parameters()]
    made.adversary.network.head.bias.register_hook(lambda gradient: gradient * float("nan"))
    settings = settings.model_copy(update={"steps": 2})
    rows = train(made, settings, DistContext(), str(tmp_path))
    assert [step for step, name, _ in rows if name == "alarm/skipped_step"] == [1, 2]
    assert all(torch.equal(*pair) for pair in zip(made.model.parameters(), before, strict=True))


@pytest.mark.parametrize("model", [CONV, KL], ids=lambda model: model.kind)
def test_a_checkpoint_has_nothing_of_it(model: AutoencoderSettings, corpus_url: str, tmp_path: Path) -> None:  # noqa: F811
    chosen = {"steps": 3, "batch_size": 4, "log_every": 1, "precision": "float32"}
    made = train_autoencoder(
        recipe(model, {**chosen, "discriminator": {"layers": 1}}), corpus_url, SIZE, str(tmp_path), HERE
    )
    assert read_checkpoint(made.url).state.keys() == load_autoencoder(made.url).state_dict().keys()
    assert made.metrics["train/adversarial_weight"] > 0
    with pytest.raises(
        UsageError, match=r"images of 24 pixels or more for latents.train.discriminator.layers 3, found 16"
    ):
        train_autoencoder(recipe(model, {**chosen, "discriminator": {}}), corpus_url, SIZE, str(tmp_path), HERE)


def recipe(model: AutoencoderSettings, train: dict[str, Any]) -> AutoencoderRecipe:
    return parse_config(AutoencoderRecipe, {"model": model.model_dump(), "train": train}, "test")


def test_settings_without_it_are_what_they_were() -> None:
    assert "discriminator" not in AutoencoderTrainConfig(steps=1).content()
    with pytest.raises(UsageError, match=r"discriminator.start_step: expected less than the 8 steps, found 8"):
        config(discriminator={**SMALL, "start_step": 8})
