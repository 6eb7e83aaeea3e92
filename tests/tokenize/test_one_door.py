"""One door from a corpus' rows to crops: what sharding let in, every stage takes; what changed since, every stage refuses."""

import dataclasses
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.pictures import Pictures, crops_of
from flextok.data.corpus.reader import Corpus
from flextok.data.corpus.verify import verify_corpus
from flextok.data.images import center_crop
from flextok.data.tokens import TokenStore, verify_tokens
from flextok.errors import FlextokError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus
from flextok.tokenize.verify import verify_encoding
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import AutoencoderRecipe, TokenizerRecipe
from flextok.train.tokenizer import train_tokenizer

PICTURES = 24
SIZE_PX = 16
COMPUTE = ComputeConfig(train_workers=0, num_cpus=2, tokenize_actors=(1, 1))
TRAIN = {
    "steps": 3,
    "batch_size": 8,
    "log_every": 1,
    "optimizer": {"lr": 1e-3, "warmup_steps": 1},
    "precision": "float32",
}
TRUNK = {"width": 32, "depth": 1, "head_dim": 16}
AUTOENCODER = AutoencoderRecipe.model_validate(
    {"model": {"kind": "conv", "channels": 8, "blocks": 1, "latent_channels": 4, "factor": 4}, "train": TRAIN}
)
TOKENIZER = TokenizerRecipe.model_validate(
    {
        "model": {
            "registers": 4,
            "encoder": TRUNK,
            "decoder": {"trunk": TRUNK},
            "quantizer": {"levels": [5, 5]},
            "patch_size": 2,
        },
        "train": TRAIN,
    }
)
TOKENIZE = TokenizeConfig(batch_size=8, max_reject_fraction=0)
EVALUATION = EvaluationConfig(
    steps=1, guidance=1.0, extractor="random_conv", batch_size=8, grid_images=1, allow_training_images=True
)


@dataclasses.dataclass(frozen=True)
class Made:
    """A corpus of pictures below the usual limits, their pixels in file order, and what was trained on it."""

    corpus: str
    pixels: list[np.ndarray]
    autoencoder: str
    tokenizer: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("door")
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (8, 12, 3), np.uint8) for _ in range(PICTURES)]
    (root / "source").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(root / "source" / f"{number:02d}.bmp")
    config = CorpusConfig(
        name="small", source=str(root / "source"), format="folder", min_side=4, shard_samples=PICTURES
    )
    corpus = shard_corpus(config, "all", str(root / "corpus"), progress=False).url
    autoencoder = train_autoencoder(AUTOENCODER, corpus, SIZE_PX, str(root / "vae"), COMPUTE).url
    tokenizer = train_tokenizer(TOKENIZER, autoencoder, corpus, SIZE_PX, str(root / "tokenizer"), COMPUTE).url
    return Made(corpus, pixels, autoencoder, tokenizer)


def test_a_corpus_below_the_usual_limits_passes_every_stage(made: Made, ray_session, tmp_path: Path) -> None:
    summary = tokenize_corpus(made.corpus, made.tokenizer, str(tmp_path / "t"), TOKENIZE, COMPUTE, progress=False)
    assert (summary.rows, summary.rejects) == (PICTURES, 0)
    assert verify_tokens(summary.url, made.corpus) == []
    assert verify_encoding(summary.url, PICTURES) == []
    assert set(TokenStore.open(summary.url).to_arrow()["height"].to_pylist()) == {8}
    evaluated = evaluate_reconstruction(made.tokenizer, made.corpus, str(tmp_path / "e"), EVALUATION)
    assert 0 < evaluated.value("mae", 4) < 1
    assert verify_corpus(made.corpus) == []


def test_the_door_gives_the_crops_of_the_pictures(made: Made) -> None:
    corpus = Corpus.open(made.corpus)
    pictures = Pictures(corpus)
    sources = corpus.index("source")["source"].to_list()
    found = list(crops_of([pictures[row] for row in range(len(pictures))], SIZE_PX))
    assert [picture.key for picture, _ in found] == corpus.index("key")["key"].to_list()
    for source, (_, crop) in zip(sources, found, strict=True):
        np.testing.assert_array_equal(crop, center_crop(made.pixels[int(Path(source).stem)], SIZE_PX))


@pytest.fixture
def changed(made: Made, tmp_path: Path) -> tuple[str, str]:
    """The corpus with one pixel of one picture changed, so that it still decodes; and that picture's key."""
    corpus = Path(shutil.copytree(made.corpus, tmp_path / "changed"))
    (tar,) = (corpus / "shards").glob("*.tar")
    with tarfile.open(tar) as archive:
        member = [item for item in archive.getmembers() if item.name.endswith(".bmp")][7]
    content = bytearray(tar.read_bytes())
    content[member.offset_data + member.size - 1] ^= 1
    tar.write_bytes(content)
    return str(corpus), Path(member.name).stem


def test_every_stage_refuses_a_picture_that_changed_since_it_was_sharded(
    made: Made, changed: tuple[str, str], ray_session, tmp_path: Path
) -> None:
    corpus, key = changed
    stages = {
        "autoencoder": lambda: train_autoencoder(AUTOENCODER, corpus, SIZE_PX, str(tmp_path / "v"), COMPUTE),
        "tokenizer": lambda: train_tokenizer(
            TOKENIZER, made.autoencoder, corpus, SIZE_PX, str(tmp_path / "k"), COMPUTE
        ),
        "tokens": lambda: tokenize_corpus(
            corpus, made.tokenizer, str(tmp_path / "t"), TOKENIZE, COMPUTE, progress=False
        ),
        "evaluation": lambda: evaluate_reconstruction(made.tokenizer, corpus, str(tmp_path / "e"), EVALUATION),
    }
    for stage, run in stages.items():
        with pytest.raises(FlextokError) as refused:
            run()
        assert key in str(refused.value), stage
        assert "\n" not in str(refused.value), stage
    assert any(key in line for line in verify_corpus(corpus))
