"""Modules laid out without weights: shapes that hold no memory."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = ("normal_", "uniform_")


@contextlib.contextmanager
def outlined() -> Iterator[None]:
    """Modules made in the block are on the meta device, for `load_state` to fill or for their shapes alone.

    A config that lies about sizes costs nothing there.
    """
    with torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    """Leaves initial weights undrawn: on the meta device a draw imports torch's compiler, a second and more a process."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
