"""The losses of a training, as its checkpoint keeps them."""

import pyarrow.parquet as pq

from flextok import storage
from flextok.evaluate.results import Series
from flextok.provenance import read_provenance

HISTORY = "history.parquet"
LOSSES = ("train/loss", "val/loss")


def loss_series(what: str, url: str) -> list[Series]:
    """The losses of the checkpoint `url` by step, as `<what>/<train or val>/loss`; none of one that was taken over."""
    if not storage.exists(storage.join(url, HISTORY)):
        return []
    with storage.open_read(storage.join(url, HISTORY)) as file:
        rows = pq.read_table(file, columns=["step", "name", "value"]).to_pylist()
    found = []
    for name in LOSSES:
        curve = [(row["step"], row["value"]) for row in rows if row["name"] == name]
        if curve:
            steps, values = zip(*curve, strict=True)
            protocol = {"checkpoint": read_provenance(url)["digest"], "definition": f"{name} in training"}
            found.append(Series(f"{what}/{name}", "step", steps, values, protocol))
    return found
