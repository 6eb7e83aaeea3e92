"""What is installed: both packages, and inside `pipelines` the files which it reads, though they lie beside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["flextok*", "pipelines*"]), "pipelines.configs", "pipelines.infra.dagster"],
    package_dir={"pipelines.configs": "configs", "pipelines.infra.dagster": "infra/dagster"},
    package_data={
        "flextok": ["evaluate/report/templates/*", "serve/page/*"],
        "pipelines.configs": ["*.yaml"],
        "pipelines.infra.dagster": ["dagster.yaml"],
    },
)
