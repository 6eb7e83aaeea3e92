"""What became of one shard, as it travels from an actor to the driver."""

import dataclasses
import json
from typing import Any

from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord

WAS_SLOW, WAS_LEFT = "slow where they were begun", "left or failed where they were begun"


@dataclasses.dataclass(frozen=True)
class ShardOutcome:
    """What became of one task: a record, or an error in one line. Times are seconds since the epoch."""

    shard: str
    record: ShardRecord | None
    rejects: list[Reject]
    error: str
    warning: str
    started: float
    ended: float
    peak_bytes: int
    """Most memory its actor had in use so far."""
    made_for: str = ""
    """WAS_SLOW or WAS_LEFT where another actor made it than the one that was given the task, else ""."""

    def to_json(self) -> str:
        """As it travels through Ray."""
        values = dataclasses.asdict(self)
        values["rejects"] = [reject._asdict() for reject in self.rejects]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> "ShardOutcome":
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["record"] = ShardRecord(**values["record"]) if values["record"] else None
        values["rejects"] = [Reject(**reject) for reject in values["rejects"]]
        return cls(**values)
