"""Calls made by workers on the nodes of a Ray cluster: ProcessPool's interface, for what may outgrow a machine.

A worker that is lost, with its node or for want of memory, is replaced where there is room, and its call is made again by
another. So is one that cannot do the work where it is: it says so before it gets a call, or in the midst of one, and its
node is left out.
"""

import contextlib
import logging
import pickle
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from flextok.errors import FlextokError, TransientError, UsageError
from flextok.runtime.cluster import first_line
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.fitness import UnfitNodeError, unfit_line
from flextok.runtime.members import pack_job, unpack_job
from flextok.runtime.memory import keep_freed_memory
from flextok.runtime.nodes import beside_options, cluster_nodes
from flextok.runtime.processes import answer, opened, settle
from flextok.runtime.watch import ClusterWatch

T = TypeVar("T")
LOOK_EVERY_S = 1.0
MOST_LOST = 5
"""Workers that one call may cost, or that may be lost in a row before any has begun."""
HINT = "what else runs there may have to end first, or ask for less (compute.threads, gpus_per_worker, resources)"
logger = logging.getLogger(__name__)


class RayPool:
    """At most `workers` workers (None: as many as there is room for), made ready by `initialize(*arguments)`, make the calls that are submitted.

    `what` names one of them, each with so many CPUs and GPUs and with what `compute` asks for beside them; more than
    `calls` would have no work. `initialize` raises FlextokError where its node cannot do the work, a call UnfitNodeError
    where it no longer can. Ray is connected. As a context it ends them.
    Raises UsageError where no node, there or to come, has room for one.
    """

    def __init__(
        self,
        what: str,
        compute: ComputeConfig,
        initialize: Callable[..., object],
        arguments: tuple[Any, ...] = (),
        workers: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
        calls: int | None = None,
    ):
        import ray

        nodes = cluster_nodes(compute.resources)
        nodes.require_place(what, cpus, gpus, HINT, compute.resources)
        self._watch = ClusterWatch(what, cpus, gpus, HINT, beside=compute.resources)
        self._options = {"num_cpus": cpus, "num_gpus": gpus, **beside_options(compute.resources)}
        self._actor: Any = ray.remote(_Worker)
        self._start = pack_job((initialize, arguments))
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._unfit: dict[str, str] = {}
        self._lost_in_a_row = 0
        self._fault: Exception | None = None
        self._ended = threading.Event()
        # What there is no room for would be a demand for nodes without end.
        room = nodes.workers_to_ask_for(cpus, gpus) if workers is None else nodes.places(cpus, gpus)
        self.workers = min(workers or room, room, calls or room)
        self._members = [self._new_member() for _ in range(self.workers)]
        self._thread = threading.Thread(target=self._run, name="ray pool", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, fault: type[BaseException] | None, *_: object) -> None:
        self.end()
        if fault is None:
            self._watch.tell_changes()

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """The result of `function(*arguments)`, some time, or what it raised.

        FlextokError where the call cost several workers, or no node can do the work.
        """
        call = _Call(pickle.dumps((function, arguments)))
        with self._lock:
            if self._fault is not None:
                raise self._fault
            self._waiting.append(call)
            self._give_out()
        return call.future

    def end(self) -> None:
        """End the workers now; one in the middle of its work need not finish it."""
        self._ended.set()
        self._thread.join()
        for member in self._members:
            _kill(member.handle)
        if self._unfit:
            logger.warning("made without: %s", " | ".join(self._unfit.values()))

    def _new_member(self) -> "_Member":
        options = dict(self._options)
        if self._unfit:
            others = {"ray.io/node-id": f"!in({','.join(self._unfit)})"}
            options["label_selector"] = options.get("label_selector", {}) | others
        handle = self._actor.options(scheduling_strategy="SPREAD", **options).remote()
        return _Member(handle, handle.begin.remote(self._start))

    def _give_out(self) -> None:
        """Send what waits to workers that are ready; the lock is held."""
        for member in self._members:
            while self._waiting and member.is_free:
                call = self._waiting.popleft()
                if call.is_wanted():
                    member.call, member.coming = call, member.handle.answer.remote(call.packed)

    def _run(self) -> None:
        """Take results as they come, and keep the number of workers."""
        import ray

        try:
            while not self._ended.is_set():
                self._watch.look(any(member.is_ready for member in self._members))
                coming = {member.coming: member for member in self._members if member.coming is not None}
                if not coming:
                    self._ended.wait(LOOK_EVERY_S)
                    continue
                for ref in ray.wait(list(coming), num_returns=1, timeout=LOOK_EVERY_S)[0]:
                    self._take(coming[ref])
        except Exception as error:  # noqa: BLE001 - raised again, to those who wait for their calls
            self._fail(error)

    def _take(self, member: "_Member") -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            found: Any = ray.get(member.coming)
        except RayTaskError as error:  # of `initialize`: a fault of ours, on any node
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:
            self._replace_lost(member, error)
            return
        if not member.is_ready:
            self._begin(member, *found)
            return
        call = member.call
        assert call is not None
        succeeded, value = opened(found)
        if isinstance(value, UnfitNodeError):
            with self._lock:
                self._waiting.appendleft(call)
            self._leave_out(member, str(value))
            return
        with self._lock:
            member.call = member.coming = None
            self._give_out()
        settle(call.future, succeeded, value)

    def _begin(self, member: "_Member", node: str, line: str) -> None:
        member.node = node
        if line:
            self._leave_out(member, line)
            return
        self._lost_in_a_row = 0
        with self._lock:
            member.is_ready, member.coming = True, None
            self._give_out()

    def _leave_out(self, member: "_Member", line: str) -> None:
        if member.node not in self._unfit:
            logger.warning(line)
            self._unfit[member.node] = line
        _kill(member.handle)
        self._require_other_nodes(line)
        self._replace(member)

    def _require_other_nodes(self, line: str) -> None:
        """Raises UsageError where no node is left that might do the work."""
        import ray

        others = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU") and n["NodeID"] not in self._unfit]
        nodes = cluster_nodes()
        if not others and not nodes.coming and not nodes.grows:
            raise UsageError(line)

    def _replace_lost(self, member: "_Member", error: Exception) -> None:
        call = member.call
        if call is None:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= MOST_LOST:
                raise TransientError(
                    f"expected a worker to begin, found {MOST_LOST} lost in a row ({first_line(error)}); look for want of "
                    "memory on the nodes"
                )
        elif call.cost_another() >= MOST_LOST:
            call.future.set_exception(
                FlextokError(f"a call cost {MOST_LOST} workers, most likely for want of memory; run the same command again "
                             "where there is more of it (what is finished is kept)")
            )  # fmt: skip
        else:
            with self._lock:
                self._waiting.appendleft(call)
        _kill(member.handle)
        self._replace(member)

    def _replace(self, member: "_Member") -> None:
        with self._lock:
            self._members[self._members.index(member)] = self._new_member()
            self._give_out()

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._fault = error
            lost = [member.call for member in self._members if member.call is not None]
            lost += [call for call in self._waiting if call.is_wanted()]
            self._waiting.clear()
        for call in lost:
            call.future.set_exception(error)


class _Call:
    """A pickled (function, arguments) and what waits for its result."""

    def __init__(self, packed: bytes):
        self.packed = packed
        self.future: Future[Any] = Future()
        self._lost = 0
        self._begun = False

    def is_wanted(self) -> bool:
        """Whether nobody has cancelled it by now; from then on nobody can."""
        self._begun = self._begun or self.future.set_running_or_notify_cancel()
        return self._begun

    def cost_another(self) -> int:
        """The workers that were lost with this call, one more now."""
        self._lost += 1
        return self._lost


class _Member:
    """A worker, what comes from it next, the node that it is on, and the call that it is at work on."""

    def __init__(self, handle: Any, begins: Any):
        self.handle, self.coming = handle, begins
        self.node, self.is_ready = "", False
        self.call: _Call | None = None

    @property
    def is_free(self) -> bool:
        """Whether it waits for a call."""
        return self.is_ready and self.call is None


class _Worker:
    """The actor."""

    def begin(self, start: bytes) -> tuple[str, str]:
        """The node's id, and why it cannot do the work; "" where it can."""
        import ray

        keep_freed_memory()
        node = ray.get_runtime_context().get_node_id()
        initialize, arguments = unpack_job(start)
        try:
            initialize(*arguments)
        except FlextokError as error:
            return node, unfit_line(error)
        return node, ""

    def answer(self, call: bytes) -> bytes:
        """See flextok.runtime.processes."""
        return answer(call)


def _kill(handle: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # where Ray is gone, so is the worker
        ray.kill(handle)
