"""Peak memory of the process that tokenizes one shard: `memory_process.py CORPUS TOKENIZER DEST`, printed in MiB."""

import sys
from pathlib import Path

from flextok.data.corpus.reader import Corpus
from flextok.model.load import tokenizer_spec
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
    # ru_maxrss would begin with the peak of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(outcome.record.rows, int(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
