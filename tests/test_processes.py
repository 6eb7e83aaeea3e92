"""Worker processes end with their parent, however it ends, and keep the memory that they free."""

import os
import platform
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from flextok.runtime.memory import ONE_HEAP
from flextok.runtime.processes import ProcessPool

FAULTS_OF_A_THREAD = """
import resource, threading
import torch
from flextok.runtime.memory import keep_freed_memory

def page_faults(tensors):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    page_faults(20)  # until what is freed lies together
    print(page_faults(10))

keep_freed_memory(large=True)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
PAGES_OF_A_TENSOR = 64 * 2**20 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_large_tensors_of_a_thread_use_memory_that_was_freed():
    environment = {**os.environ, **ONE_HEAP, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS_OF_A_THREAD], env=environment, text=True, stdout=subprocess.PIPE, check=True
    )
    assert int(done.stdout) < PAGES_OF_A_TENSOR


PARENT_OF_WORKERS = """
import os, sys, threading
from flextok.runtime.processes import ProcessPool

pool = ProcessPool(2, os.nice, (0,))
if sys.argv[1] == "busy":
    for _ in pool.pids:
        pool.submit(exec, "while True: pass")
else:
    for future in [pool.submit(os.getpid) for _ in range(8)]:
        future.result()
print(*pool.pids, flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux, to wait for a process that is no child")
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_workers_die_with_a_parent_that_is_killed(state):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT_OF_WORKERS, state], env=environment, text=True, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    workers = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert len(workers) == 2
    for worker in workers:
        try:
            assert select.select([worker], [], [], 30)[0], "a worker outlived its parent"
        finally:
            os.close(worker)


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    with ProcessPool(2, os.nice, (0,)) as pool:
        yield pool


def test_results_and_exceptions_come_back(pool):
    futures = [pool.submit(divmod, number, 3) for number in range(50)]
    assert [future.result() for future in futures] == [divmod(number, 3) for number in range(50)]
    assert len(pool.submit(bytes, 3 * 2**20).result()) == len(pool.submit(bytes, bytes(3 * 2**20)).result())
    with pytest.raises(ZeroDivisionError) as raised:
        pool.submit(divmod, 1, 0).result()
    assert "in a worker process" in raised.value.__notes__[0]
    with pytest.raises(Exception, match="pickle"):
        pool.submit(open, os.devnull).result()
    assert pool.submit(abs, -1).result() == 1


def test_no_call_waits_behind_a_long_one_while_a_process_is_idle(pool, tmp_path):
    os.mkfifo(tmp_path / "long")
    long = pool.submit(os.open, tmp_path / "long", os.O_WRONLY)  # until somebody reads
    assert [pool.submit(abs, -number).result(timeout=60) for number in range(8)] == list(range(8))
    assert not long.done()
    os.close(os.open(tmp_path / "long", os.O_RDONLY))
    assert isinstance(long.result(timeout=60), int)


@pytest.mark.parametrize("size", [1000, 20_000, 3_000_000])
def test_pool_ends_where_a_process_is_killed_while_it_answers(size):
    """Half an answer must not be waited for."""
    pool = ProcessPool(2, os.nice, (0,), at_once=2)
    first, *others = [pool.submit(bytes, size) for _ in range(2000)]
    others += [pool.submit(signal.pause) for _ in pool.pids]  # there is work left, however late the kill is
    first.result()
    os.kill(pool.pids[0], signal.SIGKILL)
    assert not wait(others, timeout=60).not_done
    assert any(isinstance(future.exception(), BrokenProcessPool) for future in others)
    with pytest.raises(BrokenProcessPool):
        pool.submit(abs, -1)
    pool.end()


def test_pool_is_ended_while_its_processes_answer():
    pool = ProcessPool(2, os.nice, (0,), at_once=2)
    first, *others = [pool.submit(bytes, 300_000) for _ in range(2000)]
    first.result()
    pool.end()
    assert not wait(others, timeout=0).not_done


def test_process_that_cannot_be_made_ready_breaks_its_pool():
    pool = ProcessPool(1, divmod, (1, 0))
    with pytest.raises(BrokenProcessPool):
        pool.submit(abs, -1).result(timeout=60)


BUSY_AT_THE_END = """
import os
from flextok.runtime.processes import ProcessPool

pools = [ProcessPool(2, os.nice, (0,), at_once=2) for _ in range(6)]
for pool in pools:
    pool.submit(abs, -1).result()
    for _ in range(100):
        pool.submit(bytes, 300_000)
"""


def test_pools_that_nobody_ended_end_with_python_and_say_nothing():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", BUSY_AT_THE_END],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
