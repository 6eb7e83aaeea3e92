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
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from flextok.errors import UsageError

T = TypeVar("T")
MEMBER_FAULTS = "member_faults"
"""Type of the pydantic error that carries the faults of a member's own settings."""


class Register(Generic[T]):
    """Members by name; `what` they are called in messages; `home`: the package whose modules may bring more."""

    def __init__(self, what: str, home: str | None = None):
        self.what, self._home = what, home
        self._members: dict[str, T] = {}

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
        if name not in self._members and name in self._modules():
            importlib.import_module(f"{self._home}.{name}")
        if name not in self._members:
            raise UsageError(self.unknown(name))
        return self._members[name]

    def __iter__(self) -> Iterator[T]:
        return iter(self._members.values())

    def unknown(self, name: str) -> str:
        """What to say of a name that nobody has."""
        near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.0)
        nearest = f"; the nearest is '{near[0]}'" if near else ""
        return f"expected a {self.what} among {', '.join(self.names())}, found '{name}'{nearest}"

    def _modules(self) -> set[str]:
        """Modules of the home that may register a member: all but the helpers `base` and `config`."""
        if self._home is None:
            return set()
        paths = importlib.import_module(self._home).__path__
        helpers = ("base", "config", "__main__")
        return {module.name for module in pkgutil.iter_modules(paths) if module.name not in helpers}


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
        for module in sorted(super()._modules()):
            importlib.import_module(f"{self._home}.{module}")

    def _modules(self) -> set[str]:
        """None: modules are not members."""
        return set()


ConfigT = TypeVar("ConfigT", bound=type[BaseModel])


class ConfigRegister(Register[type[BaseModel]]):
    """Settings by their `kind`. As metadata of an annotated field it makes a union of all members, later ones included."""

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
        if isinstance(value, BaseModel) and value.__class__ in self._members.values():
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("dict_type", "Input should be a mapping with 'kind'")
        kind = value.get("kind", self.default_kind)
        if kind is None:
            raise ValueError(f"expected 'kind', a {self.what} among {', '.join(self.names())}")
        try:
            member = self[str(kind)]
        except UsageError as error:
            raise ValueError(str(error)) from None
        try:
            return member.model_validate(value)
        except ValidationError as error:
            faults = {"member": member, "faults": error.errors()}
            raise PydanticCustomError(MEMBER_FAULTS, "not settings of this kind", faults) from None

    default_kind: str | None = None
    """The kind of settings that name none, as those written before there was a choice."""
