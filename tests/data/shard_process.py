"""A run of `shard_corpus` in a process of its own, to be killed: `shard_process.py SOURCE DEST WORKERS`."""

import resource
import sys

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.errors import FlextokError

if __name__ == "__main__":
    source, dest, workers, *file_limit = sys.argv[1:]
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_limit[0]), int(file_limit[0])))
    config = CorpusConfig.model_validate({"source": source, "shard_samples": 8})
    try:
        print(shard_corpus(config, "all", dest, int(workers), progress=False).digest)
    except FlextokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
