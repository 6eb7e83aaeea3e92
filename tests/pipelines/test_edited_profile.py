"""A corpus that is added to the profile while `flextok ui` is at work, and tokenized by a backfill of the UI."""

import signal
from pathlib import Path

import pytest
import yaml
from dagster_ui import DagsterUI
from flextok_process import END_S, wait_until
from shrunk_smoke import Built

pytestmark = pytest.mark.slow
MORE = {
    "name": "more", "source": "scenes", "splits": ["val"],
    "scenes": {"train_samples": 8, "val_samples": 12, "image_px": 48, "seed": 5},
}  # fmt: skip
SCENES = ["scenes/train", "scenes/val"]
OF_MORE = ["corpus", "image_shards", "token_shards"]


@pytest.fixture
def made(built: Built, tmp_path: Path) -> Built:
    """With a profile of its own, to edit."""
    profile = tmp_path / "own.yaml"
    profile.write_text(built.profile.read_text())
    return Built(profile, built.copied(tmp_path / "w").workspace)


def test_an_added_corpus_is_tokenized_by_a_backfill(made: Built, capsys: pytest.CaptureFixture[str]) -> None:
    ui = DagsterUI(*made.arguments())
    before = made.profile.read_text()
    assert ui.partitions("token_shards") == SCENES

    made.profile.write_text(before + "\nnonsense: 1\n")
    ui.command.wait_for("unknown key 'nonsense'")
    assert ui.partitions("token_shards") == SCENES

    values = yaml.safe_load(before)
    values["tokens"] = {**values.get("tokens", {}), "corpora": [dict(MORE)]}
    made.profile.write_text(yaml.safe_dump(values))
    ui.command.wait_for("the profile was edited: what it says now is in force")
    assert ui.partitions("token_shards") == [*SCENES, "more/val"]

    backfill = ui.backfill(OF_MORE, ["more/val"])
    wait_until(lambda: ui.status_of(backfill) not in ("REQUESTED",))
    assert ui.status_of(backfill) == "COMPLETED_SUCCESS"
    states = made.states(capsys)
    assert {f"{stage}[more/val]" for stage in OF_MORE} <= set(states)
    assert {state["status"] for state in states.values()} == {"fresh"}
    assert ui.out_of_date() == set()

    # Where only one of several corpora is edited, Dagster's pages say what `status` does.
    out_of_date = set()
    for corpus, parts in ((values["corpus"], SCENES), (values["tokens"]["corpora"][0], ["more/val"])):
        corpus["min_side"] = 17
        made.profile.write_text(yaml.safe_dump(values))
        out_of_date = out_of_date | {f"image_shards[{part}]" for part in parts}
        wait_until(lambda expected=out_of_date: ui.out_of_date() == expected, every_s=1)
        assert {label for label, state in made.states(capsys).items() if state["reasons"]} == out_of_date
    assert ui.command.end_by(signal.SIGTERM) <= END_S
    assert not ui.command.left(2 * END_S)
