"""Working ahead of a consumer, by a bounded number of items: calls on a pool, or an iterator in a thread of its own."""

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

LOOK_UP_S = 0.1


def ahead(
    submit: Callable[[T], "Future[R]"], items: Iterable[T], depth: float, cost: Callable[[T], float] = lambda item: 1
) -> Iterator[tuple[T, R]]:
    """(item, result) in the order of `items`, whose calls `submit` begins; while one is consumed, later ones go on.

    Another call begins while the `cost` of those that are begun and not yet taken (their number, unless it is given) is
    within `depth`. An exception of a call is raised in its place; calls that the consumer does not come to
    are cancelled where they have not begun.
    """
    begun: collections.deque[tuple[T, Future[R], float]] = collections.deque()
    spent = 0.0
    try:
        for item in items:
            begun.append((item, submit(item), cost(item)))
            spent += begun[-1][2]
            while spent > depth:
                first, future, price = begun.popleft()
                spent -= price
                yield first, future.result()
        while begun:
            first, future, _ = begun.popleft()
            yield first, future.result()
    finally:
        _cancel(future for _, future, _ in begun)


def as_finished(submit: Callable[[T], "Future[R]"], items: Iterable[T], depth: int) -> Iterator[tuple[T, R]]:
    """The same, but each result as soon as it is there, whatever its place; `depth` calls are under way."""
    coming = iter(items)
    begun: dict[Future[R], T] = {}
    try:
        while True:
            begun.update((submit(item), item) for item in islice(coming, depth - len(begun)))
            if not begun:
                return
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                yield begun.pop(future), future.result()
    finally:
        _cancel(begun)


def _cancel(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


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
