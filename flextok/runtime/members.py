"""Members of registers that a program brought itself, for its processes on other cores and machines.

A policy, quantizer or metric that a script, a notebook or a test registers need not be importable where Ray's actors run:
it is pickled by value, with what it uses of its own module.
"""

import contextlib
import logging
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flextok.registry import REGISTERS, Register

LIBRARY = "flextok"
INSTALLED = ("purelib", "platlib")
logger = logging.getLogger(__name__)


def pack_members() -> bytes:
    """Every member of the library's registers that is not the library's own, for `unpack_members`; b"" for none.

    One that cannot be pickled is left out with a warning.
    """
    found = _brought_members()
    if not found:
        return b""
    from ray.cloudpickle import dumps  # pyright: ignore

    packed = []
    with _by_value(found):
        for register, name, member in found:
            try:
                packed.append(dumps((register, name, member)))
            except Exception as error:  # noqa: BLE001 - whatever its own code raises; the job may not need it
                logger.warning("the %s '%s' cannot be sent to other processes (%s)", register.what, name, error)
        return dumps(packed)


def unpack_members(packed: bytes) -> None:
    """Register what `pack_members` of another process gave, but what is registered here already."""
    if not packed:
        return
    from ray.cloudpickle import loads  # pyright: ignore

    for item in loads(packed):
        register, name, member = loads(item)
        if name not in dict(register.items()):
            register.add(name, member)


def pack_job(job: Any) -> bytes:
    """`job`, which may hold settings of members that a program brought, and all of those, for `unpack_job`."""
    from ray.cloudpickle import dumps  # pyright: ignore

    members = pack_members()
    with _by_value(_brought_members()):
        return dumps((members, dumps(job)))


def unpack_job(packed: bytes) -> Any:
    """The job that `pack_job` of another process was given, whose members are registered here before it is opened."""
    from ray.cloudpickle import loads  # pyright: ignore

    members, job = loads(packed)
    unpack_members(members)
    return loads(job)


def _brought_members() -> list[tuple[Register[Any], str, Any]]:
    return [
        (register, name, member)
        for register in REGISTERS.values()
        if _is_own(register.module)
        for name, member in register.items()
        if not all(map(_is_importable, _modules_of(member)))
    ]


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == LIBRARY


def _is_importable(module: str) -> bool:
    """Whether every process of this installation finds a module by its name."""
    package = module.partition(".")[0]
    if _is_own(module) or package in sys.stdlib_module_names:
        return True
    # By the module itself: installed packages may bring a top-level folder of the same name, such as `tests`.
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and any(Path(file).is_relative_to(sysconfig.get_path(name)) for name in INSTALLED)


def _modules_of(member: Any) -> set[str]:
    """Where a member comes from: its own module or its class', and those of the functions it holds."""
    parts = [member, type(member), *vars(member).values()] if not isinstance(member, type) else [member]
    named = {getattr(part, "__module__", None) for part in parts if part is member or callable(part)}
    return {module for module in named if isinstance(module, str)}


@contextlib.contextmanager
def _by_value(members: list[tuple[Register[Any], str, Any]]) -> Iterator[None]:
    """Pickle what lies in the modules of `members` by value while the block runs."""
    from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value  # pyright: ignore

    modules = {module for _, _, member in members for module in _modules_of(member) if not _is_importable(module)}
    here = [sys.modules[name] for name in modules if name in sys.modules and name != "__main__"]
    for module in here:
        register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in here:
            unregister_pickle_by_value(module)
