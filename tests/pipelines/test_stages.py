"""The register of stages: a stage is one row, and everything that speaks of stages reads it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from old_workspace import unpack
from shrunk_smoke import Built

from flextok import storage
from flextok.config import Config, Operational
from flextok.data.corpus.reader import Corpus
from flextok.digests import digest_of
from flextok.provenance import artifact_input, make_provenance
from pipelines import cli
from pipelines.definitions import build_definitions
from pipelines.recipe import load_recipe
from pipelines.stage import Check, Dep, Made, Stage, StageRun, register
from pipelines.stages import STAGES, stage_table


class Thumbnails(Config):
    side: int = 8
    threads: Operational[int] = 1


def make_thumbnails(run: StageRun) -> Made:
    corpus_url = run.latest("image_shards", "val")
    keys = Corpus.open(corpus_url).index("key")["key"].to_list()
    digest = digest_of(keys)
    url = run.workspace.url("thumbnails", digest)
    block = make_provenance("thumbnails", digest, [artifact_input(corpus_url)], Thumbnails().content(), url)
    storage.write_json(storage.join(url, "provenance.json"), block)
    return Made(digest, url, {"pictures": len(keys)}, {"some": "" if keys else "there is none"})


@pytest.fixture
def thumbnails() -> Iterator[dict[str, Thumbnails]]:
    """A stage that comes from here, and its settings."""
    settings = {"thumbnails": Thumbnails()}
    register(
        Stage(
            "thumbnails",
            "small pictures",
            "extra",
            ("python",),
            version=1,
            settings=lambda recipe: settings,
            deps=(Dep("image_shards", ("val",)),),
            run=make_thumbnails,
            checks=(Check("some", "There are some.", blocking=True),),
            folder="thumbnails/<digest>/",
        )
    )
    yield settings
    STAGES.remove("thumbnails")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return unpack(tmp_path_factory.mktemp("old"))


def test_a_new_row_is_an_asset_a_status_a_selection_and_part_of_a_refresh(
    old: Built, thumbnails: dict[str, Thumbnails], capsys
):
    graph = build_definitions([load_recipe(str(old.profile))], str(old.workspace)).resolve_asset_graph()
    (key,) = (key for key in graph.get_all_asset_keys() if key.path[-1] == "thumbnails")
    assert {parent.path[-1] for parent in graph.get(key).parent_keys} == {"image_shards"}
    assert graph.get(key).group_name == "extra" and "| `thumbnails` | small pictures |" in stage_table()

    assert old.states(capsys)["thumbnails"]["reasons"] == ["it was never made"]
    assert cli.run(["run", "--select", "thumbnails", *old.arguments()]) == 0
    assert "thumbnails: done" in capsys.readouterr().err
    state = old.states(capsys)["thumbnails"]
    assert state["status"] == "fresh" and Path(state["uri"]).parent == old.workspace / "thumbnails"
    assert cli.run(["lineage", "--json", state["uri"]]) == 0
    assert [item["kind"] for item in json.loads(capsys.readouterr().out)["inputs"]] == ["corpus"]

    thumbnails["thumbnails"] = Thumbnails(threads=3)
    assert old.states(capsys)["thumbnails"]["status"] == "fresh"
    thumbnails["thumbnails"] = Thumbnails(side=16)
    assert old.states(capsys)["thumbnails"]["reasons"] == ["settings changed: thumbnails.side: 8 -> 16"]
    assert cli.run(["refresh", *old.arguments()]) == 0
    assert "refreshed 2: reference, thumbnails" in capsys.readouterr().err  # an old workspace has no reference set
    assert {item["status"] for item in old.states(capsys).values()} == {"fresh"}


def test_a_name_is_given_once(thumbnails: dict[str, Thumbnails]):
    with pytest.raises(ValueError, match="a second one"):
        register(Stage("thumbnails", "others", "x", (), 1, lambda recipe: {}, make_thumbnails))


def test_the_readme_has_the_table_of_stages():
    assert stage_table() in (Path(__file__).parents[2] / "README.md").read_text()


def test_the_tokenizer_reads_held_out_pictures_only_where_they_decide():
    def read(*sets: str) -> tuple[str, ...]:
        recipe = load_recipe("smoke", sets)
        return next(dep.partitions(recipe) for dep in STAGES["tokenizer"].deps if dep.stage == "image_shards")

    assert read() == read("tokenizer.train.validate_every=50") == ("scenes/train",)
    assert read("tokenizer.train.keep_best={}") == ("scenes/train", "scenes/val")
    assert read("tokenizer.train.stop_early={patience: 3}") == ("scenes/train", "scenes/val")


def test_stages_stand_in_an_order_in_which_they_can_be_built():
    known: set[str] = set()
    for stage in STAGES:
        assert {dep.stage for dep in stage.deps} <= known, stage.name
        known.add(stage.name)
