"""The files of infra/ parse, agree with the project's pins, and hold for the readers that are at hand."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import jsonschema
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def load(name: str) -> dict:
    return yaml.safe_load((INFRA / name).read_text())


def pin(package: str) -> str:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(match[1] for line in lines if (match := re.match(rf"{package}(?:\[.*\])?==([\d.]+)", line)))


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_file_is_a_mapping_with_a_word_of_explanation(path: Path):
    text = path.read_text()
    assert text.startswith("#") and isinstance(yaml.safe_load(text), dict)
    assert "password:" not in text.lower() or "env:" in text or "${" in text


@pytest.mark.parametrize("name", ["dagster.yaml", "dagster-postgres.yaml"])
def test_dagster_reads_its_settings(name: str, tmp_path: Path):
    settings = load(f"dagster/{name}")
    if "storage" in settings:
        settings.pop("storage")  # its package is of the deployment only
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["telemetry"] == {"enabled": False}
    assert config["concurrency"]["pools"]["default_limit"] == 1
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.telemetry_enabled is False and instance.nux_enabled is False


def test_ray_reads_its_cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("ray/cluster.yaml"))
    validate_config(config)
    assert config["provider"]["type"] == "local"


def test_ray_versions_agree():
    assert load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pin("ray")


def test_the_chart_is_of_the_pinned_dagster():
    assert f"--version {pin('dagster')}" in (INFRA / "helm" / "values.yaml").read_text()


def test_the_ray_job_mounts_shared_memory_and_asks_for_gpus():
    spec = load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    head, worker = spec["headGroupSpec"], spec["workerGroupSpecs"][0]
    for group in (head, worker):
        pod = group["template"]["spec"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        assert {volume["name"] for volume in pod["volumes"]} >= {"shm"}
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_ray_job_is_a_command_that_parses(tmp_path: Path):
    from pipelines.recipe import load_recipe

    words = load("kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[:2] == ["flextok", "refresh"]
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert load_recipe(words[words.index("--profile") + 1], sets).compute.train_workers == 8


def test_compose_opens_nothing_beyond_this_machine_and_holds_no_password():
    services = load("docker/compose.yaml")["services"]
    assert {"postgres", "code", "webserver", "daemon"} == set(services)
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    for service in services.values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or value.startswith("${")
    mounted = [volume.split(":")[0] for volume in services["code"]["volumes"] if volume.startswith("..")]
    assert all((INFRA / "docker" / path).resolve().is_file() for path in mounted)


def test_the_image_copies_only_what_is_there():
    text = (INFRA / "docker" / "Dockerfile").read_text()
    named = re.findall(r"-c (\S+\.txt)", text)
    assert named == ["constraints.txt"]
    assert os.path.basename(str(INFRA / "docker" / "Dockerfile.dockerignore")) in os.listdir(INFRA / "docker")


def test_every_cluster_is_joined_with_its_token():
    assert load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (deployment,) = load("helm/values.yaml")["dagster-user-deployments"]["deployments"]
    assert "RAY_AUTH_TOKEN" in [variable["name"] for variable in deployment["env"]]
    services = load("docker/compose.yaml")["services"]
    assert all("RAY_AUTH_TOKEN" in services[name]["environment"] for name in ("code", "webserver", "daemon"))
    assert "~/.ray/auth_token" in load("ray/cluster.yaml")["file_mounts"]


def strict(schema: Any) -> Any:
    """A schema of a custom resource as Kubernetes' field validation takes it: what it does not name is an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def test_the_ray_job_holds_for_its_resource(shared: Path):
    resource = yaml.safe_load((shared / "data" / "schemas" / "ray.io_rayjobs.yaml").read_text())
    (schema,) = [version["schema"] for version in resource["spec"]["versions"] if version["name"] == "v1"]
    job = load("kuberay/rayjob.yaml")
    validator = jsonschema.Draft202012Validator(strict(schema["openAPIV3Schema"]))
    assert [error.message for error in validator.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    assert [error.message for error in validator.iter_errors(job)], "a mistyped field is an error"


def test_the_compose_file_holds_for_the_specification(shared: Path):
    schema = json.loads((shared / "data" / "schemas" / "compose-spec.json").read_text())
    compose = load("docker/compose.yaml")
    validator = jsonschema.Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    compose["services"]["code"]["entry_point"] = []
    assert [error.message for error in validator.iter_errors(compose)], "a mistyped field is an error"


def commands() -> Iterator[list[str]]:
    """All that the files of infra/ call of this project's environment."""
    programs = {"dagster", "dagster-webserver", "flextok", "ray"}
    services = load("docker/compose.yaml")["services"].values()
    yield from (service["entrypoint"] for service in services if "entrypoint" in service)
    yield from (service["healthcheck"]["test"][1:] for service in services if "healthcheck" in service)
    yield load("kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    yield [
        "dagster",
        "api",
        "grpc",
        *load("helm/values.yaml")["dagster-user-deployments"]["deployments"][0]["dagsterApiGrpcArgs"],
    ]
    cluster = load("ray/cluster.yaml")
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        for line in cluster[name]:
            yield from (part.split() for part in re.split(r"&&|;", line) if part.split()[0] in programs)
    for line in (INFRA / "slurm" / "flextok.sbatch").read_text().splitlines():
        yield from (["ray", *match.split()] for match in re.findall(r"\bray (start [^&]*)&", line))


def test_every_command_and_option_is_there():
    asked: dict[tuple[str, ...], set[str]] = {}
    for words in commands():
        if not words[0].startswith("pg_isready"):
            first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
            options = {word.partition("=")[0] for word in words[first:] if word.startswith("-")}
            asked.setdefault(tuple(words[:first]), set()).update(options)
    assert {words[0] for words in asked} == {"dagster", "dagster-webserver", "flextok", "ray"}
    for words, options in asked.items():
        program = Path(sys.executable).with_name(words[0])
        told = subprocess.run([program, *words[1:], "--help"], capture_output=True, text=True, check=False)
        assert told.returncode == 0, words
        assert not [
            option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told.stdout)
        ], words
