"""Worker processes end with their parent, however it ends, and keep the memory that they free."""

import os
import platform
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flextok.runtime.memory import ONE_HEAP

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
from flextok.runtime.processes import start_processes

pool = start_processes(2, os.nice, (0,))
pids = set()
while len(pids) < 2:
    pids |= {future.result() for future in [pool.submit(os.getpid) for _ in range(4)]}
if sys.argv[1] == "busy":
    for _ in pids:
        pool.submit(exec, "while True: pass")
print(*pids, flush=True)
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
