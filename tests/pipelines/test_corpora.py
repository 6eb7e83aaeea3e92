"""Further corpora: sharded by settings of their own and tokenized by the profile's tokenizer, which is not trained on them."""

from pathlib import Path

import pytest
from PIL import Image
from shrunk_smoke import Built

from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.provenance import read_provenance
from pipelines import cli
from pipelines.recipe import load_recipe

MORE = "{{name: {name}, source: scenes, scenes: {{train_samples: 8, val_samples: {val}, image_px: 48, seed: 5}}, splits: [{splits}]}}"
REST = {"latents", "tokenizer", "reconstructions", "prior", "samples", "fid", "report"}


def corpora(*others: tuple[str, int], splits: str = "val") -> str:
    """The assignment for corpora of these names and numbers of pictures."""
    return f"tokens.corpora=[{', '.join(MORE.format(name=name, val=val, splits=splits) for name, val in others)}]"


@pytest.fixture(scope="module")
def made(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built.copied(tmp_path_factory.mktemp("corpora") / "w")


def stale(made: Built, capsys: pytest.CaptureFixture[str], *sets: str) -> dict[str, str]:
    """Reasons of what must run, by label."""
    states = made.states(capsys, *sets)
    return {label: "; ".join(state["reasons"]) for label, state in states.items() if state["reasons"]}


def test_a_corpus_is_added_tokenized_and_changed_without_touching_the_rest(
    made: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.workspace.rglob("manifest.json")}
    of_more = [f"{stage}[more/val]" for stage in ("corpus", "image_shards", "token_shards")]
    assert stale(made, capsys, corpora(("more", 12))) == dict.fromkeys(of_more, "it was never made")
    assert cli.run(["refresh", *made.arguments(corpora(("more", 12)))]) == 0
    assert f"refreshed 3: {', '.join(of_more)}" in capsys.readouterr().err
    assert before.items() <= {path: path.stat().st_mtime_ns for path in before}.items()

    (tokens,) = made.workspace.glob("tokens/more/val/*")
    store, shards = TokenStore.open(str(tokens)), Corpus.open(str(made.workspace / "corpora/more/val"))
    tokenizer = read_provenance(str(next(made.workspace.glob("checkpoints/tokenizer/[!.]*"))))["digest"]
    assert (len(store), shards.num_samples, store.tokenizer) == (12, 12, tokenizer)

    # Another one beside it, and the size of the first changed: each is out of date by itself.
    found = stale(made, capsys, corpora(("more", 13), ("other", 8)))
    assert set(found) == {
        "corpus[more/val]",
        "image_shards[more/val]",
        *(f"{label[:-10]}[other/val]" for label in of_more),
    }
    assert "val_samples" in found["image_shards[more/val]"]
    # A setting of the profile's own corpus leaves the others as they are.
    found = stale(made, capsys, corpora(("more", 12)), "corpus.min_side=17")
    assert set(found) == {
        f"{stage}[scenes/{split}]" for stage in ("corpus", "image_shards") for split in ("train", "val")
    }
    # So does the end of a corpus.
    assert stale(made, capsys) == {}


def test_the_prior_is_trained_on_several_corpora(made: Built, capsys: pytest.CaptureFixture[str]) -> None:
    sets = corpora(("more", 12), splits="train, val"), "prior.corpora={scenes: 1, more: 3}"
    assert cli.run(["run", "--select", "corpus,image_shards,token_shards,prior", *made.arguments(*sets)]) == 0
    (prior,) = (
        record
        for path in made.workspace.glob("checkpoints/prior/[!.]*")
        if "corpora" not in (record := read_provenance(str(path)))["recipe"] and "weights" in record["recipe"]
    )
    assert prior["recipe"]["weights"] == [1.0, 3.0]
    assert [item["uri"].split("/tokens/")[1].rpartition("/")[0] for item in prior["inputs"]] == [
        "scenes/train", "more/train", "scenes/val",
    ]  # fmt: skip
    assert set(stale(made, capsys, *sets)) == {"samples", "report"}
    # The weights are the prior's alone, and back to its own corpus alone it is what it was.
    other = corpora(("more", 12), splits="train, val"), "prior.corpora={scenes: 1, more: 2}"
    assert stale(made, capsys, *other)["prior"] == "settings changed: prior.corpora.more: 3.0 -> 2.0"
    assert cli.run(["refresh", *made.arguments()]) == 0
    assert stale(made, capsys) == {}


def test_classes_that_differ_are_refused_before_a_training(made: Built, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = made.workspace.parent / "pictures"
    for name in ("cat", "dog"):
        (pictures / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(pictures / name / "a.png")
    sets = (
        f"tokens.corpora=[{{name: pets, source: {pictures}, splits: [all]}}]",
        "prior.corpora={scenes: 1, pets: 1}",
    )
    shards = ["run", "--select", "corpus,image_shards,token_shards", "--partition", "pets/*"]
    assert cli.run([*shards, *made.arguments(*sets)]) == 0
    assert cli.run(["run", "--select", "prior", *made.arguments(*sets)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (
        "expected corpora of the same classes for a class-conditional prior, found that those of scenes and pets"
        in line
    )


def test_one_partition_is_made_by_hand(made: Built, capsys: pytest.CaptureFixture[str]) -> None:
    both = corpora(("more", 12), ("other", 8))
    command = ["run", "--select", "corpus,image_shards", "--partition", "other/*", *made.arguments(both)]
    assert cli.run(command) == 0
    told = capsys.readouterr().err
    assert "image_shards[other/val]: done" in told and "more" not in told and "train" not in told
    assert cli.run(["run", "--select", "image_shards", "--partition", "coco/*", *made.arguments(both)]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: expected a partition of the selected assets like 'coco/*', found scenes/train, scenes/val, more/val, other/val"
    )


def test_what_reads_the_profiles_corpus_reads_no_other(made: Built) -> None:
    from pipelines.execute import open_executor

    recipe = load_recipe(str(made.profile), [corpora(("more", 12))])
    with open_executor(recipe, str(made.workspace), remember=False) as executor:
        graph = executor.graph
        for key in graph.keys:
            if key.path[-1] in REST:
                read = [part for parts in graph.reads(key, None).values() for _, part in parts if part]
                assert all(part.startswith("scenes/") for part in read)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (corpora(("scenes", 8)), "tokens.corpora and corpus need different names, found scenes, scenes"),
        (corpora(("a", 8), ("a", 8)), "need different names, found scenes, a, a"),
        ("tokens.corpora=[{source: scenes}]", "'tokens.corpora.0.name' is required"),
        ("tokens.corpora=[{name: a, splits: [test]}]", "tokens.corpora.0.splits"),
        ("tokens.corpora=[{name: a, sorce: x}]", "the nearest known key is 'tokens.corpora.0.source'"),
        ("prior.corpora={coco: 1}", "prior.corpora: expected corpora with images to train on, of scenes, found 'coco'"),
        ("prior.corpora={scenes: 0}", "prior.corpora.scenes"),
    ],
)
def test_wrong_corpora_end_in_one_line(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")) as caught:
        load_recipe("smoke", [assignment])
    assert "\n" not in str(caught.value)


def test_a_source_that_is_not_there_loses_nothing_else(
    made: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"tokens.corpora=[{{name: gone, source: {tmp_path}/nowhere}}]"
    capsys.readouterr()
    assert cli.run(["refresh", *made.arguments(gone)]) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/nowhere" in line
    assert stale(made, capsys) == {}
