"""Samples and evaluations that a cluster's nodes make are those of one machine, also where a node is lost at their start."""

import json
from pathlib import Path

import pytest
from flextok_process import Command
from ray_nodes import ray_nodes
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.data.corpus.reader import Corpus

pytestmark = pytest.mark.slow
PROGRAM = """
import json, sys
import torch
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.sampling import sample_images
from flextok.runtime.compute import ComputeConfig
made = json.loads(sys.argv[1])
config = EvaluationConfig.model_validate(made["config"])
compute = ComputeConfig(address=made["address"], tokenize_actors=(1, 2), threads=1)
reconstruction = evaluate_reconstruction(made["tokenizer"], made["val"], made["out"], config, compute)
print(reconstruction.digest, flush=True)
samples = sample_images(made["prior"], made["tokenizer"], made["out"], config, made["classes"], compute=compute)
generation = evaluate_generation(samples.url, made["val"], made["tokenizer"], made["out"], config, compute)
print(samples.digest, generation.digest, sep="\\n")
"""


def test_digests_are_those_of_one_machine(pipeline: TinyPipeline, tmp_path: Path) -> None:
    given = {
        "tokenizer": pipeline.tokenizer, "prior": pipeline.prior, "val": pipeline.val, "out": f"{tmp_path}/out",
        "classes": Corpus.open(pipeline.train).classes, "config": EVALUATION.model_dump(mode="json"),
    }  # fmt: skip
    with ray_nodes() as nodes:
        address = nodes.start_head(cpus=0)
        lost, _ = nodes.add(1), nodes.add(1)
        command = Command(json.dumps({**given, "address": address}), program=PROGRAM)
        command.wait_for("reconstruct: ")
        nodes.kill(lost)
        assert command.finish() == 0, command.told
    assert command.printed() == [pipeline.reconstruction.digest, pipeline.samples.digest, pipeline.generation.digest]
    images = sorted(Path(pipeline.samples.url).glob("images/*/*.png"))
    assert images
    for path in images:
        of_cluster = Path(given["out"], pipeline.samples.digest, path.relative_to(pipeline.samples.url))
        assert of_cluster.read_bytes() == path.read_bytes()
