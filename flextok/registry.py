"""Registers: what a recipe may name. A new member is one file with a decorator, and one line of YAML.

`Register` holds members by name; `ConfigRegister` holds settings by their `kind` and stands as the type of a field:

    QUANTIZERS = ConfigRegister("quantizer", home="flextok.model.quantizers")
    QuantizerConfig = Annotated[QuantizerSettings, QUANTIZERS]

    @QUANTIZERS.register
    class SignConfig(QuantizerSettings):
        kind: Literal["sign"] = "sign"

        def build(self) -> Quantizer: ...

A name that nobody registered yet is looked for as a module of that name in `home`, whose import registers it. So a member
costs an import only where it is named.
"""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from flextok.errors import UsageError

T = TypeVar("T")
MEMBER_FAULTS = "member_faults"
"""Type of the pydantic error that carries the faults of a member's own settings."""


HELPERS = ("base", "config", "__main__")
"""Modules of a home that are no members."""
REGISTERS: dict[tuple[str, str], "Register[Any]"] = {}
"""All registers of this process, by the module that defines them and what their members are called."""


class Register(Generic[T]):
    """Members by name; `what` they are called in messages; `home`: what may bring more, a package or a module for each name."""

    def __init__(self, what: str, home: str | Mapping[str, str] | None = None):
        self.what, self._home = what, home
        self.a = f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
        self.module = sys._getframe(1).f_globals["__name__"]
        """Where it is defined."""
        self._members: dict[str, T] = {}
        REGISTERS[self.module, what] = self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        """Pickled by name: another process has its own."""
        return _find_register, (self.module, self.what)

    def add(self, name: str, member: T) -> T:
        """Register `member`; raises ValueError where another one has that name."""
        if self._members.setdefault(name, member) is not member:
            raise ValueError(f"expected one {self.what} named '{name}', found a second one")
        return member

    def named(self, name: str) -> Callable[[T], T]:
        """Decorator that registers what it stands on under `name`."""
        return lambda member: self.add(name, member)

    def remove(self, name: str) -> None:
        """Forget a member (a test's)."""
        del self._members[name]

    def names(self) -> list[str]:
        """Every name that can be had, sorted."""
        return sorted({*self._members, *self._modules()})

    def __getitem__(self, name: str) -> T:
        """The member `name`; raises UsageError naming the nearest one."""
        if name not in self._members and (module := self._modules().get(name)):
            importlib.import_module(module)
        if name not in self._members:
            raise UsageError(self.unknown(name))
        return self._members[name]

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and members that are registered by now."""
        return iter(self._members.items())

    def __iter__(self) -> Iterator[T]:
        return iter(self._members.values())

    def unknown(self, name: str) -> str:
        """What to say of a name that nobody has."""
        near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.0)
        nearest = f"; the nearest is '{near[0]}'" if near else ""
        return f"expected {self.a} among {', '.join(self.names())}, found '{name}'{nearest}"

    def _modules(self) -> Mapping[str, str]:
        """Modules of the home that may register a member, by its name: of a package all but its `base` and `config`."""
        if not isinstance(self._home, str):
            return self._home or {}
        paths = importlib.import_module(self._home).__path__
        names = (module.name for module in pkgutil.iter_modules(paths) if module.name not in HELPERS)
        return {name: f"{self._home}.{name}" for name in names}


def _find_register(module: str, what: str) -> "Register[Any]":
    importlib.import_module(module)
    return REGISTERS[module, what]


class RoomRegister(Register[T]):
    """Members of modules that are light and hold several each: the first look imports every module of `home`."""

    _is_filled = False

    def names(self) -> list[str]:
        """Every name that can be had, sorted."""
        self._fill()
        return super().names()

    def __getitem__(self, name: str) -> T:
        self._fill()
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[T]:
        self._fill()
        return super().__iter__()

    def _fill(self) -> None:
        if self._is_filled:
            return
        self._is_filled = True
        for module in sorted(super()._modules().values()):
            importlib.import_module(module)

    def _modules(self) -> Mapping[str, str]:
        """None: modules are not members."""
        return {}


ConfigT = TypeVar("ConfigT", bound=type[BaseModel])


class ConfigRegister(Register[type[BaseModel]]):
    """Settings by their `kind`. As metadata of an annotated field it makes a union of all members, later ones included."""

    default_kind: str | None = None
    """The kind of settings that name none, as those written before there was a choice."""

    def register(self, config: ConfigT) -> ConfigT:
        """Decorator for a class of settings; its name is the default of its field `kind`."""
        self.add(config.model_fields["kind"].default, config)
        return config

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        serializer = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self._validated, serialization=serializer)

    def _validated(self, value: Any) -> BaseModel:
        if isinstance(value, BaseModel) and value.__class__ in set(self):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("dict_type", "Input should be a mapping with 'kind'")
        kind = value.get("kind", self.default_kind)
        if kind is None:
            raise ValueError(f"expected 'kind', {self.a} among {', '.join(self.names())}")
        try:
            member = self[str(kind)]
        except UsageError as error:
            raise ValueError(str(error)) from None
        try:
            return member.model_validate({"kind": kind, **value})
        except ValidationError as error:
            faults = {"member": member, "faults": error.errors()}
            raise PydanticCustomError(MEMBER_FAULTS, "not settings of this kind", faults) from None


class TrainingSettings(ConfigRegister):
    """What only the training of a register's members reads, by the member's kind.

    A member's class names the class of these settings as `training`, so that nothing is registered twice.
    """

    def __init__(self, members: ConfigRegister):
        super().__init__(f"training of a {members.what}")
        self.default_kind, self._of = members.default_kind, members

    def names(self) -> list[str]:
        return self._of.names()

    def __getitem__(self, name: str) -> type[BaseModel]:
        member: Any = self._of[name]
        return member.training

    def __iter__(self) -> Iterator[type[BaseModel]]:
        members: Iterator[Any] = iter(self._of)
        return (member.training for member in members)

    def told(self, train: Any, section: str, model: Any) -> Any:
        """The values of `train`, in which `section` is of the kind of the member `model` unless it says another.

        Both as they are before validation: mappings or settings, or neither, which is not for here to judge.
        """
        kind = model.get("kind", self.default_kind) if isinstance(model, Mapping) else getattr(model, "kind", None)
        if kind not in self.names():
            return train
        if isinstance(train, BaseModel) and section not in train.model_fields_set:
            return train.model_copy(update={section: self[str(kind)].model_validate({"kind": kind})})
        if isinstance(train, Mapping):
            given = train.get(section, {})
            return {**train, section: {"kind": kind, **given}} if isinstance(given, Mapping) else train
        return train
