"""A shrunk smoke profile, built once through Dagster and Ray for all tests that look at its results."""

import pytest
from shrunk_smoke import Built, shrunk_profile

from pipelines import cli


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The shrunk smoke profile after its first `flextok run`."""
    folder = tmp_path_factory.mktemp("smoke")
    done = Built(shrunk_profile(folder / "smoke.yaml"), folder / "workspace")
    assert cli.run(["run", *done.arguments()]) == 0
    return done
