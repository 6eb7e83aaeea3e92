"""Members that a program registered itself reach its other processes, be they importable there or not."""

import subprocess
import sys
import sysconfig
import threading
import types
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from flextok.config import Operational
from flextok.metrics.base import IMAGE_METRICS, ImageMetric
from flextok.runtime.members import pack_members, unpack_members
from flextok.tokenize.lengths.base import LENGTHS, LengthPolicy

SHARE = 2


def far(images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> np.ndarray:
    return images_BHWC.astype(float).max(axis=(1, 2, 3)) * SHARE


CHECK = """
import sys
import threading
import numpy as np
from flextok.runtime.members import unpack_members
unpack_members(sys.stdin.buffer.read())
from flextok.metrics.base import IMAGE_METRICS
from flextok.tokenize.config import TokenizeConfig
config = TokenizeConfig.model_validate({"length": {"kind": "halves", "log": 3}})
pixels = np.full((1, 2, 2, 3), 7, np.uint8)
print(config.content()["length"], config.length.lengths(None, pixels, np.zeros((1, 8)), [])[0], IMAGE_METRICS["far"](pixels, pixels)[0])
"""


@pytest.fixture
def brought():
    """A policy that no import could find, and a metric that is an instance of the library's own class."""

    @LENGTHS.register
    class Halves(LengthPolicy):
        kind: Literal["halves"] = "halves"
        log: Operational[int] = 1

        def lengths(self, tokenizer, pixels, ids, sample_ids):
            return np.full(len(pixels), ids.shape[1] // SHARE)

    IMAGE_METRICS.add("far", ImageMetric(name="far", definition="toy", unit="", better="lower", compute=far))
    yield
    LENGTHS.remove("halves")
    IMAGE_METRICS.remove("far")


def test_another_process_has_what_this_one_registered(brought, tmp_path) -> None:
    packed = pack_members()
    done = subprocess.run([sys.executable, "-c", CHECK], input=packed, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n")[0] == "{'kind': 'halves'} 4 14.0"
    unpack_members(packed)  # what is here already stays


def test_the_librarys_own_members_travel_not(brought) -> None:
    packed = pack_members()
    assert b"AllTokens" not in packed
    assert b"halves" in packed


def test_an_installed_package_of_the_same_name_hides_none(brought, monkeypatch) -> None:
    """torch-fidelity brings a top-level package `tests`."""
    other = types.ModuleType("tests")
    other.__file__ = str(Path(sysconfig.get_path("purelib")) / "tests" / "__init__.py")
    monkeypatch.setitem(sys.modules, __name__.partition(".")[0], other)
    assert b"halves" in pack_members()


def test_one_that_cannot_be_sent_is_named_and_left_out(brought, caplog) -> None:
    lock = threading.Lock()

    def locked(images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> np.ndarray:
        with lock:
            return np.zeros(len(images_BHWC))

    IMAGE_METRICS.add("locked", ImageMetric(name="locked", definition="toy", unit="", better="lower", compute=locked))
    try:
        packed = pack_members()
    finally:
        IMAGE_METRICS.remove("locked")
    assert "'locked' cannot be sent" in caplog.text
    assert b"halves" in packed
