"""What a workspace keeps: promote and prune, by a list made by hand and on what the shrunk pipeline made."""

import datetime
import json
import os
import shutil
import socket
from pathlib import Path

import dagster as dg
import pytest
from shrunk_smoke import Built

from flextok import load_tokenizer, storage
from flextok.aliases import promote
from flextok.provenance import make_provenance
from flextok.runtime.lock import locked
from flextok.runtime.lock.holder import Holder
from pipelines import cli, prune
from pipelines.workspace import Workspace

PLACES = {
    "corpus": "corpora/c/train",
    "old vae": "checkpoints/vae/1",
    "vae": "checkpoints/vae/2",
    "old tokenizer": "checkpoints/tokenizer/1",
    "middle tokenizer": "checkpoints/tokenizer/2",
    "tokenizer": "checkpoints/tokenizer/3",
    "old tokens": "tokens/c/train/1",
    "middle tokens": "tokens/c/train/2",
    "tokens": "tokens/c/train/3",
    "old prior": "checkpoints/prior/1",
    "prior": "checkpoints/prior/2",
    "old samples": "samples/1",
    "samples": "samples/2",
    "old evaluation": "evaluation/1",
    "evaluation": "evaluation/2",
    "other split": "corpora/c/val",
}
MADE_OF = {
    "old vae": ["corpus"],
    "vae": ["corpus"],
    "old tokenizer": ["corpus", "old vae"],
    "middle tokenizer": ["corpus", "vae"],
    "tokenizer": ["corpus", "vae"],
    "old tokens": ["corpus", "old tokenizer"],
    "middle tokens": ["corpus", "middle tokenizer"],
    "tokens": ["corpus", "tokenizer"],
    "old prior": ["old tokens"],
    "prior": ["tokens"],
    "old samples": ["old prior", "old tokenizer"],
    "samples": ["prior", "tokenizer"],
    "old evaluation": ["old samples"],
    "evaluation": ["samples"],
}
NEW = {"corpus", "other split", "vae", "tokenizer", "tokens", "prior", "samples", "evaluation"}
BEHIND_OLD_PRIOR = {"old prior", "old tokens", "old tokenizer", "old vae"}
OLDER = "0" * 64
DAY = datetime.timedelta(days=1)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The artifacts above, the first two days old and each next one younger by an hour."""
    place = Workspace(f"{tmp_path}/w")
    for number, (name, path) in enumerate(PLACES.items()):
        inputs = [
            {"kind": PLACES[item].split("/")[-2], "digest": item, "uri": place.url(PLACES[item])}
            for item in MADE_OF.get(name, ())
        ]
        url = place.url(path)
        block = make_provenance(path.split("/")[-2], name, inputs, {}, url)
        made = datetime.datetime.now(datetime.UTC) - 2 * DAY + datetime.timedelta(hours=number)
        storage.write_json(f"{url}/provenance.json", {**block, "created": made.isoformat()})
        storage.write_bytes(f"{url}/shards/content", bytes(100))
    return place


def kept(
    workspace: Workspace, current: set[str], keep_last: int, older_than: datetime.timedelta | None = None
) -> set[str]:
    urls = {workspace.url(PLACES[name]) for name in current}
    return {item.digest for item in prune.judge(workspace, urls, keep_last, older_than) if item.kept}


@pytest.mark.parametrize(
    ("current", "keep_last", "older_than", "expected"),
    [
        (set(), 1, None, NEW),
        (set(), 0, None, set()),
        ({"old prior"}, 0, None, {"corpus"} | BEHIND_OLD_PRIOR),
        ({"old evaluation"}, 1, None, PLACES.keys() - {"middle tokenizer", "middle tokens"}),
        ({"middle tokens"}, 1, None, NEW | {"middle tokens", "middle tokenizer"}),
        (set(), 2, None, PLACES.keys()),  # the old tokenizer and vae as the old prior was made of them
        (set(), 0, 3 * DAY, PLACES.keys()),
        (set(), 0, 1.5 * DAY, {"evaluation", "samples", "prior", "tokens", "tokenizer", "vae", "corpus"}
         | BEHIND_OLD_PRIOR | {"old evaluation", "old samples", "other split"}),
        (set(), 0, DAY, set()),
    ],
)  # fmt: skip
def test_only_what_nothing_stands_on_is_removed(workspace: Workspace, current, keep_last, older_than, expected) -> None:
    assert kept(workspace, current, keep_last, older_than) == set(expected)


def test_what_an_alias_stands_for_now_is_kept(workspace: Workspace) -> None:
    promote(workspace.checkpoints("tokenizer"), "old", "production")
    promote(workspace.checkpoints("prior"), "old", "production")
    promote(workspace.checkpoints("prior"), "prior", "production")
    assert kept(workspace, set(), 0) == {"corpus", "old tokenizer", "old vae"} | {"prior", "tokens", "tokenizer", "vae"}


def test_an_interrupted_removal_is_found_by_the_next(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (judged,) = (item for item in prune.judge(workspace, set(), 1, None) if item.digest == "old prior")
    assert judged.size == 100 + Path(judged.url, "provenance.json").stat().st_size

    def cut(url: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "remove", cut)
        with pytest.raises(KeyboardInterrupt):
            prune.remove(judged)
    assert Path(judged.url, "provenance.json").exists()
    prune.remove(judged)
    assert not Path(judged.url).exists()


def test_parts_are_kept_for_an_evaluation_that_is_at_work_or_may_resume(workspace: Workspace) -> None:
    """The stored evaluations are 33 hours old at the least; of the parts one is older, and one is of an evaluation at work."""
    parts = workspace.url("evaluation/.parts")
    old = (datetime.datetime.now(datetime.UTC) - 3 * DAY).timestamp()
    for name, age in (("passed", old), ("working", old), ("ended", None)):
        storage.write_bytes(f"{parts}/{name}/000000.safetensors", bytes(7))
        if age is not None:
            os.utime(f"{parts}/{name}/000000.safetensors", (age, age))
    Path(f"{parts}/begun").mkdir()
    gone = Holder("", 2**22 + 1, socket.gethostname(), 0.0)  # no process has so large a number
    Path(f"{parts}/begun/.lock").write_bytes(gone.to_json())

    def why(**options) -> dict[str, str]:
        found = prune.judge(workspace, set(), **{"keep_last": 1, "older_than": None, **options})
        return {item.digest: item.kept for item in found if item.kind == prune.PARTS_KIND}

    with locked(f"{parts}/working"):
        expected = {"passed": "", "working": prune.AT_WORK, "ended": prune.UNFINISHED, "begun": ""}
        assert why() == expected
        assert why(keep_last=0) == expected | {"ended": ""}
        assert why(keep_last=0, older_than=DAY) == expected | {"ended": prune.YOUNG}
        assert why(keep_last=0, older_than=4 * DAY) == expected | {"ended": prune.YOUNG, "passed": prune.YOUNG}
    assert why()["working"] == ""
    for item in prune.judge(workspace, set(), 1, None):
        if not item.kept:
            prune.remove(item)
    assert storage.list_names(parts) == ["ended"]


pytestmark = pytest.mark.slow


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> tuple[Built, str]:
    """The built workspace with an older tokenizer, of which a token store was made."""
    copy = built.copied(tmp_path / "w")
    (tokenizer,) = (copy.workspace / "checkpoints" / "tokenizer").glob("[!.]*")
    older, tokens = tokenizer.with_name(OLDER), copy.workspace / "tokens" / "scenes" / "train" / OLDER
    for path, name, change in ((older, "provenance.json", True), (tokens, "manifest.json", False)):
        shutil.copytree(tokenizer if change else next(tokens.parent.glob("[!.]*")), path)
        document = json.loads((path / name).read_text())
        block = document if change else document["provenance"]
        block |= {"digest": path.name, "created": "2020-01-01T00:00:00+00:00"}
        (path / name).write_text(json.dumps(document))
    return copy, tokenizer.name


def prune_json(built: Built, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    capsys.readouterr()
    assert cli.run(["prune", "--workspace", str(built.workspace), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_prune_says_and_removes(copied: tuple[Built, str], capsys: pytest.CaptureFixture[str]) -> None:
    built, digest = copied
    before = built.states(capsys)
    planned = prune_json(built, capsys)
    unneeded = [item for item in planned["artifacts"] if not item["kept"]]
    # Other tests leave evaluations in the workspace that was built.
    assert {item["kind"] for item in unneeded if OLDER in item["uri"]} == {"tokenizer", "tokens"}
    assert not [item for item in unneeded if OLDER not in item["uri"] and "/evaluation/" not in item["uri"]]
    assert planned["bytes"] == sum(item["bytes"] for item in unneeded) > 0 and not planned["deleted"]
    assert all(Path(item["uri"]).exists() for item in unneeded)
    assert {item["kept"] for item in planned["artifacts"]} >= {"current", ""}
    assert not [i for i in prune_json(built, capsys, "--older-than", "10000d")["artifacts"] if not i["kept"]]

    assert cli.run(["promote", "tokenizer", "000", "--as", "production", "--workspace", str(built.workspace)]) == 0
    folder = f"{built.workspace}/checkpoints/tokenizer"
    assert capsys.readouterr().out == f"{folder}/{OLDER}\n"
    planned = prune_json(built, capsys)
    assert [item["kind"] for item in planned["artifacts"] if not item["kept"] and OLDER in item["uri"]] == ["tokens"]

    assert (
        cli.run(["promote", "tokenizer", digest[:12], "--as", "production", "--workspace", str(built.workspace)]) == 0
    )
    assert load_tokenizer(f"{folder}@production").digest == digest
    assert cli.run(["inspect", f"{folder}@production"]) == 0
    assert prune_json(built, capsys, "--delete")["deleted"]
    assert not any(Path(item["uri"]).exists() for item in unneeded)
    assert all(Path(item["uri"]).exists() for item in planned["artifacts"] if item["kept"] and OLDER not in item["uri"])
    assert built.states(capsys) == before
    assert cli.run(["prune", "--workspace", str(built.workspace)]) == 0
    assert "remove" not in capsys.readouterr().out


def test_nothing_is_removed_beside_other_work(copied: tuple[Built, str], capsys: pytest.CaptureFixture[str]) -> None:
    built, _ = copied
    arguments = ["prune", "--delete", "--workspace", str(built.workspace)]
    with locked(str(built.workspace)):
        assert cli.run(arguments) == 1
    with Workspace(str(built.workspace)).instance() as instance:
        run = instance.create_run_for_job(
            dg.define_asset_job("any").resolve(asset_graph=dg.Definitions().resolve_asset_graph()),
            status=dg.DagsterRunStatus.STARTED,
        )
    assert cli.run(arguments) == 1
    assert run.run_id[:8] in capsys.readouterr().err
    assert (built.workspace / "checkpoints" / "tokenizer" / OLDER).exists()


def test_without_records_the_newest_are_asked_for(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built.workspace / "checkpoints", tmp_path / "w" / "checkpoints")
    arguments = ["prune", "--workspace", str(tmp_path / "w")]
    assert cli.run(arguments) == 2
    assert "give --keep-last N" in capsys.readouterr().err
    assert not (tmp_path / "w" / "dagster").exists()
    assert cli.run([*arguments, "--keep-last", "0"]) == 0
    assert capsys.readouterr().out.count("remove") == 3


@pytest.mark.parametrize("age", ["30", "d", "-1d", "30 days"])
def test_an_age_has_a_unit(tmp_path: Path, age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prune", "--workspace", str(tmp_path), "--older-than", age]) == 2
    assert "expected a duration such as 30s, 15m, 6h or 1d" in capsys.readouterr().err
