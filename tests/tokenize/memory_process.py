"""Peak memory of the process that tokenizes one shard: `memory_process.py CORPUS TOKENIZER DEST`, printed in MiB."""

import sys

from flextok.data.corpus.reader import Corpus
from flextok.model.load import tokenizer_spec
from flextok.runtime.memory import peak_memory
from flextok.tokenize.actor import ShardTokenizer
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.tasks import shard_tasks, task_to_json


def main(corpus: str, tokenizer: str, dest: str) -> None:
    config = TokenizeConfig(batch_size=8)
    spec = tokenizer_spec(tokenizer)
    (task,) = shard_tasks(Corpus.open(corpus), spec, dest, config)
    worker = ShardTokenizer(spec.url, spec.digest, config.model_dump(mode="json"), 8, 2, "cpu")
    outcome = ShardOutcome.from_json(worker({"task": task_to_json(task)})["outcome"])
    assert outcome.record is not None, outcome.error
    print(outcome.record.rows, peak_memory() / 2**20)


if __name__ == "__main__":
    main(*sys.argv[1:])
