"""A tokenization in a process of its own, for tests that kill it or change the cluster under it.

Arguments: "alone" or "cluster", then corpus, tokenizer, destination, TokenizeConfig as JSON. Prints the digest.
"""

import sys
import threading
import time
from pathlib import Path

from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus

NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}


def at_work(dest: str, finished: int) -> bool:
    """Whether `finished` shards are there and another is being written."""
    names = [path.name for path in Path(dest).glob("*")] if Path(dest).exists() else []
    return sum(name.endswith(".parquet") for name in names) >= finished and any(
        name.startswith(".tmp-") for name in names
    )


def tokenize(corpus: str, tokenizer: str, dest: str, config: str, compute: ComputeConfig) -> str:
    """Digest of the finished store."""
    settings = TokenizeConfig.model_validate_json(config)
    return tokenize_corpus(corpus, tokenizer, dest, settings, compute, progress=False).digest


def on_a_changing_cluster(corpus: str, tokenizer: str, dest: str, config: str) -> str:
    """Two nodes, an actor on each; one is removed in mid-shard, and a new one joins."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    second = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    compute = ComputeConfig(address=cluster.address, tokenize_actors=(2, 2), threads=1)
    digests: list[str] = []
    job = threading.Thread(target=lambda: digests.append(tokenize(corpus, tokenizer, dest, config, compute)))
    job.start()
    while job.is_alive() and not at_work(dest, finished=1):
        time.sleep(0.002)
    changed_in_time = job.is_alive()
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(**NODE)
    job.join()
    ray.shutdown()
    cluster.shutdown()
    assert changed_in_time, "the job had ended before the node was removed"
    return digests[0]


if __name__ == "__main__":
    if sys.argv[1] == "cluster":
        print(on_a_changing_cluster(*sys.argv[2:]))
    else:
        print(tokenize(*sys.argv[2:], ComputeConfig(num_cpus=2, tokenize_actors=(1, 1))))
