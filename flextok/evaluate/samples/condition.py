"""What steers samples: the class, caption or nothing of each, by its number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.model.priors.config import PriorConfig


@dataclass(frozen=True)
class Condition:
    """What steers the samples, and how it was chosen: sample i has label and text i, of each beginning anew at its end."""

    rule: str
    labels: Sequence[int | None]
    texts: Sequence[str | None]

    @classmethod
    def of(cls, prior: PriorConfig, class_names: Sequence[str] | None, texts: Sequence[str] | None) -> "Condition":
        """All classes of `prior` in turn, or `texts` in turn; raises UsageError where it needs some and there are none."""
        if prior.condition == "class":
            labels, names = range(prior.num_classes), list(class_names or [])
            found = [names[label] if label < len(names) else None for label in labels]
            return cls("class i % C for image i: equally frequent", labels, found)
        if prior.condition == "text":
            if not texts:
                raise UsageError("expected texts for a prior conditioned on captions, found none; give some captions")
            return cls("the given texts in turn", [None], list(texts))
        return cls("no condition", [None], [None])

    def label(self, number: int) -> int | None:
        """The class of a sample, if it has one."""
        return self.labels[number % len(self.labels)]

    def text(self, number: int) -> str | None:
        """The caption, or name of the class, of a sample, if it has one."""
        return self.texts[number % len(self.texts)]

    def record(self) -> Any:
        """All of it, hashed, as a fingerprint has it."""
        return [self.rule, digest_of(list(self.labels)), digest_of(list(self.texts))]
