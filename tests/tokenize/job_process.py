"""A tokenization in a process of its own, for tests that kill it.

Arguments: corpus, tokenizer, destination, TokenizeConfig as JSON.
"""

import sys
from pathlib import Path

from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus


def at_work(dest: str, finished: int) -> bool:
    """Whether `finished` shards are there and another is being written."""
    names = [path.name for path in Path(dest).glob("*")] if Path(dest).exists() else []
    return sum(name.endswith(".parquet") for name in names) >= finished and any(
        name.startswith(".tmp-") for name in names
    )


if __name__ == "__main__":
    corpus, tokenizer, dest, config = sys.argv[1:]
    compute = ComputeConfig(num_cpus=2, tokenize_actors=(1, 1))
    tokenize_corpus(corpus, tokenizer, dest, TokenizeConfig.model_validate_json(config), compute, progress=False)
