"""The tasks of a job as rows of a Ray dataset, small shards several in a row, mapped by actors that hold the tokenizer.

Ray Data keeps the actors: it asks for as many as there is room for, starts lost ones anew and repeats what they had. What
it does not do is speculative execution (backup tasks): a shard on a node that hangs would keep the job for ever. So rows
behind the tasks let idle actors make such a shard too; `StragglerMonitor` says which. Nor does it tell a node that fails
every shard from shards that fail everywhere: see `NodeFaults`.
"""

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from flextok import storage
from flextok.errors import TransientError, UsageError
from flextok.runtime.cluster import hush_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.memory import ONE_HEAP
from flextok.runtime.nodes import Beside, ClusterNodes, beside_options
from flextok.runtime.watch import ClusterWatch
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.straggler import StragglerMonitor
from flextok.tokenize.tasks import Task, task_to_json
from flextok.tokenize.team import HELP, SHARDS_AT_ONCE

SHOW_EVERY_S = 1.0
STRAGGLER_S = 60.0
"""See StragglerMonitor. A shard on a slow or hanging node costs this much at the end of a job."""
ENDING_S = 5.0
IMAGES_FOR_AN_ACTOR = 5000
ROWS_FOR_AN_ACTOR = 16
"""Fewest rows of an actor where small shards share rows: enough for actors to end at much the same time."""
LARGE_ROWS_FOR_AN_ACTOR = 64
IMAGES_IN_A_ROW = 1000
"""Above this a row of several shards is large: an actor has several rows waiting, and others none at the end."""
NAMED = 5
"""Shards that a line names."""
OTHERS_WITHIN_S = 30.0
"""Time for a first actor on another node, where those that came cannot do the work."""
logger = logging.getLogger(__name__)
PLACE_HINT = "lower compute.threads or compute.gpus_per_worker"
WAITING_HINT = f"what else runs there may have to end first, or {PLACE_HINT}"


@dataclasses.dataclass(frozen=True)
class Workers:
    """The actors of a job."""

    fewest: int
    most: int
    cpus: float
    gpus: float
    threads: int
    beside: Beside = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where an actor's tokenizer lives."""
        return "cuda" if self.gpus else "cpu"


def choose_workers(
    shard_images: Sequence[int], compute: ComputeConfig, nodes: ClusterNodes, for_an_actor: int = IMAGES_FOR_AN_ACTOR
) -> Workers:
    """The actors for shards of so many images, on `nodes`.

    An actor costs seconds to start, so that a second one is asked for only when there is work for it, `for_an_actor`
    images. More may be asked for than there is room now: Ray Data starts them when resources come. Raises UsageError where no node, there or to
    come, has room for one.
    """
    fewest, most = compute.tokenize_actors
    fewest = max(1, min(fewest, len(shard_images)))
    most = max(fewest, min(most, len(shard_images), 1 + sum(shard_images) // for_an_actor))
    gpus = compute.gpus_per_worker
    if gpus:
        # Ray reserves one CPU for each actor only; its decoders share the others of a node with those of its neighbours.
        cpus = float(compute.threads or 1)
        threads = compute.threads or _decoders_beside_gpus(nodes, gpus, most)
    else:
        threads = compute.threads or nodes.largest_share(most)
        cpus = float(threads)
    if not compute.on_cluster:  # all there is: threads may be more than cores
        cpus = min(cpus, max([1.0, *(node.cpus for node in nodes.all)]))
    nodes.require_place("an actor", cpus, gpus, PLACE_HINT, compute.resources)
    return Workers(fewest, most, cpus, gpus, threads, compute.resources)


def _decoders_beside_gpus(nodes: ClusterNodes, gpus: float, most: int) -> int:
    """CPUs of a node for each actor on it, on the node that has the fewest of them."""
    shares = [node.cpus // min(most, places) for node in nodes.all if (places := node.holds(1, gpus))]
    return max(1, int(min(shares, default=1)))


def run_tasks(
    tasks: Sequence[Task],
    actor: type,
    arguments: dict[str, Any],
    workers: Workers,
    show: Callable[[int, int], None],
) -> list[ShardOutcome]:
    """The first outcome of each task, made by actors of the class `actor` with `arguments` and a monitor.

    `show` gets the images done and the shards failed by now, every second. Raises UsageError where no node can do the
    work; TransientError when Ray cannot go on. Ray is connected.
    """
    import ray
    from ray.exceptions import RayError

    watch = ClusterWatch("an actor", workers.cpus, workers.gpus, WAITING_HINT, beside=workers.beside)
    monitor = _start_monitor(tasks)
    rows = _Rows(_mapped(tasks, actor, {**arguments, "monitor": monitor}, workers))
    outcomes: dict[str, ShardOutcome] = {}
    images = 0
    fitness = _Fitness(workers.most)

    def settle(found: Iterable[ShardOutcome]) -> None:
        if new := {outcome.shard: outcome for outcome in found if outcome.shard not in outcomes}:
            outcomes.update(new)
            monitor.settle.remote(list(new))

    try:
        while len(outcomes) < len(tasks):
            settle(rows.arrived(SHOW_EVERY_S))
            looks = [monitor.images.remote(), monitor.shards_begun.remote(), monitor.fitness.remote()]
            counted, begun, (fit, unfit), told = ray.get([*looks, monitor.told.remote()])
            settle(map(ShardOutcome.from_json, told))
            images = max(images, counted)  # a monitor that started anew begins at 0
            fitness.look(fit, unfit)
            watch.look(begun + fit > 0)
            show(images, sum(1 for outcome in outcomes.values() if outcome.record is None))
        watch.tell_changes()
    except RayError as error:
        raise TransientError(
            f"expected Ray to finish the job, found: {innermost_message(error)}; run the same command again "
            "(finished shards are kept)"
        ) from error
    finally:
        _end(rows, monitor, ENDING_S if len(outcomes) == len(tasks) else 0)
    _tell_warnings(list(outcomes.values()))
    fitness.tell_at_end()
    return list(outcomes.values())


def _tell_warnings(outcomes: list[ShardOutcome]) -> None:
    for outcome in outcomes:
        if outcome.warning:
            logger.warning(outcome.warning)
    for why in sorted({outcome.made_for for outcome in outcomes} - {""}):
        names = sorted(outcome.shard for outcome in outcomes if outcome.made_for == why)
        more = f" and {len(names) - NAMED} more" * (len(names) > NAMED)
        logger.warning("made by another actor, since %s: shards %s%s", why, ", ".join(names[:NAMED]), more)


class _Fitness:
    """Names nodes that cannot do the work, and ends the job where none can."""

    def __init__(self, most: int):
        self._most = most
        self._told: list[str] = []
        self._changed = time.monotonic()

    def look(self, fit: int, lines: list[str]) -> None:
        """`fit` actors can do the work, the others not, as their `lines` say.

        Raises UsageError where all actors that there may be are unfit, or no other came for a while.
        """
        for line in lines:
            if line not in self._told:
                logger.warning(line)
                self._told.append(line)
                self._changed = time.monotonic()
        alone = len(lines) >= self._most or time.monotonic() - self._changed > OTHERS_WITHIN_S
        if lines and not fit and alone:
            raise UsageError(lines[0])

    def tell_at_end(self) -> None:
        """Name once more, where a long job ends, what it went without."""
        if self._told:
            logger.warning("made without: %s", " | ".join(self._told))


def _start_monitor(tasks: Sequence[Task]) -> Any:
    """The monitor of a job, on the driver's node as far as Ray heeds it.

    Where it is lost (Ray may put it on a node that leaves) it starts anew with nothing counted, which costs no shard: one
    that is finished is found to be so by whoever is asked to help with it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options: Any = ray.remote(StragglerMonitor).options(
        num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
    )
    return options.remote({task.name: task_to_json(task) for task in tasks}, STRAGGLER_S)


def _end(rows: "_Rows", monitor: Any, patience_s: float) -> None:
    """Let the dataset come to its end; where it has not after `patience_s`, an actor hangs, and killing them ends it."""
    import ray
    from ray.cloudpickle import loads  # pyright: ignore
    from ray.exceptions import RayError

    with contextlib.suppress(RayError):  # where Ray is gone, so are its actors
        handles: Any = ray.get(monitor.close.remote())
        if not rows.ended(patience_s):
            hush_ray()
            for handle in handles:
                ray.kill(loads(handle))
            rows.ended(ENDING_S)
        ray.kill(monitor)


def _mapped(tasks: Sequence[Task], actor: type, arguments: dict[str, Any], workers: Workers) -> Any:
    """The dataset of outcomes: rows of tasks, and behind them one for each time that an actor may help out."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.data.dataset"):  # its import sets the level anew
        logging.getLogger(name).setLevel(logging.ERROR)
    # Two calls at once let an actor read and decode the next shard while the model is at work on this one; a third
    # waits there, so that no time is lost until the driver sends another. As many may hang with an actor.
    in_flight = SHARDS_AT_ONCE + 1
    pool = ray.data.ActorPoolStrategy(
        min_size=workers.fewest,
        max_size=workers.most,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
        enable_true_multi_threading=True,
    )
    texts = task_rows(tasks, workers.most) + [HELP] * (in_flight * workers.most if workers.most > 1 else 0)
    rows = ray.data.from_items([{"task": text} for text in texts], override_num_blocks=len(texts))
    # Ray Data starts a lost actor again and repeats its calls without limit, as nodes that come and go require; the
    # actors themselves give up a shard which kills them time and again (see team.MOST_CRASHES).
    return rows.map(
        actor,  # pyright: ignore[reportArgumentType]
        fn_constructor_kwargs=arguments,
        compute=pool,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        runtime_env={"env_vars": ONE_HEAP},
        **beside_options(workers.beside),
    )


def task_rows(tasks: Sequence[Task], actors: int) -> list[str]:
    """Tasks as lines of JSON, one in a row; of small shards several, while each of `actors` still has many rows.

    A row costs the driver and Ray some milliseconds (measured: 11 ms on 2 busy cores), whatever is in it.
    """
    most_small, most_large = (
        max(1, len(tasks) // (rows * actors)) for rows in (ROWS_FOR_AN_ACTOR, LARGE_ROWS_FOR_AN_ACTOR)
    )
    rows: list[list[str]] = []
    images = 0
    for task in tasks:
        most = most_small if images + task.source.samples <= IMAGES_IN_A_ROW else most_large
        if not rows or len(rows[-1]) >= most:
            rows.append([])
            images = 0
        rows[-1].append(task_to_json(task))
        images += task.source.samples
    return ["\n".join(row) for row in rows]


class _Rows:
    """The outcomes of a dataset, taken by a thread: an actor that hangs would keep its consumer for ever."""

    def __init__(self, dataset: Any):
        self._ready: queue.Queue[ShardOutcome | BaseException] = queue.Queue()
        self._thread = threading.Thread(target=self._take, args=(dataset,), name="outcomes", daemon=True)
        self._thread.start()

    def arrived(self, timeout_s: float) -> Iterator[ShardOutcome]:
        """What is there, or comes within `timeout_s`; raises RayError when Ray could not go on."""
        with contextlib.suppress(queue.Empty):
            while True:
                found = self._ready.get(timeout=timeout_s)
                if isinstance(found, BaseException):
                    raise found
                yield found
                timeout_s = 0

    def ended(self, timeout_s: float) -> bool:
        """Whether the dataset comes to its end within `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _take(self, dataset: Any) -> None:
        try:
            # Each row as soon as it is there: one that is read ahead would be kept back until another follows.
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                for outcomes in batch["outcome"]:
                    for outcome in filter(None, str(outcomes).split("\n")):
                        self._ready.put(ShardOutcome.from_json(outcome))
        except BaseException as error:  # noqa: BLE001 - raised again, to the consumer
            self._ready.put(error)


def innermost_message(error: BaseException) -> str:
    """The innermost message of a Ray error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return storage.redact(lines[-1])[:500] if lines else type(error).__name__
