"""Every setting either decides a result, and then some stage's version follows it, or it does not, and then nothing does."""

import types
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from old_workspace import unpack
from shrunk_smoke import Built

from flextok import storage
from flextok.config import Config, is_operational, parse_config
from flextok.data.config import CorpusConfig, InputsConfig
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import read_shard_footer
from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.metrics.base import SET_METRICS, SetMetric
from flextok.model.load import tokenizer_spec
from flextok.provenance import newest_artifact
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.tasks import shard_tasks
from flextok.train.autoencoder import AutoencoderJob
from flextok.train.config import PriorRecipe
from flextok.train.job import run_url
from flextok.train.prior import PriorJob
from flextok.train.tokenizer import TokenizerJob
from pipelines.defs.data import corpus_version
from pipelines.recipe import Recipe, load_recipe, profile_names
from pipelines.stages import STAGES

TOY_METRIC = "toy_metric_of_settings"
ALIGNMENT = {"teacher": {"kind": "random_convolution"}}
# Members of unions that no profile names.
VARIANTS = [
    "tokens.length={kind: threshold, eps: 0.1}",
    "tokens.length={kind: fixed, tokens: 3}",
    "corpus.sources=[{url: a, weight: 2}, {url: b}]",
    "latents={model: {kind: autoencoder_kl, block_out_channels: [32, 32, 32]}, train: {steps: 10}}",
]
TRAINING = (
    "tokenizer.train.decoder.alignment={teacher: {kind: efficientnet_lite0}}",
    "tokenizer.train.optimizer.schedule={kind: wsd}",
    "latents.train.augmentation.crop=[0.5, 0.9]",
    "latents.train.perceptual={}",
    "latents.train.discriminator={}",
    "tokenizer.train.validate_every=5",
    f"tokenizer.init_from={{checkpoint: x, digest: '{'0' * 64}', freeze: [encoder]}}",
)
CASES = [
    *((profile, ()) for profile in profile_names()),
    *(("smoke", (variant,)) for variant in VARIANTS),
    ("smoke", TRAINING),
]
CORPORA = {load_recipe(profile).corpus.name for profile in profile_names()}
OPERATIONAL = {
    "name", "corpus.name", "corpus.max_reject_fraction", "tokens.batch_size", "tokens.max_reject_fraction",
    "tokens.corpora",
    "evaluation.batch_size", "evaluation.allow_training_images",
    *(f"{part}.train.{name}" for part in ("latents", "tokenizer", "prior")
      for name in ("log_every", "checkpoint_every", "keep_states", "validate_every", "validation_samples",
                   "gradient_accumulation_steps", "sinks")),
    "tokenizer.train.pictures", "tokenizer.train.validate_fd",
}  # fmt: skip


def leaves(config: Config, prefix: tuple = (), operational: bool = False) -> Iterator[tuple[tuple, Any, Any, bool]]:
    """(path, value, annotation, whether it is operational) of every setting below `config`."""
    for name, field in type(config).model_fields.items():
        value, path = getattr(config, name), (*prefix, name)
        marked = operational or is_operational(type(config), name)
        if isinstance(value, Config):
            yield from leaves(value, path, marked)
        elif isinstance(value, tuple) and value and isinstance(value[0], Config):
            for index, item in enumerate(value):
                yield from leaves(item, (*path, index), marked)
        else:
            yield path, value, field.annotation, marked


def others(value: Any, annotation: Any) -> Iterator[Any]:
    """Other values that a setting might have."""
    if get_origin(annotation) is Literal:
        yield from (choice for choice in get_args(annotation) if choice != value)
    elif get_origin(annotation) in (types.UnionType, None) and value is None:
        yield from (
            1,
            64,
            0.5,
            "x",
            "0" * 64,
            [2, 2],
            [0.5, 1],
            {"steps": 1},
            {"from_step": 1},
            ALIGNMENT,
            "0 3 * * *",
            "15m",
        )
        yield from ({"shares": [0.5], "ranks": [2]}, {"metric": "mae", "threshold": 0.1})
        yield from ({"patience": 1}, {"metric": "val/loss"}, {"scales": 2}, {"layers": 2}, {"every": 1}, {"images": 2})
        yield from ({"guidance": [1.5]}, {"path": "x", "sha256": "0" * 64}, {"checkpoint": "x"})
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value + 100, value * 2, value / 2, value + 0.01, value - 0.01)
        if isinstance(value, int):
            yield from (value // 2, value - 1)
    elif isinstance(value, str):
        yield from (value + "x", "folder", "mse", TOY_METRIC, "Europe/Berlin", "15m", "f" * 64, "uniform")
    elif isinstance(value, dict):
        yield {**value, "flow": 2.0}
        yield {**value, "report": "7d"}
        yield from ({**value, name: 2.0} for name in CORPORA)
    elif value == ():
        yield [{"url": "elsewhere"}]
        yield [{"name": "other"}]
        yield ["x"]
        yield ["jpeg"]
        yield from ([{"metric": name, "path": "x", "sha256": "0" * 64}] for name in ("lpips_vgg", "clip_score"))
        yield ["class_accuracy"]
        yield [{"kind": "template"}]
        yield [0.5]
        yield ["tensorboard"]
    else:
        (inner, *_) = get_args(annotation) or (Any,)
        for item in others(value[0], inner):
            yield [item, *value[1:]]
        yield [item * 2 for item in value] if isinstance(value[0], int) else value[1:]


def changed(recipe: Recipe, path: tuple, value: Any, annotation: Any) -> Recipe | None:
    """The recipe with another value at `path`, None where none of those tried goes with the rest."""
    for other in others(value, annotation):
        values = recipe.model_dump(mode="json")
        *parents, last = path
        section: Any = values
        for name in parents:
            section = section[name]
        section[last] = other
        try:
            found = parse_config(Recipe, values, "test")
        except UsageError:
            continue
        if found != recipe:
            return found
    return None


def versions(recipe: Recipe) -> dict[str, str]:
    """What Dagster compares: of a corpus, the data version that its listing gets."""
    return {stage.name: stage.code_version(recipe) for stage in STAGES} | {
        "data version": corpus_version(recipe.corpus, "")
    }


@pytest.fixture(scope="module", autouse=True)
def toy_metric() -> Iterator[None]:
    """A second metric of sets: with one there is nothing else that a recipe could name."""
    SET_METRICS.register(SetMetric(TOY_METRIC, "toy", "", "lower", "statistics", lambda *_: 0.0, lambda _: TOY_METRIC))
    yield
    SET_METRICS.remove(TOY_METRIC)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return unpack(tmp_path_factory.mktemp("old"))


class Jobs:
    """What the jobs of a recipe are known by, on the artifacts of a workspace."""

    def __init__(self, root: str):
        self.corpus, self.val = (f"{root}/corpora/scenes/{split}" for split in ("train", "val"))
        vae, tokenizer = (str(newest_artifact(f"{root}/checkpoints/{kind}")) for kind in ("vae", "tokenizer"))
        self.tokens = [str(newest_artifact(f"{root}/tokens/scenes/{split}")) for split in ("train", "val")]
        self.vae, self.spec, self.out = vae, tokenizer_spec(tokenizer), f"{root}/out"

    def known_by(self, recipe: Recipe) -> dict[str, Any]:
        jobs: list[Any] = [
            TokenizerJob(recipe.tokenizer, self.vae, self.corpus, recipe.image_size, self.out, None),
            PriorJob(recipe.prior.part(PriorRecipe), ((self.tokens[0], 1.0),), self.tokens[1], self.out),
        ]
        if recipe.latents.train is not None:
            jobs.append(AutoencoderJob(recipe.latents, recipe.latents.train, self.corpus, recipe.image_size, self.out))
        tasks = shard_tasks(Corpus.open(self.corpus), self.spec, self.out, recipe.tokens)
        return {
            **{job.label: run_url(job) for job in jobs},
            "tokens": [task.meta.fingerprint for task in tasks],
            "evaluation": recipe.evaluation.content(),
        }


@pytest.mark.parametrize(("profile", "sets"), CASES)
def test_what_decides_moves_a_stage_and_what_does_not_moves_nothing(profile: str, sets: tuple[str, ...], old: Built):
    recipe = load_recipe(profile, sets)
    jobs, before = Jobs(str(old.workspace)), versions(recipe)
    known = jobs.known_by(recipe)
    untried = []
    for path, value, annotation, operational in leaves(recipe):
        dotted = ".".join(map(str, path))
        assert operational == (dotted in OPERATIONAL or dotted.startswith(("compute.", "automation."))), dotted
        if get_origin(annotation) is Literal and len(get_args(annotation)) == 1:
            continue  # the kind of a member, and what else has no other value
        other = changed(recipe, path, value, annotation)
        if other is None:
            untried.append(dotted)
        elif operational:
            assert versions(other) == before, dotted
            assert jobs.known_by(other) == known, dotted
        else:
            assert versions(other) != before, dotted
    # What goes with one choice of the rest only is tried in another profile.
    elsewhere = ("latents.train", "latents.pretrained", "latents.pretrained_sha256", "tokenizer.train.validate_fd")
    assert all(name.endswith(".kind") or name in elsewhere for name in untried), untried


@pytest.mark.parametrize("stage", ["reconstructions", "samples", "fid"])
def test_the_precision_of_an_evaluation_decides_its_numbers(stage: str):
    before, after = load_recipe("smoke"), load_recipe("smoke", ["evaluation.precision=bfloat16"])
    assert STAGES[stage].code_version(before) != STAGES[stage].code_version(after)


def test_tokens_that_were_finished_before_settings_were_marked_are_found_finished(old: Built):
    recipe, jobs = load_recipe(str(old.profile)), Jobs(str(old.workspace))
    for task in shard_tasks(Corpus.open(jobs.corpus), jobs.spec, jobs.out, recipe.tokens):
        stored = read_shard_footer(storage.join(jobs.tokens[0], f"{task.name}.parquet"))
        assert stored.meta.fingerprint == task.meta.fingerprint


def test_the_content_of_default_settings_is_what_it_was_before_they_were_marked():
    """Constants of commit c63be65, as they went into the fingerprints of shards and tokens."""
    config = CorpusConfig()
    shards = {name: value for name, value in config.content().items() if name not in InputsConfig.model_fields}
    assert digest_of(shards) == "70d2b61028a12c21905c2d0beeb934936e544a1c1ae68f6f737b9b649dd2843c"
    tokens = TokenizeConfig.model_validate({"batch_size": 3, "max_reject_fraction": 0.5})
    assert digest_of(tokens.content()) == "98a5579844f39799e5fe86409774a97c6353c6c943df10f3de03987ae9121fdd"
