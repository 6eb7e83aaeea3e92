"""Worker processes keep the memory that they free."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from flextok.runtime.processes import ONE_HEAP

FAULTS_OF_A_THREAD = """
import resource, threading
import torch
from flextok.runtime.processes import keep_freed_memory

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
