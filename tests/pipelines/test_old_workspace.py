"""A workspace that earlier code made is as good as before: nothing in it is stale, and everything opens."""

import json
from pathlib import Path

import numpy as np
import pytest
from old_workspace import unpack
from shrunk_smoke import Built

import flextok
from flextok import provenance
from pipelines import cli
from pipelines.recipe import load_recipe
from pipelines.recorded import recorded_content
from pipelines.stages import STAGES

KINDS = {
    "corpus", "tokens", "samples", "vae", "tokenizer", "prior", "reference", "reconstructions", "generation", "report",
}  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """With what is new since, a stage of its own."""
    built = unpack(tmp_path_factory.mktemp("old"))
    assert cli.run(["refresh", *built.arguments()]) == 0
    return built


@pytest.fixture(scope="module")
def artifacts(old: Built) -> dict[str, str]:
    """A folder of each kind, and the digest on record by folder."""
    found = {}
    for name in provenance.DOCUMENTS:
        for path in old.workspace.rglob(name):
            found[provenance.read_provenance(str(path.parent))["kind"]] = str(path.parent)
    assert set(found) == KINDS
    return found


def why(old: Built, capsys, *sets: str) -> dict[str, list[str]]:
    """The reasons of what must run, by label."""
    states = old.states(capsys, *sets)
    assert len(states) == 14
    return {label: state["reasons"] for label, state in states.items() if state["status"] != "fresh"}


def test_a_refresh_makes_only_what_is_new(tmp_path: Path, capsys):
    built = unpack(tmp_path)
    waiting: dict[str, list[str]] = {name: [] for name in ("reconstructions", "fid", "report")}
    assert why(built, capsys) == {"reference": ["it was never made"], **waiting}
    assert cli.run(["refresh", *built.arguments()]) == 0
    shown = capsys.readouterr().err
    assert [line.split(": start")[0].split()[-1] for line in shown.splitlines() if ": start" in line] == ["reference"]
    assert why(built, capsys) == {}


def test_nothing_is_stale_and_a_refresh_runs_nothing(old: Built, capsys):
    assert why(old, capsys) == {}
    assert cli.run(["refresh", *old.arguments()]) == 0
    shown = capsys.readouterr()
    assert "nothing to do: every asset is fresh" in shown.err and ": start" not in shown.err
    assert Path(shown.out.strip()).is_file()


@pytest.mark.parametrize(
    "change",
    [
        "tokenizer.train.log_every=7",
        "latents.train.checkpoint_every=7",
        "prior.train.validation_samples=7",
        "tokens.max_reject_fraction=0.5",
        "corpus.max_reject_fraction=0.5",
        "evaluation.batch_size=3",
        "compute.threads=2",
        "evaluation.precision=float32",
    ],
)
def test_what_decides_nothing_makes_nothing_stale(old: Built, capsys, change: str):
    assert why(old, capsys, change) == {}


@pytest.mark.parametrize(
    ("change", "stale", "reason"),
    [
        ("evaluation.precision=bfloat16", {"reconstructions", "samples", "fid"}, '"float32" -> "bfloat16"'),
        ("tokenizer.train.steps=4", {"tokenizer"}, "tokenizer.train.steps: 3 -> 4"),
        ("tokenizer.model.keep_mode=uniform", {"tokenizer"}, 'keep_mode: "pow2" -> "uniform"'),
        ("latents.model.latent_noise=0.1", {"latents"}, "latent_noise: 0.3 -> 0.1"),
        ("prior.model.dropout=0.2", {"prior"}, "dropout: 0.1 -> 0.2"),
        ("evaluation.samples.num=8", {"samples", "fid"}, "num: 16 -> 8"),
        ("report.title=Other", {"report"}, '-> "Other"'),
    ],
)
def test_what_decides_is_compared_with_what_was_recorded(old: Built, capsys, change: str, stale: set[str], reason: str):
    found = {label: reasons for label, reasons in why(old, capsys, change).items() if reasons}
    assert set(found) == stale
    assert all(reason in " ".join(reasons) for reasons in found.values()), found


def test_a_stage_with_another_version_is_stale_whatever_its_settings(old: Built, capsys):
    import dataclasses

    row = STAGES["report"]
    STAGES.remove("report")
    STAGES.add("report", dataclasses.replace(row, version=row.version + 1))
    try:
        assert why(old, capsys) == {"report": ["its code has another version"]}
    finally:
        STAGES.remove("report")
        STAGES.add("report", row)


def test_samples_of_an_automatic_precision_cannot_be_told_apart(old: Built):
    """They name the data type that "auto" came to, not the word."""
    recipe = load_recipe(str(old.profile), ["evaluation.precision=auto"])
    stage = STAGES["samples"]
    record = {name: value for name, value in stage.content(recipe).items() if name != "evaluation.precision"}
    assert recorded_content(stage, recipe, record, {"decoder": {"dtype": "float32"}}) == stage.content(recipe)
    explicit = load_recipe(str(old.profile), ["evaluation.precision=bfloat16"])
    assert recorded_content(stage, explicit, record, {"decoder": {"dtype": "float32"}}) != stage.content(explicit)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_artifacts_are_inspected_verified_and_traced(artifacts: dict[str, str], kind: str, capsys):
    path = artifacts[kind]
    digest = provenance.read_provenance(path)["digest"]
    assert cli.run(["inspect", "--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == digest
    assert cli.run(["verify", "--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    assert cli.run(["lineage", "--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["found"]


def test_models_and_tokens_open(artifacts: dict[str, str]):
    """With the digests on record, and the tokens that the tokenizer gave then."""
    tokenizer, prior = flextok.load_tokenizer(artifacts["tokenizer"]), flextok.load_prior(artifacts["prior"])
    assert tokenizer.digest == provenance.read_provenance(artifacts["tokenizer"])["digest"]
    assert prior.digest == provenance.read_provenance(artifacts["prior"])["digest"]
    store = flextok.TokenStore.open(artifacts["tokens"])
    assert store.tokenizer == tokenizer.digest and prior.config.tokenizer == tokenizer.digest
    assert tokenizer.detokenize(store[0].ids[None].astype(np.int64), steps=1).shape == (1, 3, 32, 32)
    assert prior.generate(labels=[3], seed=0).shape == (1, tokenizer.num_tokens)
    assert cli.run(["verify", artifacts["tokens"], "--decode", "5"]) == 0
