"""Profiles load strictly, and a stage's content follows exactly the settings it reads."""

from pathlib import Path

import pytest

from flextok import storage
from flextok.aliases import promote
from flextok.data.scenes import draw_scene
from flextok.errors import UsageError
from flextok.provenance import make_provenance
from pipelines.recipe import load_recipe, profile_names
from pipelines.recorded import recorded_content
from pipelines.stages import STAGES

PROFILES = ["imagenet256", "imagenet256-small", "photos", "smoke", "text-image"]


def changed_stages(*sets: str) -> set[str]:
    before, after = load_recipe("smoke"), load_recipe("smoke", sets)
    return {stage.name for stage in STAGES if stage.content(before) != stage.content(after)}


def test_all_profiles_are_known():
    assert profile_names() == PROFILES


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads_and_refuses_a_mistyped_key_anywhere(profile: str):
    recipe = load_recipe(profile)
    assert recipe.name == profile
    assert recipe.tokenizer_config().registers == recipe.tokenizer.model.registers
    for wrong, right in [
        ("imagesize=3", "image_size"),
        ("tokenizer.train.step=3", "tokenizer.train.steps"),
        ("tokenizer.model.decoder.trunk.wdith=3", "tokenizer.model.decoder.trunk.width"),
        ("latents.model.latent_chanels=3", "latents.model.latent_channels"),
        ("evaluation.samples.temprature=3", "evaluation.samples.temperature"),
        ("compute.num_cpu=3", "compute.num_cpus"),
    ]:
        with pytest.raises(UsageError, match=f"nearest known key is '{right}'"):
            load_recipe(profile, [wrong])


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("tokenizer.train.optimizer.lr=1e-4", lambda r: r.tokenizer.train.optimizer.lr == 1e-4),
        ("tokenizer.model.quantizer.levels=[4, 4]", lambda r: r.tokenizer.model.quantizer.levels == (4, 4)),
        ("report.title=A: b", None),
        ("report.title='A: b'", lambda r: r.report.title == "A: b"),
        ("corpus.label_csv=null", lambda r: r.corpus.label_csv is None),
        ("latents={model: {kind: conv, channels: 8}, train: {steps: 1}}", lambda r: r.latents.model.channels == 8),
    ],
)
def test_set_reads_values_as_yaml(assignment: str, read):
    if read is None:  # a mapping where a text is wanted
        with pytest.raises(UsageError, match=r"report\.title"):
            load_recipe("smoke", [assignment])
    else:
        assert read(load_recipe("smoke", [assignment]))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("image_size=30", "image_size 30 is not a multiple of latents factor \\* patch_size = 8"),
        ("tokenizer.train.steps=0", "tokenizer.train.steps"),
        ("tokenizer.model.quantizer.levels=[1]", "levels"),
        ("latents.train=null", "exactly one of 'train' and 'pretrained'"),
        ("name=a b", "name"),
        ("noequals", "expected --set dotted.key=value"),
        ("a..b=1", "expected --set dotted.key=value"),
        ("report.title=[1", "expected a YAML value"),
        ("name.x=1", "'name' is the value 'smoke'"),
    ],
)
def test_wrong_settings_end_in_one_line(assignment: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe("smoke", [assignment])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "expected YAML"),
        ("- a", "expected a mapping"),
        ("name: a\nname: b\n", "the key 'name' stands twice"),
        ("name: mine\n", "is required"),
        ("name: !!python/object/apply:os.system [ls]\n", "expected YAML"),
    ],
)
def test_a_faulty_profile_file_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_an_unknown_profile_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'smoke'"):
        load_recipe("smokee")
    with pytest.raises(UsageError, match=r"found none at nowhere\.yaml"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("assignment", "stages"),
    [
        ("report.title=X", {"report"}),
        ("tokenizer.train.steps=5000", {"tokenizer"}),
        ("latents.train.steps=3", {"latents"}),
        ("prior.train.steps=3", {"prior"}),
        ("tokens.keep=3", {"token_shards"}),
        ("tokens.batch_size=3", set()),
        ("evaluation.batch_size=3", set()),
        ("evaluation.samples.num=3", {"samples", "fid"}),
        ("evaluation.extractor=random_conv", {"reference", "reconstructions", "fid"}),
        ("evaluation.steps=3", {"reconstructions", "samples", "fid"}),
        ("corpus.shard_samples=7", {"image_shards"}),
        ("corpus.scenes.seed=7", {"corpus", "image_shards"}),
        ("image_size=64", {"latents", "tokenizer", "reference"}),
        ("compute={train_workers: 0, num_cpus: 1, tokenize_actors: [1, 1]}", set()),
    ],
)
def test_a_setting_makes_only_the_stages_that_read_it_stale(assignment: str, stages: set[str]):
    assert changed_stages(assignment) == stages


def test_every_section_but_the_operational_ones_is_read_by_a_stage():
    recipe = load_recipe("smoke")
    sections = {dotted.split(".")[0] for stage in STAGES for dotted in stage.settings(recipe)}
    assert sections == set(load_recipe("smoke").model_dump()) - {"name", "compute", "automation"}


def test_the_demo_says_that_some_of_its_held_out_scenes_are_in_train():
    """Scenes differ in little; without the setting the whole demo would end in front of its evaluation."""
    recipe = load_recipe("smoke")
    scenes = recipe.corpus.scenes
    train, val = (
        [draw_scene(scenes, split, index).png for index in range(scenes.samples(split))] for split in ("train", "val")
    )
    seen = set(train)
    assert len([png for png in val if png in seen]) == 46
    assert recipe.evaluation.allow_training_images


def test_a_tokenizer_follows_the_digest_of_the_checkpoint_that_it_begins_from(tmp_path: Path):
    """Another one promoted is another content, and what was recorded still reads as a recipe's."""
    recipe = load_recipe("smoke", [f"tokenizer.init_from.checkpoint={tmp_path}@best"])
    tokenizer, found = STAGES["tokenizer"], []
    assert tokenizer.content(recipe)["tokenizer"]["init_from"]["digest"] is None  # nothing is there yet
    for digest in ("a" * 64, "b" * 64):
        url = str(tmp_path / digest)
        storage.write_bytes(f"{url}/model.safetensors", b"")
        storage.write_json(f"{url}/provenance.json", make_provenance("tokenizer", digest, [], {}, url))
        promote(str(tmp_path), digest, "best")
        found.append(tokenizer.content(recipe))
        assert found[-1]["tokenizer"]["init_from"]["digest"] == digest
    assert recorded_content(tokenizer, recipe, found[0], {}) == found[0] != found[1]
    assert changed_stages(f"tokenizer.init_from.checkpoint={tmp_path}@best") == {"tokenizer"}
