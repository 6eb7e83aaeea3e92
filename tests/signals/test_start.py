"""A signal in the first second of a command, while its modules are imported, ends it with the same line as later ones."""

import signal
import subprocess
import sys

import pytest
from flextok_process import AS_IN_A_TERMINAL, ROOT

# Modules are imported slowly enough for a signal in the middle, and the process says so when the first comes.
IMPORTS = """
import sys, time

class Slow:
    def find_spec(self, name, path, target=None):
        if name.startswith("pipelines.commands"):
            print("importing", flush=True)
            time.sleep(0.3)
        return None

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_imports_ends_a_command_with_a_line(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTS + AS_IN_A_TERMINAL, "status"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = told.splitlines()
    assert line.startswith("error: interrupted; ") and "resumes" in line
