"""The asset graph of every profile loads, and its edges are the ones that staleness must follow."""

import dagster as dg
import pytest

from pipelines.definitions import build_definitions, defs
from pipelines.execute import open_executor
from pipelines.recipe import Recipe, load_recipe, profile_names
from pipelines.stage import stages_of
from pipelines.stages import STAGES

EDGES = {
    "corpus": set(),
    "image_shards": {"corpus"},
    "latents": {"image_shards"},
    "tokenizer": {"latents", "image_shards"},
    "reference": {"image_shards"},
    "reconstructions": {"tokenizer", "image_shards", "reference"},
    "token_shards": {"image_shards", "tokenizer"},
    "prior": {"token_shards"},
    "samples": {"prior", "tokenizer", "image_shards"},
    "fid": {"samples", "tokenizer", "image_shards", "reference"},
    "report": {
        "reconstructions", "fid", "samples", "latents", "tokenizer", "prior", "token_shards", "image_shards",
    },
}  # fmt: skip


def edges(recipe: Recipe) -> dict[str, set[str]]:
    """With features of captions only where the prior reads them by an encoder with weights."""
    if recipe.name == "text-image":
        return {**EDGES, "text_features": {"image_shards"}, "prior": {"token_shards", "text_features"}}
    return EDGES


@pytest.mark.parametrize("profile", profile_names())
def test_definitions_load(profile: str, tmp_path):
    recipe = load_recipe(profile)
    definitions = build_definitions([recipe], str(tmp_path))
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    found = {
        key.path[-1]: {parent.path[-1] for parent in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()
    }
    assert found == edges(recipe)
    assert set(found) == {stage.name for stage in stages_of(recipe)}
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {profile}
    for key in graph.get_all_asset_keys():
        assert graph.get(key).code_version == STAGES[key.path[-1]].code_version(recipe)


def test_the_code_location_reads_its_profile_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXTOK_PROFILE", "photos")
    monkeypatch.setenv("FLEXTOK_SET", "name=mine\ncorpus.name=cats")
    monkeypatch.setenv("FLEXTOK_WORKSPACE", str(tmp_path))
    graph = defs().resolve_asset_graph()
    assert dg.AssetKey(["mine", "report"]) in graph.get_all_asset_keys()
    shards = graph.get(dg.AssetKey(["mine", "image_shards"]))
    assert shards.partitions_def.get_partition_keys() == ["cats/train", "cats/val"]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        (None, list(EDGES)),
        ("prior", ["prior"]),
        ("prior,tokenizer", ["tokenizer", "prior"]),
        ("+latents", ["corpus", "image_shards", "latents"]),
        ("prior+", ["prior", "samples", "fid", "report"]),
        ("group:data", ["corpus", "image_shards"]),
        ('key:"smoke/report" or corpus', ["corpus", "report"]),
        ("* and not report", list(EDGES)[:-1]),
    ],
)
def test_selections_are_read_by_plain_names(expression, names, tmp_path):
    with open_executor(load_recipe("smoke"), str(tmp_path), remember=False) as executor:
        chosen = [key.path[-1] for key in executor.select(expression)]
    assert set(chosen) == set(names) and len(chosen) == len(names)
    assert all(
        chosen.index(parent) < place for place, name in enumerate(chosen) for parent in EDGES[name] & set(chosen)
    )
