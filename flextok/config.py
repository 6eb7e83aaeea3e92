"""Strict configuration: frozen pydantic models whose unknown keys are errors naming the nearest right one."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from flextok.errors import UsageError


class Config(BaseModel):
    """Base of every configuration section: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_config(model: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """`values` as a `model`; raises UsageError with one line for the first few faults, each naming its key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_describe(model, fault) for fault in error.errors()[:3])
        raise UsageError(f"{where}: {faults}") from None


def _describe(model: type[BaseModel], fault: Any) -> str:
    location = _without_tags(model, [str(part) for part in fault["loc"]])
    dotted = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
        nearest = ".".join([*location[:-1], near[0]]) if near else "none"
        return f"unknown key '{dotted}'; the nearest known key is '{nearest}'"
    if fault["type"] == "missing":
        return f"'{dotted}' is required and was not given"
    if fault["type"] == "value_error":  # our own validators, whose message names what they found
        message = fault["msg"].removeprefix("Value error, ")
        return f"'{dotted}': {message}" if dotted else message
    found = fault["input"]
    return f"'{dotted}': {fault['msg']}, found {'a mapping' if isinstance(found, dict) else repr(found)}"


def _without_tags(model: type[BaseModel], location: list[str]) -> list[str]:
    """`location` without the names of union members, which pydantic puts between the keys."""
    kept: list[str] = []
    for place, part in enumerate(location):
        is_last = place == len(location) - 1
        if is_last or part.isdigit() or part in _keys_at(model, kept):
            kept.append(part)
    return kept


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the nested models that `path` may lead to (tags of unions are passed over)."""
    models = [model]
    for part in path:
        stepped = [
            m
            for parent in models
            if part in parent.model_fields
            for m in _models_in(parent.model_fields[part].annotation)
        ]
        models = stepped or models
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]
