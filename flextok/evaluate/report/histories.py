"""What a training recorded while it went on, as its checkpoint keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from flextok import storage
from flextok.evaluate.results import Series
from flextok.provenance import read_provenance

HISTORY = "history.parquet"
LOSSES = ("train/loss", "val/loss")
ALARM = "alarm/"

Curve = Sequence[tuple[int, float]]
"""Values by step."""


@dataclass(frozen=True)
class TrainingHistory:
    """The curves of the training `what` by name, in the order in which they began; none of a model that was taken over."""

    what: str
    digest: str
    curves: Mapping[str, Curve]

    def below(self, name: str) -> dict[str, Curve]:
        """The curves `<name>/<part>` by part."""
        return {each.removeprefix(f"{name}/"): self.curves[each] for each in self.curves if each.startswith(f"{name}/")}

    def alarms(self) -> dict[str, list[int]]:
        """The steps of each alarm that was told."""
        return {name: [step for step, _ in curve] for name, curve in self.below(ALARM.removesuffix("/")).items()}

    def losses(self) -> list[Series]:
        """In training and held out, as `<what>/<train or val>/loss`: those that stand in metrics.json."""
        found = []
        for name in LOSSES:
            if curve := self.curves.get(name):
                steps, values = zip(*curve, strict=True)
                protocol = {"checkpoint": self.digest, "definition": f"{name} in training"}
                found.append(Series(f"{self.what}/{name}", "step", steps, values, protocol))
        return found


def read_history(what: str, url: str) -> TrainingHistory:
    """What the checkpoint `url` recorded."""
    if not storage.exists(storage.join(url, HISTORY)):
        return TrainingHistory(what, "", {})
    with storage.open_read(storage.join(url, HISTORY)) as file:
        table = pq.read_table(file, columns=["step", "name", "value"])
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
        curves.setdefault(name, []).append((step, value))
    return TrainingHistory(what, read_provenance(url)["digest"], curves)
