"""A small workspace that the code of commit c63be65 made: every stage of a shrunk smoke profile, with Dagster's records."""

import tarfile
from pathlib import Path

from shrunk_smoke import Built

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "workspace-c63be65.tar.xz"


def unpack(folder: Path) -> Built:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return Built(folder / "profile.yaml", folder / "workspace")
