"""A thread that works ahead of its consumer, by a bounded number of items."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LOOK_UP_S = 0.1


class _End:
    pass


class Prefetcher(Generic[T]):
    """`items`, produced by a thread at most `depth` ahead. As a context it starts the thread and, at the end, stops it.

    An exception of `items` is raised to the consumer in its place.
    """

    def __init__(self, items: Iterator[T], depth: int):
        self._items = items
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)

    def __enter__(self) -> "Prefetcher[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._ready.get()
            if isinstance(item, _End):
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _produce(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(_End())
        except BaseException as error:  # noqa: BLE001 - raised again, to the consumer
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Hand `item` over; False when the consumer has left."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=LOOK_UP_S)
                return True
            except queue.Full:
                continue
        return False
