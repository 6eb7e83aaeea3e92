"""The stage of text features: there where the prior reads captions by an encoder with weights, and nowhere else."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from old_workspace import unpack
from shrunk_smoke import Built

from flextok.model.load import load_prior
from flextok.model.text import TEXT_ENCODERS, TextFeatures, text_encoder
from flextok.provenance import read_provenance
from pipelines import cli

TEXT = ("prior.model.condition=text", "prior.model.context_width=64")
BRAILLE = "prior.model.text_encoder=braille"
FEATURES = {"text_features[scenes/train]", "text_features[scenes/val]"}


class Braille:
    """The hashed words under another name, and another digest for another argument."""

    width = 64

    def __init__(self, argument: str, device: torch.device):
        self.digest, self._words = f"{argument or 'ab'}{'0' * 62}", text_encoder("hashed-words", device)

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        return self._words.encode(texts)


@pytest.fixture(scope="module", autouse=True)
def braille() -> Iterator[None]:
    TEXT_ENCODERS.add("braille", Braille)
    yield
    TEXT_ENCODERS.remove("braille")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return unpack(tmp_path_factory.mktemp("old"))


def why(old: Built, capsys: pytest.CaptureFixture[str], *sets: str) -> dict[str, str]:
    states = old.states(capsys, *TEXT, *sets)
    of_captions = {name: state["reasons"] for name, state in states.items() if name in {*FEATURES, "prior"}}
    return {name: "; ".join(reasons) for name, reasons in of_captions.items() if reasons}


def test_features_are_a_stage_of_their_own_and_the_prior_reads_them(old: Built, capsys) -> None:
    # Words are hashed in place.
    assert not FEATURES & set(old.states(capsys, *TEXT)) and set(why(old, capsys)) == {"prior"}
    found = why(old, capsys, BRAILLE)
    assert set(found) == {*FEATURES, "prior"} and {found[name] for name in FEATURES} == {"it was never made"}
    select = ["--select", "text_features,prior"]
    assert cli.run(["run", *select, *old.arguments(*TEXT, BRAILLE)]) == 0
    assert why(old, capsys, BRAILLE) == {}

    (prior,) = (
        path
        for path in old.workspace.glob("checkpoints/prior/[!.]*")
        if "braille" in (path / "config.yaml").read_text()
    )
    assert load_prior(str(prior)).config.text_encoder_digest == f"ab{'0' * 62}"
    inputs = read_provenance(str(prior))["inputs"]
    assert [item["kind"] for item in inputs] == ["tokens", "tokens", "text_features", "text_features"]

    # Another encoder makes both anew; going back to words leaves the prior alone.
    other = why(old, capsys, f"{BRAILLE}:cd")
    assert set(other) == {*FEATURES, "prior"} and all(
        '"braille" -> "braille:cd"' in reason for reason in other.values()
    )
    assert set(why(old, capsys)) == {"prior"} and "not depend on text_features any more" in why(old, capsys)["prior"]


def test_the_commands_know_features(old: Built, capsys) -> None:
    (made,) = old.workspace.glob(f"text_features/scenes/val/ab{'0' * 62}")
    digest = read_provenance(str(made))["digest"]
    capsys.readouterr()
    for command in ("inspect", "verify", "lineage"):
        assert cli.run([command, "--json", str(made)]) == 0
    shown = capsys.readouterr().out
    assert f'"digest": "{digest}"' in shown and '"encoder_name": "braille"' in shown and '"problems": []' in shown
    corpus = old.workspace / "corpora" / "scenes" / "val"
    before = (made / "manifest.json").read_bytes()
    assert cli.run(["encode-text", str(corpus), str(made), "--encoder", "braille"]) == 0
    assert (made / "manifest.json").read_bytes() == before and capsys.readouterr().out.strip() == str(made)
    assert cli.run(["encode-text", str(corpus), str(made), "--encoder", "braille:cd"]) == 2
    assert "found those of braille, ab0000" in capsys.readouterr().err
    assert cli.run(["prune", "--json", *old.arguments()[2:]]) == 0
    assert str(made) in {item["uri"] for item in json.loads(capsys.readouterr().out)["artifacts"]}
    (shard,) = list(made.glob("*.safetensors"))[:1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli.run(["verify", str(made)]) == 1 and "run `flextok encode-text` again" in capsys.readouterr().err
    assert Path(made).is_dir()
