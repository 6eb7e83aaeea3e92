"""Aliases: names that stand for artifacts."""

from pathlib import Path

import pytest

from flextok import aliases, storage
from flextok.errors import FlextokError, UsageError
from flextok.provenance import make_provenance

FIRST, SECOND = "aa11" * 16, "aa22" * 16


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for digest in (FIRST, SECOND):
        url = f"{tmp_path}/tokenizer/{digest}"
        storage.write_json(f"{url}/provenance.json", make_provenance("tokenizer", digest, [], {}, url))
    return f"{tmp_path}/tokenizer"


def test_an_alias_stands_for_what_was_promoted_last(folder: str) -> None:
    assert aliases.promote(folder, "aa1", "production") == f"{folder}/{FIRST}"
    assert aliases.resolve_alias(f"{folder}@production") == f"{folder}/{FIRST}"
    aliases.promote(folder, SECOND, "production")
    aliases.promote(folder, "aa1", "v0.1")
    assert aliases.resolve_alias(f"{folder}@production") == f"{folder}/{SECOND}"
    assert aliases.resolve_alias(f"{folder}@v0.1") == f"{folder}/{FIRST}"
    assert [item.digest for item in aliases.promotions(folder, "production")] == [FIRST, SECOND]
    assert aliases.alias_names(folder) == ["production", "v0.1"]


def test_a_workspace_may_be_moved(folder: str, tmp_path: Path) -> None:
    aliases.promote(folder, FIRST, "production")
    Path(folder).rename(tmp_path / "elsewhere")
    assert aliases.resolve_alias(f"{tmp_path}/elsewhere@production") == f"{tmp_path}/elsewhere/{FIRST}"


@pytest.mark.parametrize("digest", ["aa", "ff"])
def test_a_digest_must_name_one_artifact(folder: str, digest: str) -> None:
    with pytest.raises(UsageError, match=f"found {2 if digest == 'aa' else 0} that begin with '{digest}'"):
        aliases.promote(folder, digest, "production")
    assert aliases.alias_names(folder) == []


@pytest.mark.parametrize("name", ["", "a/b", "../production", ".hidden", "a b", "production@old"])
def test_names_are_no_paths(folder: str, name: str) -> None:
    with pytest.raises(UsageError, match="expected letters, digits"):
        aliases.promote(folder, FIRST, name)


@pytest.mark.parametrize(
    "path",
    ["{folder}/" + FIRST, "{folder}", "nowhere@production", "s3://key:secret@host/bucket", "someone/model", "@", "a@"],
)
def test_other_paths_stay_as_they_are(folder: str, path: str) -> None:
    aliases.promote(folder, FIRST, "production")
    path = path.format(folder=folder)
    assert aliases.resolve_alias(path) == path


def test_a_folder_with_an_at_is_a_folder(folder: str, tmp_path: Path) -> None:
    aliases.promote(folder, FIRST, "production")
    (tmp_path / "tokenizer@production").mkdir()
    assert aliases.resolve_alias(f"{folder}@production") == f"{folder}@production"


def test_what_was_promoted_may_be_gone(folder: str) -> None:
    aliases.promote(folder, FIRST, "production")
    storage.remove(f"{folder}/{FIRST}")
    with pytest.raises(
        UsageError, match=f"expected tokenizer {FIRST[:12]} in .*, found nothing; bring it back or promote"
    ):
        aliases.resolve_alias(f"{folder}@production")
    Path(f"{folder}/{SECOND}").rename(f"{folder}/{FIRST}")
    with pytest.raises(UsageError, match=f"found {SECOND[:12]}"):
        aliases.resolve_alias(f"{folder}@production")


def test_an_unknown_alias_names_the_known_ones(folder: str) -> None:
    aliases.promote(folder, FIRST, "production")
    with pytest.raises(UsageError, match=r"expected an alias of .* \(production\), found 'staging'"):
        aliases.resolve_alias(f"{folder}@staging")


def test_a_file_that_is_no_alias(folder: str) -> None:
    storage.write_json(f"{folder}/aliases/production.json", ["something"])
    with pytest.raises(FlextokError, match="expected an alias"):
        aliases.resolve_alias(f"{folder}@production")
