"""One tiny pipeline for all tests of flextok.evaluate."""

import pytest
import tiny_pipeline


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tiny_pipeline.TinyPipeline:
    return tiny_pipeline.build(tmp_path_factory.mktemp("pipeline"))
