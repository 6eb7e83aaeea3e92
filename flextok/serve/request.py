"""What a client may ask for, and the one line for what it may not."""

import json
from typing import Any, Literal

from pydantic import Field, field_validator

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.model.priors.config import PriorConfig
from flextok.model.sampling.config import DrawConfig

BODY_BYTES = 64 << 10
CAPTION_CHARACTERS = 4000
LEAST_TEMPERATURE = 0.01
STREAMS = 2**63
LINE = 300


class GenerateRequest(DrawConfig):
    """The body of POST /generate. The image depends on it alone; `seed` and `id` are those of `Prior.generate`."""

    temperature: float = Field(default=1.0, ge=0, le=100, description="0, or 0.01 to 100.")
    last_temperature: float | None = Field(default=None, ge=0, le=100, description="0, or 0.01 to 100.")
    guidance: float = Field(default=1.0, ge=0, le=100)
    label: int | None = Field(default=None, ge=0, description="Class, where the prior is conditioned on classes.")
    text: str | None = Field(
        default=None, max_length=CAPTION_CHARACTERS, description="Caption, where it is conditioned on these."
    )
    keep: int | None = Field(default=None, ge=1, description="Positions to draw, K; default all.")
    seed: int = Field(default=0, ge=0, lt=STREAMS)
    id: int = Field(default=0, ge=0, lt=STREAMS, description="Number of the image among those of the seed.")
    format: Literal["png", "tokens"] = "png"
    stream: bool = Field(default=False, description="Previews at 1, 2, 4, ... positions, as server-sent events.")

    @field_validator("temperature", "last_temperature")
    @classmethod
    def _is_no_overflow(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < LEAST_TEMPERATURE:
            raise ValueError(f"expected 0, or {LEAST_TEMPERATURE} to 100, found {value}")
        return value

    @property
    def law(self) -> DrawConfig:
        """How its ids are drawn."""
        return self.part(DrawConfig)


def read_request(body: bytes) -> dict[str, Any]:
    """The mapping in a body; raises UsageError where it is no JSON object."""
    try:
        values = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise UsageError("expected a JSON object as the body, found something else") from None
    if not isinstance(values, dict):
        raise UsageError(f"expected a JSON object as the body, found {type(values).__name__}")
    return values


def _no_number(name: str) -> Any:
    raise ValueError(name)


def parse_request(values: dict[str, Any], prior: PriorConfig) -> GenerateRequest:
    """The request, with `keep` filled in; raises UsageError with one short line for what cannot be drawn from `prior`."""
    try:
        request = parse_config(GenerateRequest, values, "request")
    except UsageError as error:
        # It may hold what was sent, such as half of a surrogate pair.
        line = " ".join(str(error).encode(errors="backslashreplace").decode().split())
        raise UsageError(line if len(line) <= LINE else line[:LINE] + "...") from None
    for name, value in (("label", request.label), ("text", request.text)):
        is_asked = prior.condition == {"label": "class", "text": "text"}[name]
        if (value is not None) != is_asked:
            found = "one" if value is not None else "none"
            raise UsageError(f"expected {'a' if is_asked else 'no'} '{name}' for this prior, found {found}")
    if request.label is not None and request.label >= prior.num_classes:
        raise UsageError(f"expected 'label' within 0..{prior.num_classes - 1}, found {request.label}")
    keep = prior.num_tokens if request.keep is None else request.keep
    if keep > prior.num_tokens:
        raise UsageError(f"expected 'keep' within 1..{prior.num_tokens}, found {keep}")
    return request.model_copy(update={"keep": keep})
