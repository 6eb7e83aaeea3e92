"""Training states read from their files alone, for tests: JSON and safetensors, no code of the training."""

import json
from dataclasses import dataclass

import fsspec
import safetensors.torch
import torch
from torch import Tensor


@dataclass
class ReadState:
    """`step` steps are done; `tensors` are whole."""

    step: int
    tensors: dict[str, Tensor]


def load_latest_state(run_url: str) -> ReadState | None:
    """The newest state under `run_url` that has a record; None when there is none."""
    fs, path = fsspec.core.url_to_fs(run_url)
    fs.invalidate_cache()
    records = sorted(fs.glob(f"{path}/step_*/state.json"))
    if not records:
        return None
    folder, record = records[-1].rpartition("/")[0], json.loads(fs.cat_file(records[-1]))
    assert record["format"] == "flextok.training-state/2"
    files = {name: safetensors.torch.load(fs.cat_file(f"{folder}/{name}")) for name in record["files"]}
    tensors = {}
    for name, stored in record["tensors"].items():
        whole = torch.full(stored["shape"], float("nan")).to(getattr(torch, stored["dtype"]))
        for piece in stored["pieces"]:
            offsets = piece["offsets"]
            key = f"{name}@{','.join(map(str, offsets))}" if any(offsets) else name
            place = tuple(slice(o, o + n) for o, n in zip(offsets, piece["shape"], strict=True))
            whole[place] = files[piece["file"]].pop(key)
        tensors[name] = whole
    assert not any(files.values())  # nothing is stored twice, or that the record does not name
    return ReadState(record["step"], tensors)
