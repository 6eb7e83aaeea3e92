"""The smoke profile made small enough for a test of all its stages, trained in the process itself for speed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import cli

SHRUNK = {
    "corpus.scenes": {"train_samples": 96, "val_samples": 48, "image_px": 32},
    "corpus.shard_samples": 32,
    "latents.model": {"kind": "conv", "channels": 8, "blocks": 1, "latent_channels": 4, "factor": 4},
    "latents.train": {"steps": 6, "batch_size": 8},
    "tokenizer.model": {
        "registers": 4,
        "encoder": {"width": 32, "depth": 1, "head_dim": 16},
        "quantizer": {"levels": [4, 4]},
        "decoder": {"trunk": {"width": 32, "depth": 1, "head_dim": 16}},
    },
    "tokenizer.train": {"steps": 6, "batch_size": 8},
    "prior.model": {"width": 32, "depth": 1, "head_dim": 16},
    "prior.train": {"steps": 6, "batch_size": 8, "validate_every": 3},
    "evaluation": {
        "steps": 2, "guidance": 1.0, "extractor": "random_conv", "grid_images": 3, "samples": {"num": 32},
    },
    "compute": {"train_workers": 0, "num_cpus": 4, "tokenize_actors": [1, 1], "threads": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A profile file and the workspace that holds its results."""

    profile: Path
    workspace: Path

    def arguments(self, *sets: str) -> list[str]:
        assignments = [part for item in sets for part in ("--set", item)]
        return ["--profile", str(self.profile), "--workspace", str(self.workspace), *assignments]

    def copied(self, workspace: Path) -> "Built":
        """The same results in a workspace of a test's own."""
        shutil.copytree(self.workspace, workspace)
        return Built(self.profile, workspace)

    def states(self, capsys: pytest.CaptureFixture[str], *sets: str) -> dict[str, dict[str, Any]]:
        """What `flextok status --json` tells of each asset and partition, by `name` or `name[partition]`."""
        capsys.readouterr()
        assert cli.run(["status", "--json", *self.arguments(*sets)]) == 0
        found = json.loads(capsys.readouterr().out)["assets"]
        return {item["asset"] + (f"[{item['partition']}]" if item["partition"] else ""): item for item in found}


def shrunk_profile(path: Path) -> Path:
    values = yaml.safe_load((Path(__file__).parents[2] / "configs" / "smoke.yaml").read_text())
    for dotted, value in SHRUNK.items():
        *parents, last = dotted.split(".")
        section = values
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    path.write_text(yaml.safe_dump(values))
    return path
