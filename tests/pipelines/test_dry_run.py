"""The plan of a profile needs neither its data nor its memory."""

import pytest

from pipelines import cli
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe


@pytest.mark.parametrize(
    ("profile", "tokenizer", "prior_blocks"),
    [("imagenet256", 2540.9e6, 1.33e9), ("imagenet256-small", 341.7e6, 201e6)],
)
def test_published_sizes(profile: str, tokenizer: float, prior_blocks: float):
    plan = make_plan(load_recipe(profile), [])
    assert plan["models"]["tokenizer"]["parameters"]["total"] == pytest.approx(tokenizer, abs=0.05e6)
    assert plan["models"]["prior"]["parameters"]["blocks"] == pytest.approx(prior_blocks, rel=0.01)
    assert plan["tokens"] == {
        "tokens_per_image": 256,
        "vocab_size": 64000,
        "bits_per_image": 4087,
        "bytes_per_image": 512,
    }
    assert plan["corpus"]["sources"][0]["found"] is False


def test_a_captioned_profile_has_a_prior_without_classes():
    parameters = make_plan(load_recipe("text-image"), [])["models"]["prior"]["parameters"]
    assert "context" in parameters and "classes" not in parameters


def test_the_drawn_corpus_is_planned_with_its_counts():
    plan = make_plan(load_recipe("smoke", ["corpus.scenes.val_samples=7"]), [])
    assert plan["corpus"]["samples"]["val"] == 7 and plan["corpus"]["sources"][0]["found"] is True


def test_dry_run_prints_the_plan_and_leaves_no_trace(tmp_path, capsys):
    workspace = tmp_path / "workspace"
    assert cli.run(["run", "--profile", "imagenet256", "--dry-run", "--workspace", str(workspace)]) == 0
    shown = capsys.readouterr().out
    assert "2,540.9 M parameters" in shown and "not there: set corpus.source" in shown and "1 GPU each" in shown
    assert not workspace.exists()
