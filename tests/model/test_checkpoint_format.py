"""The checkpoint format: what is written is what is read, and nothing else is read."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import TINY

from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.checkpoint import read_checkpoint, save_checkpoint
from flextok.model.describe import describe_checkpoint
from flextok.model.load import load_autoencoder, load_tokenizer
from flextok.model.tokenizer import Tokenizer
from flextok.model.weights import read_weights
from flextok.provenance import read_provenance


@pytest.fixture
def saved(tmp_path: Path, tiny: Tokenizer) -> Path:
    history = pa.table({"step": [1], "name": ["train/loss"], "value": [1.0]})
    checkpoint = save_checkpoint(str(tmp_path), "tokenizer", tiny.state_dict(), tiny.config, [], {"lr": 1}, history)
    assert checkpoint.url == str(tmp_path / checkpoint.digest)
    return Path(checkpoint.url)


def test_what_is_saved_is_loaded(saved: Path, tiny: Tokenizer) -> None:
    loaded = load_tokenizer(str(saved))
    assert loaded.digest == tiny.digest == saved.name == read_provenance(str(saved))["digest"]
    assert loaded.config == TINY and not loaded.training
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.yaml",
        "history.parquet",
        "model.safetensors",
        "provenance.json",
    ]
    assert pq.read_table(saved / "history.parquet").to_pylist()[0]["name"] == "train/loss"
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.float32}
    described = describe_checkpoint(str(saved))
    assert described["kind"] == "tokenizer" and described["layout"] == "flextok" and described["digest"] == saved.name
    assert described["parameters"]["total"] == sum(
        described["parameters"][p] for p in ("latents", "encoder", "decoder")
    )
    json.dumps(described)


def test_stage_0_stands_alone(tmp_path: Path, saved: Path) -> None:
    config = ConvAutoencoderConfig(channels=8, blocks=1)
    latents = config.build()
    vae = save_checkpoint(str(tmp_path), "vae", latents.state_dict(), config, [], {})
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(load_autoencoder(vae.url).encode(images), latents.encode(images))
    assert describe_checkpoint(vae.url)["kind"] == "vae"
    with pytest.raises(UsageError, match=r"expected a tokenizer checkpoint.*found a vae"):
        load_tokenizer(vae.url)
    with pytest.raises(UsageError, match="expected a vae checkpoint"):
        load_autoencoder(str(saved))


def test_unfinished_checkpoint_does_not_count(saved: Path) -> None:
    (saved / "provenance.json").unlink()
    with pytest.raises(UsageError, match=r"provenance\.json"):
        load_tokenizer(str(saved))


def change_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["encoder.registers"].add_(1), "content with digest"),
        (lambda state: state.pop("encoder.registers"), "content with digest"),
        (lambda state: state["encoder.registers"].fill_(torch.nan), "finite weights"),
    ],
    ids=["other values", "missing", "nan"],
)
def test_changed_weights_are_noticed(saved: Path, change, message: str) -> None:
    change_weights(saved, change)
    with pytest.raises(IntegrityError, match=message):
        load_tokenizer(str(saved))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("encoder.registers"), "'encoder.registers'.*missing"),
        (lambda state: state.update(more=torch.zeros(1)), "found also 'more'"),
        (lambda state: state.update({"encoder.registers": torch.zeros(2, 2)}), r"shape \[6, 32\].*found \[2, 2\]"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path, tiny: Tokenizer, change, message: str) -> None:
    state = dict(tiny.state_dict())
    change(state)
    url = save_checkpoint(str(tmp_path), "tokenizer", state, tiny.config, [], {}).url
    with pytest.raises(IntegrityError, match=message):
        load_tokenizer(url)


def test_config_is_only_data(saved: Path, tmp_path: Path) -> None:
    (saved / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path}/exploded']")
    with pytest.raises(FlextokError, match="'kind' and 'config'"):
        load_tokenizer(str(saved))
    assert not (tmp_path / "exploded").exists()


def test_changed_config_is_noticed(saved: Path) -> None:
    document = yaml.safe_load((saved / "config.yaml").read_text())
    document["config"]["keep_mode"] = "pow2"
    (saved / "config.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(IntegrityError, match="content with digest"):
        read_checkpoint(str(saved))


def test_a_header_may_be_as_long_as_a_pickle_begins(tmp_path: Path) -> None:
    """Lengths such as 0x480 are written as the bytes that begin a pickle of protocol 4."""
    path = tmp_path / "model.safetensors"
    for length in range(0x200, 0x600, 8):
        save_file({"x": torch.ones(2)}, path, metadata={"pad": " " * (length - 0x80)})
        if path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            assert torch.equal(read_weights(str(path))[0]["x"], torch.ones(2))
            break
    else:
        pytest.fail("expected such a header among those lengths")
