"""Running a training job: in this process, on Ray Train's workers, or as a member of a torchrun group.

A job's states lie under `<parent>/.runs/<fingerprint>`, which all workers must be able to reach and which the driver
locks; the same job started again resumes from there, and the folder goes when the checkpoint is written.
"""

import contextlib
import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist

from flextok import storage
from flextok.errors import FlextokError, TransientError, UsageError
from flextok.runtime import interrupts
from flextok.runtime.cluster import ensure_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.members import pack_job, unpack_job
from flextok.runtime.nodes import beside_options, cluster_nodes, size_text
from flextok.runtime.progress import track
from flextok.runtime.watch import ClusterWatch
from flextok.train.job import TrainJob, TrainResult, run_member, run_url
from flextok.train.loop import OnProgress, StopTraining
from flextok.train.parallel import DistContext
from flextok.train.state import clear_run, latest_step, locked_run

logger = logging.getLogger(__name__)

BEGUN, PROGRESS, ERROR = "begun", "progress.json", "error.json"
STOP, STOPPED = "stop", "stopped"
POLL_S = 1.0
STOP_S = 4.0  # longest wait for the first worker's state, well within interrupts.GRACE_S
ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Invalid)\w*(:|$)")  # in a traceback
STALL_TIMEOUT_S = 1800  # longest wait for another worker, as when it encodes its part of a corpus
WITHOUT_END_S = 3e8  # ten years: meanwhile an autoscaler sees what is wanted, and `ClusterWatch` says so
CONTROLLER_FAILURES = 1  # times that Ray Train may fail to start its workers before it gives up


def run_training(job: TrainJob, compute: ComputeConfig) -> TrainResult:
    """Train `job` to its end where `compute` says, showing progress on stderr.

    Under torchrun every member calls this and gets the result. A FlextokError of a worker is raised here as it is.
    Raises LockedError at once, naming the other, when the same job is being trained already, and UsageError where a sink
    of its history is not installed.
    """
    for sink in job.train_config.sinks:
        sink.check()
    if dist.is_torchelastic_launched():
        return _run_in_torchrun(job, compute)
    with locked_run(run_url(job)), _resume_told(job):
        if compute.train_workers == 0:
            result = _run_here(job, DistContext.joined(compute.gpus_per_worker > 0), compute)
            assert result is not None  # a world of one is its own first member
        else:
            result = _run_on_ray(job, compute)
        clear_run(run_url(job))
    return result


@contextlib.contextmanager
def _resume_told(job: TrainJob) -> Iterator[None]:
    """Says where an interrupted training is resumed."""
    try:
        yield
    except BaseException:
        if interrupts.pending():
            step = latest_step(run_url(job)) or 0
            interrupts.resumes(
                f"the same command, or `flextok refresh`, resumes the training of the {job.label} after step {step:,} "
                f"of {job.train_config.steps:,}"
            )
        raise


def _run_here(job: TrainJob, world: DistContext, compute: ComputeConfig) -> TrainResult | None:
    threads = torch.get_num_threads()
    torch.set_num_threads(compute.threads or threads)
    try:
        if not world.is_first:
            return run_member(job, world, compute, _quiet)
        with _shown(job) as show:
            return run_member(job, world, compute, show)
    finally:
        torch.set_num_threads(threads)


def _run_in_torchrun(job: TrainJob, compute: ComputeConfig) -> TrainResult:
    use_gpu = compute.gpus_per_worker > 0
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=timedelta(seconds=STALL_TIMEOUT_S))
    world = DistContext.joined(use_gpu)
    try:
        with _locked_by_first(run_url(job), world):
            results = [_run_here(job, world, compute)]
            if world.is_first:
                clear_run(run_url(job))
            dist.broadcast_object_list(results, src=0)
    finally:
        dist.destroy_process_group()
    assert results[0] is not None  # the first member's
    return results[0]


@contextlib.contextmanager
def _locked_by_first(url: str, world: DistContext) -> Iterator[None]:
    """Hold `url` in the first member; what keeps it from that is raised in all of them."""
    refused: list[FlextokError | None] = [None]
    with contextlib.ExitStack() as held:
        if world.is_first:
            try:
                held.enter_context(locked_run(url))
            except FlextokError as error:
                refused = [error]
        dist.broadcast_object_list(refused, src=0)
        if refused[0] is not None:
            raise refused[0]
        yield


def _run_on_ray(job: TrainJob, compute: ComputeConfig) -> TrainResult:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(compute.start_timeout_s or WITHOUT_END_S))
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    ensure_ray(compute.address, compute.num_cpus)
    _require_room(compute)
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    run = run_url(job)
    for name in (BEGUN, PROGRESS, ERROR, STOP, STOPPED):
        storage.remove(storage.join(run, name))
    interrupt = signal.getsignal(signal.SIGINT)
    # Ray keeps records of its own, which nothing here reads: the states under `run` are what a run resumes from.
    with tempfile.TemporaryDirectory(prefix="flextok-ray-train-") as scratch, _shown_from(job, run, _watch(compute)):
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"job": pack_job(job), "compute": compute},
            torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo", timeout_s=STALL_TIMEOUT_S),
            scaling_config=ray.train.ScalingConfig(
                num_workers=compute.train_workers,
                use_gpu=compute.gpus_per_worker > 0,
                resources_per_worker=_worker_resources(compute),
                label_selector=beside_options(compute.resources).get("label_selector"),
            ),
            run_config=ray.train.RunConfig(
                name=job.label,
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(
                    max_failures=compute.max_failures, controller_failure_limit=CONTROLLER_FAILURES
                ),
            ),
        )
        try:
            with _stopped_first(run):
                result = trainer.fit().return_value
        except SystemExit:
            # Ray Train answers Ctrl-C by ending its workers and then this process; callers expect the usual exception.
            raise KeyboardInterrupt from None
        except ray.train.TrainingFailedError as error:
            _raise_recorded(run)
            raise TransientError(_one_line(error)) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)
    _raise_recorded(run)
    if not isinstance(result, TrainResult):
        raise FlextokError(f"expected a trained {job.label} from the first worker, found {result!r}")
    return result


@contextlib.contextmanager
def _stopped_first(run: str) -> Iterator[None]:
    """Gives the first worker some seconds to write its state when a signal ends the block, before Ray ends with it."""
    try:
        yield
    except BaseException:
        if interrupts.pending():
            with interrupts.closing(), contextlib.suppress(OSError, FlextokError):
                storage.write_bytes(storage.join(run, STOP), b"")
                until = time.monotonic() + STOP_S
                while time.monotonic() < until and not storage.exists(storage.join(run, STOPPED)):
                    time.sleep(POLL_S / 5)
        raise


def _ray_worker(spec: dict) -> TrainResult | None:
    """What each of Ray Train's workers runs.

    A FlextokError would be the same on every attempt, but Ray Train restarts its workers after any exception. So the
    error is written down, and the workers of the next attempt end at once.
    """
    import ray.train

    job: TrainJob = unpack_job(spec["job"])
    compute: ComputeConfig = spec["compute"]
    error_url = storage.join(run_url(job), ERROR)
    if storage.exists(error_url):
        return None
    here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(compute.threads or max(1, (compute.num_cpus or os.cpu_count() or 1) // here))
    world = DistContext.joined(compute.gpus_per_worker > 0)
    if world.is_first:
        storage.write_bytes(storage.join(run_url(job), BEGUN), b"")
    try:
        if not world.is_first:
            return run_member(job, world, compute, _quiet)
        with _ProgressFile(run_url(job)) as progress:
            return run_member(job, world, compute, progress)
    except StopTraining:
        if world.is_first:  # whose state is written by now
            storage.write_bytes(storage.join(run_url(job), STOPPED), b"")
        raise
    except FlextokError as error:
        storage.write_json(error_url, {"kind": type(error).__name__, "message": str(error)})
        raise


def _worker_resources(compute: ComputeConfig) -> dict[str, float]:
    amounts = beside_options(compute.resources).get("resources", {})
    return {"CPU": 1, **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {}), **amounts}


def _watch(compute: ComputeConfig) -> ClusterWatch:
    workers = compute.train_workers
    what = "a training worker" if workers == 1 else f"each of {workers} training workers"
    hint = "what else runs there may have to end first, or lower compute.train_workers"
    return ClusterWatch(what, 1, compute.gpus_per_worker, hint, workers, compute.resources)


def _require_room(compute: ComputeConfig) -> None:
    """Refuse at once what Ray would wait for without end: more workers than the cluster can ever hold."""
    room = cluster_nodes(compute.resources).places(1, compute.gpus_per_worker)
    if room < compute.train_workers:
        each = size_text(1, compute.gpus_per_worker, compute.resources)
        raise UsageError(
            f"expected a cluster with room for {compute.train_workers} training workers of {each} each, found room "
            f"for {room}; lower compute.train_workers or compute.gpus_per_worker, or raise compute.num_cpus"
        )


def _raise_recorded(run: str) -> None:
    error_url = storage.join(run, ERROR)
    if storage.exists(error_url):
        error = storage.read_json(error_url)
        kinds: dict[str, type[FlextokError]] = {kind.__name__: kind for kind in (UsageError, TransientError)}
        raise kinds.get(error["kind"], FlextokError)(error["message"])


def _one_line(error: Exception) -> str:
    """What ended a training, from the deepest cause that Ray names."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), getattr(error, "controller_failure", error))
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    named = [line.strip() for line in lines if ERROR_LINE.match(line)]
    return (
        f"training failed: {storage.redact((named or lines)[-1])}; run the same command to resume from its last state"
    )


class _ProgressFile(logging.Handler):
    """Progress, and what the training warns of, written where the driver sees it; its wish to stop is looked for. At most
    once a POLL_S, and at the end of the block."""

    def __init__(self, run: str):
        super().__init__(logging.WARNING)
        self.run, self._next = run, 0.0
        self._last: dict[str, Any] = {"step": 0, "note": "", "warnings": []}

    def __enter__(self) -> Self:
        logging.getLogger("flextok.train").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("flextok.train").removeHandler(self)
        if self._last["warnings"]:
            with contextlib.suppress(OSError, FlextokError):
                self._write()

    def emit(self, record: logging.LogRecord) -> None:
        self._last["warnings"].append(record.getMessage())

    def __call__(self, step: int, note: str) -> None:
        self._last |= {"step": step, "note": note}
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + POLL_S
            # A courtesy: a full disk, or a store that fails, must not end a training.
            with contextlib.suppress(Exception):
                self._write()
            if self._is_to_stop():
                raise StopTraining

    def _is_to_stop(self) -> bool:
        with contextlib.suppress(Exception):
            return storage.exists(storage.join(self.run, STOP))
        return False

    def _write(self) -> None:
        storage.write_json(storage.join(self.run, PROGRESS), self._last)


def _quiet(step: int, note: str) -> None:
    """Only the first worker tells its progress."""


@contextlib.contextmanager
def _shown(job: TrainJob) -> Iterator[OnProgress]:
    """A bar or lines on stderr while the block runs."""
    with track(f"train {job.label}", job.train_config.steps, "steps") as task:
        yield task.update


@contextlib.contextmanager
def _shown_from(job: TrainJob, run: str, watch: ClusterWatch) -> Iterator[None]:
    """The same for workers elsewhere, from their progress file, and what they wait for."""
    ended = threading.Event()
    told: set[str] = set()

    def look(show: OnProgress) -> None:
        url = storage.join(run, PROGRESS)
        if not storage.exists(url):
            return
        found = storage.read_json(url)
        show(found["step"], found["note"])
        for line in found["warnings"]:
            if line not in told:
                told.add(line)
                logger.warning("%s", line)

    def poll(show: OnProgress) -> None:
        while not ended.wait(POLL_S):
            # Progress is a courtesy: what goes wrong with it must not end a training.
            with contextlib.suppress(Exception):
                watch.look(storage.exists(storage.join(run, BEGUN)))
                look(show)
        with contextlib.suppress(Exception):
            look(show)

    with _shown(job) as show:
        thread = threading.Thread(target=poll, args=(show,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        watch.tell_changes()
