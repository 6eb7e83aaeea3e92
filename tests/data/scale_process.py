"""Peak memory and processor time of large corpora: `scale_process.py plan COUNT` or `shard COUNT SOURCE DEST`."""

import os
import sys
import time
from pathlib import Path

from flextok.data.config import CorpusConfig
from flextok.data.corpus.assignment import make_plan, shard_fingerprint, write_plan
from flextok.data.corpus.job import shard_corpus
from flextok.data.sources.folder import listing_frame
from flextok.data.sources.walk import Walk
from flextok.runtime.memory import peak_memory


def plan(count: int, dest: str) -> None:
    found = Walk()
    for i in range(count):
        found.add(f"train/n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG", 110_000 + i % 777)
    made = make_plan(listing_frame(found, ("train", "val")), CorpusConfig.model_validate({}), "settings")
    write_plan(dest, made)
    for _, rows in made.frame.group_by("shard"):
        shard_fingerprint("settings", rows)


def shard(count: int, original: str, folder: str) -> None:
    source = Path(folder) / "source"
    source.mkdir()
    for i in range(count):
        os.symlink(original, source / f"{i}.jpg")
    shard_corpus(CorpusConfig.model_validate({"source": str(source)}), "all", f"{folder}/out", progress=False)


if __name__ == "__main__":
    what, count, *places = sys.argv[1:]
    (plan if what == "plan" else shard)(int(count), *places)
    print(peak_memory() / 2**20, time.process_time())
