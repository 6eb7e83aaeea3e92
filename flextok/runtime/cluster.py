"""One way to reach Ray: start it on this machine, or join the cluster at an address."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from flextok.errors import TransientError
from flextok.runtime import interrupts, ray_token
from flextok.runtime.head import HeadWatch
from flextok.runtime.process_group import children_apart, start_reaper

# Ray warns about each of the first five once a second or once a process; none needs an action of a user. The sixth keeps
# a thread that outlives its job from connecting to whatever cluster it finds. The next gives workers the priority of
# other processes: by Ray's own, 15, a machine with anything else to do gave them a thirtieth of its time (measured on 2
# cores with 2 busy loops: a training began after 260 s, now after 35 s). The last keeps Ray from starting a worker for each
# core at once (80 MB and a second of a core each): actors that tokenize have an environment of their own and take none of
# those, the others are few.
SETTINGS = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
}

# Ray gives a node 30 s to start, which a busy machine may overrun.
START_ATTEMPTS = 3
SLOW_START = "timed out during startup"
REACH_TIMEOUT_S = 10.0
RAY_LOGGERS = ("ray.data", "ray.data.dataset", "ray.train")
RAY_FOLDER = "/ray/"
"""In the command line of every process that Ray starts."""

_reapers: list["subprocess.Popen[bytes]"] = []
_head_watches: list[HeadWatch] = []


def ensure_ray(address: str = "local", num_cpus: int | None = None) -> None:
    """Connect this process to Ray, once; a second call finds the first one's session.

    `address` is "local" (start here, ended by `stop_ray` or the process), "auto" or a cluster's address.
    Raises TransientError when Ray cannot be started or reached.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    if address == "local":
        _start_here(num_cpus)
    else:
        _join(address)
    interrupts.take_again()
    for name in RAY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _start_here(num_cpus: int | None) -> None:
    ray_token.use_own_token()
    try:
        _start("local", {"num_cpus": num_cpus, "include_dashboard": False}, START_ATTEMPTS)
    except Exception as error:
        raise TransientError(f"expected to start Ray on this machine, found: {first_line(error)}") from error
    # By themselves some of Ray's agents look for its store for a minute before they end, and a worker that is just being
    # started looks for nothing until it has imported Ray.
    from ray._private import worker

    assert worker._global_node is not None
    mark = f"--raylet-name={worker._global_node.raylet_socket_name}"
    _reapers.append(start_reaper([process.pid for process in _started_here()], mark))


def _join(address: str) -> None:
    head = _head_address(address)
    if head:
        _require_listener(head)
        ray_token.use_wanted_token(head)
    try:
        _start(address, {}, START_ATTEMPTS)
    except Exception as error:
        raise TransientError(
            f"expected to reach Ray at {address}, found: {first_line(error)}; check `ray status` and compute.address"
        ) from error
    if head:
        _head_watches.append(HeadWatch(head))


def _head_address(address: str) -> str | None:
    """host:port of the head, of which "auto" is the one that Ray's own commands would take; None where Ray must say."""
    if address == "auto":
        # Ray has no public way to ask which one that is.
        from ray._private.services import find_bootstrap_address

        found = os.environ.get("RAY_ADDRESS") or find_bootstrap_address(None)
        return found if found and "://" not in found and ":" in found else None
    return address if ":" in address and "://" not in address else None


def first_line(error: Exception) -> str:
    """Of what Ray raised, whose messages have many."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _start(address: str, options: dict[str, Any], attempts: int) -> None:
    """`ray.init`, tried again where the machine was only too slow."""
    import ray
    from ray._private import worker

    try:
        with _without_the_line_on_levels(), children_apart():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        # Else a thread of Ray's prints what its nodes tell on stdout, in the midst of a command's own lines, whatever
        # `log_to_driver` says: lost nodes and what is repeated, which `ClusterWatch` tells in a line each.
        worker._worker_logs_enabled = False
    except Exception as error:
        ray.shutdown()
        if attempts == 1 or SLOW_START not in str(error):
            raise
        _start(address, options, attempts - 1)


@contextlib.contextmanager
def _without_the_line_on_levels() -> Iterator[None]:
    """Keep from stderr what Ray's C++ part tells wherever RAY_BACKEND_LOG_LEVEL is set; all else follows after the block."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            told.seek(0)
            for line in told:
                if b"Set ray log level" not in line:
                    os.write(2, line)


def _require_listener(address: str) -> None:
    """Fail at once where nothing answers at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise TransientError(
            f"expected a Ray cluster at {address}, found: {error}; check that its head runs there and compute.address"
        ) from error


def hush_ray() -> None:
    """Before its actors or itself are ended: threads of Ray Data at work would tell of that in a hundred lines."""
    for name in RAY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def stop_ray() -> None:
    """Leave Ray, and end it with all its processes if `ensure_ray` started it here."""
    import ray

    hush_ray()
    family = _started_here()
    while _head_watches:
        _head_watches.pop().end()
    ray.shutdown()
    # Its agents look for their parent every now and then, and end some time after it.
    _kill(family)
    while _reapers:
        _reapers.pop().communicate()
    ray_token.forget_token()


def kill_ray() -> None:
    """End what `ensure_ray` started here at once, for a process that is about to be ended."""
    _kill(_started_here())


def _started_here() -> list[Any]:
    """The processes of a Ray that this process started, and theirs."""
    import psutil

    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if RAY_FOLDER in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found


def _kill(processes: list[Any]) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


@contextlib.contextmanager
def ray_ended() -> Iterator[None]:
    """Ends the Ray session that the block started, not one that was there before."""
    was_there = _ray_runs()
    try:
        yield
    finally:
        if _ray_runs() and not was_there:
            stop_ray()


def _ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()
