"""Strict configuration: frozen pydantic models whose unknown keys are errors naming the nearest right one.

Each setting says at its owner whether it decides a result. Most do; one that only says how the work is done (how much is
logged, where it runs) is `Operational`, and `Config.content()` leaves it out: versions of stages, fingerprints of jobs and
recipes of artifacts are made of that content alone.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from flextok.errors import UsageError
from flextok.registry import MEMBER_FAULTS, ConfigRegister

T = TypeVar("T")


class _OperationalMark:
    """Marks a field that decides no result."""

    def __repr__(self) -> str:
        return "Operational"

    def __reduce__(self) -> str:
        return "OPERATIONAL"  # there is one in each process, also for classes that are pickled by value


OPERATIONAL = _OperationalMark()
Operational = Annotated[T, OPERATIONAL]
"""Type of a setting that decides no result: `log_every: Operational[int] = 50`."""


class _AddedMark:
    """Marks a field that is younger than artifacts which may be around."""

    def __repr__(self) -> str:
        return "Added"

    def __reduce__(self) -> str:
        return "ADDED"  # there is one in each process, also for classes that are pickled by value


ADDED = _AddedMark()
Added = Annotated[T, ADDED]
"""Type of a deciding setting that came later. At its default, which is what was done before, it stays out of the content:
digests and versions from before the setting existed remain valid."""


class Config(BaseModel):
    """Base of every configuration section: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def content(self) -> dict[str, Any]:
        """The settings that decide results, as plain values: everything that is not `Operational`, at any depth.

        An `Added` setting is left out while it has its default.
        """
        return {
            name: _content(getattr(self, name), plain)
            for name, plain in self.model_dump(mode="json").items()
            if not is_operational(type(self), name) and not self._is_silent(name)
        }

    def part(self, base: type["ConfigT"]) -> "ConfigT":
        """The settings that the class `base`, of which this one is made, brings to it."""
        return base.model_validate({name: getattr(self, name) for name in base.model_fields})

    def _is_silent(self, name: str) -> bool:
        field = type(self).model_fields[name]
        is_added = any(mark is ADDED for mark in field.metadata)
        return is_added and getattr(self, name) == field.get_default(call_default_factory=True)


def is_operational(model: type[BaseModel], name: str) -> bool:
    """Whether a field of `model` decides no result."""
    return any(mark is OPERATIONAL for mark in model.model_fields[name].metadata)


def has_key(model: type[BaseModel], dotted: str) -> bool:
    """Whether `dotted` names a setting of `model`, in any member of a union or register on the way."""
    *path, last = dotted.split(".")
    return _leads_on(model, path) and last in _keys_at(model, path)


def _leads_on(model: type[BaseModel], path: list[str]) -> bool:
    return all(part in _keys_at(model, path[:depth]) for depth, part in enumerate(path))


def _content(value: Any, plain: Any) -> Any:
    if isinstance(value, Config):
        return value.content()
    if isinstance(value, tuple | list):
        return [_content(item, plain_item) for item, plain_item in zip(value, plain, strict=True)]
    return plain


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_config(model: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """`values` as a `model`; raises UsageError with one line for the first few faults, each naming its key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [line for fault in error.errors() for line in _describe(model, fault, [])]
        raise UsageError(f"{where}: {'; '.join(faults[:3])}") from None


def parse_member(register: ConfigRegister, values: Mapping[str, Any], where: str) -> Any:
    """`values` as the settings of their kind in `register`; raises UsageError as `parse_config` does."""
    kind = values.get("kind", register.default_kind)
    if kind is None:
        raise UsageError(f"{where}: expected 'kind', {register.a} among {', '.join(register.names())}")
    return parse_config(register[str(kind)], values, where)


def _describe(model: type[BaseModel], fault: Any, above: list[str]) -> list[str]:
    """A fault in a line for a person; several where a member of a register has several."""
    if fault["type"] == MEMBER_FAULTS:
        inside = [*above, *_without_tags(model, [str(part) for part in fault["loc"]])]
        member = fault["ctx"]["member"]
        return [line for inner in fault["ctx"]["faults"] for line in _describe(member, inner, inside)]
    return [_describe_one(model, fault, above)]


def _describe_one(model: type[BaseModel], fault: Any, above: list[str]) -> str:
    location = [*above, *_without_tags(model, [str(part) for part in fault["loc"]])]
    dotted = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _keys_at(model, location[len(above) : -1])
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
            for m in _members_of(parent.model_fields[part].metadata) or _models_in(parent.model_fields[part].annotation)
        ]
        models = stepped or models
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]


def _members_of(metadata: list[Any]) -> list[type[BaseModel]]:
    return [member for mark in metadata if isinstance(mark, ConfigRegister) for member in mark]
