"""Training states written beside the training: kills at each moment of it, full disks, stores that fail or hang."""

import contextlib
import itertools
import json
import multiprocessing as mp
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from saved_states import load_latest_state
from train_toy import make_objective

from flextok.errors import FlextokError, UsageError
from flextok.runtime.compute import ComputeConfig
from flextok.train import saver
from flextok.train.config import OptimizerConfig, TrainConfig
from flextok.train.launch import PROGRESS, _ProgressFile
from flextok.train.loop import StopTraining, train
from flextok.train.parallel import DistContext
from flextok.train.saver import share
from flextok.train.sinks.base import HistoryRow
from flextok.train.state import newest_state, written_steps

CONFIG = TrainConfig(
    steps=20, batch_size=8, optimizer=OptimizerConfig(lr=0.01, warmup_steps=3), precision="float32", checkpoint_every=5,
    log_every=1, keep_states=2,
)  # fmt: skip
FSDP = ComputeConfig(parallel="fsdp")
PROCESSES = mp.get_context("forkserver")
Result = tuple[list[HistoryRow], torch.Tensor]
Progress = Callable[[int, str], None]


def quiet(step: int, note: str) -> None:
    pass


def trained(run: str, world: DistContext = DistContext(), on_progress: Progress = quiet, **settings: Any) -> Result:  # noqa: B008
    """The losses and the first member's weights."""
    objective = make_objective()
    compute = FSDP if world.size > 1 else ComputeConfig()
    config = CONFIG.model_copy(update=settings)
    rows = train(objective, config, world, run, on_progress=on_progress, compute=compute)
    losses = [row for row in rows if row[1] == "train/loss"]
    return losses, torch.cat([p.detach().flatten() for p in objective.model.parameters()])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return trained(str(tmp_path_factory.mktemp("straight")))


def assert_same(found: Result, expected: Result) -> None:
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


def at(step: int, do: Callable[[], None]) -> Progress:
    return lambda done, note: do() if done == step else None


def stop() -> None:
    raise StopTraining


class EndedHere(Exception):
    """What a test raises to end a run without a last state."""


def end() -> None:
    raise EndedHere


# Processes that are killed


def _die_at(moment: int) -> None:
    """Kill this process at the `moment`-th access to a file of the second state, or at the removal of the first."""
    seen = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        path = str(arguments[0]) if arguments else ""
        is_written = event in ("open", "os.rename") and "step_000000010" in path
        is_removed = event in ("os.remove", "shutil.rmtree") and re.search("step_000000005(/state.json)?$", path)
        if is_written or is_removed:
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def _train_to_death(run: str, moment: int) -> None:
    torch.set_num_threads(1)
    _die_at(moment)
    with contextlib.suppress(EndedHere):
        trained(run, keep_states=1, on_progress=at(14, end))


def test_a_kill_at_any_moment_of_a_save_is_resumed_to_the_same_weights(straight: Result, tmp_path: Path) -> None:
    """Killed at each access to a file while a state is written and that before it removed."""
    PROCESSES.set_forkserver_preload(["test_saver", "flextok.train.state_storage"])
    left = []
    for moment in range(1, 100):
        run = str(tmp_path / str(moment))
        process = PROCESSES.Process(target=_train_to_death, args=(run, moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        state = newest_state(run)
        left.append(state.record.step if state else 0)
        assert_same(trained(run), straight)
        assert sorted(path.name for path in Path(run).iterdir()) == ["step_000000010", "step_000000015"]
    assert left == sorted(left) and left.count(5) >= 4 and left.count(10) >= 2


# Groups of other sizes


def _member(rank: int, size: int, root: str, run: str, stop_at: int | None, moment: int | None, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/{run}-{size}", rank=rank, world_size=size)
    if moment is not None and rank == 1:
        _die_at(moment)
    try:
        progress = at(stop_at, stop) if stop_at is not None else quiet
        found = trained(f"{root}/{run}", DistContext(rank, size), progress)
        if rank == 0:
            results.put((found[0], found[1].numpy()))
    except StopTraining:
        pass
    dist.destroy_process_group()


def group(size: int, root: Path, run: str, stop_at: int | None = None, moment: int | None = None) -> Result | None:
    """What `size` members with shards come to; None where they are stopped, or one of them is killed."""
    results = PROCESSES.SimpleQueue()
    arguments = (size, str(root), run, stop_at, moment, results)
    members = [PROCESSES.Process(target=_member, args=(rank, *arguments)) for rank in range(size)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    if moment is not None:
        assert members[1].exitcode == -signal.SIGKILL and members[0].exitcode != 0
    if results.empty():
        return None
    losses, weights = results.get()
    return losses, torch.from_numpy(weights)


def assert_close(found: Result | None, expected: Result) -> None:
    assert found is not None
    assert [row[:2] for row in found[0]] == [row[:2] for row in expected[0]]
    assert [row[2] for row in found[0]] == pytest.approx([row[2] for row in expected[0]], abs=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-4)


def test_a_training_goes_on_with_other_numbers_of_workers(straight: Result, tmp_path: Path) -> None:
    """Two with shards, then one without, then three with uneven ones."""
    assert group(2, tmp_path, "run", stop_at=7) is None
    state, record = load_latest_state(str(tmp_path / "run")), newest_state(str(tmp_path / "run"))
    assert state is not None and record is not None and state.step == 8  # the step after the wish
    assert len(record.record.files) == 2
    weight = record.record.tensors["exp_avg.blocks.0.weight"]
    assert [piece.offsets for piece in weight.pieces] == [(0, 0), (8, 0)]
    with pytest.raises(StopTraining):
        trained(str(tmp_path / "run"), on_progress=at(13, stop))
    assert_close(group(3, tmp_path, "run"), straight)


def test_a_member_that_is_killed_while_it_writes_its_part_leaves_the_state_before(
    straight: Result, tmp_path: Path
) -> None:
    assert group(2, tmp_path, "run", moment=1) is None
    assert written_steps(str(tmp_path / "run")) == [5]
    assert_close(trained(str(tmp_path / "run")), straight)


def test_whole_tensors_are_shared_out() -> None:
    tensors = {str(size): torch.zeros(size) for size in (1, 2, 3, 5, 8, 13, 21)}
    parts = [share(tensors, DistContext(rank, 3)) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(tensors)
    assert [sum(tensor.numel() for tensor in part.values()) for part in parts] == [21, 16, 16]


# Places that are full, fail or hang


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("flextok")]


def test_a_full_disk_costs_a_state_and_no_step(
    straight: Result, small_disk: tuple[Path, Callable[[str], None]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, resize = small_disk
    resize("200k")
    filler, run = folder / "filler", str(folder / "run")

    def fill() -> None:
        with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def look(step: int, note: str) -> None:
        if step == 7:
            fill()
        if step == 14:
            assert written_steps(run) == [5]
            assert [path.name for path in Path(run).rglob("*part*")] == [
                path.name for path in Path(run).glob("*5/part*")
            ]
            filler.unlink()

    assert_same(trained(run, on_progress=look), straight)
    (line,) = lines(caplog)
    assert line.startswith("step 10: could not write its training state: ") and "No space left on device" in line
    assert line.endswith("the training goes on, and would resume after step 5")
    assert written_steps(run) == [5, 15]


def test_progress_on_a_full_disk_ends_no_training(small_disk: tuple[Path, Callable[[str], None]]) -> None:
    folder, _ = small_disk
    with pytest.raises(OSError, match="No space left"):
        (folder / "filler").write_bytes(bytes(1 << 20))
    with _ProgressFile(str(folder)) as progress:
        progress(1, "loss 1")
    assert not (folder / PROGRESS).exists()


def test_a_store_that_fails_one_request_in_ten_holds_whole_states(
    straight: Result, s3_folder: str, s3_faults: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    failed, number = [], itertools.count(1)

    def every_tenth(environ: dict[str, Any]) -> str | None:
        if next(number) % 10:
            return None
        failed.append(environ["REQUEST_METHOD"])
        return "503 Slow Down"

    s3_faults.append(every_tenth)
    with pytest.raises(StopTraining):
        trained(s3_folder, on_progress=at(13, stop))
    assert_same(trained(s3_folder), straight)
    assert len(failed) > 3 and lines(caplog) == []
    assert written_steps(s3_folder) == [13, 15]


def test_a_store_that_hangs_holds_up_no_step_and_gets_what_was_there_when_the_state_was_due(
    straight: Result, s3_folder: str, s3_faults: list[Any], caplog: pytest.LogCaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(saver, "PATIENCE_S", 0.01)
    is_open = threading.Event()
    is_open.set()
    s3_faults.append(lambda environ: None if is_open.wait() else "500")

    def look(step: int, note: str) -> None:
        if step == 8:
            is_open.clear()  # before any request for the first state
        if step == 19:
            is_open.set()

    assert_same(trained(s3_folder, on_progress=look, checkpoint_every=9), straight)
    (line,) = lines(caplog)
    assert line.startswith("step 18: its training state is left out, as that of step 9 is still being written; ")
    assert written_steps(s3_folder) == [9]
    with pytest.raises(StopTraining):
        trained(str(tmp_path), on_progress=at(9, stop))
    found, expected = load_latest_state(s3_folder), load_latest_state(str(tmp_path))
    assert found is not None and expected is not None and found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


# States that are damaged, or of others


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Of a training that was stopped, with its states of steps 10 and 13."""
    with pytest.raises(StopTraining):
        trained(str(tmp_path / "run"), on_progress=at(13, stop))
    assert written_steps(str(tmp_path / "run")) == [10, 13]
    return str(tmp_path / "run")


def part_of(run: str, step: int) -> Path:
    (part,) = Path(run, f"step_{step:09d}").glob("*.safetensors")
    return part


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_damaged_state_is_passed_over_for_the_one_before(
    damage: str, run: str, straight: Result, caplog: pytest.LogCaptureFixture
) -> None:
    part = part_of(run, 13)
    content = part.read_bytes()
    part.unlink()
    if damage == "cut off":
        part.write_bytes(content[:-1])
    seen: list[int] = []
    assert_same(trained(run, on_progress=lambda step, note: seen.append(step)), straight)
    assert seen[0] == 10
    assert lines(caplog) == [f"the training state {part.parent} is passed over: {part.name} is gone or cut off"]


def test_what_is_no_state_of_this_training_is_refused_in_one_line(run: str, tmp_path: Path) -> None:
    part, record_path = part_of(run, 13), part_of(run, 13).with_name("state.json")
    record = json.loads(record_path.read_text())

    def refused(kind: type[FlextokError], match: str, changed: dict[str, Any]) -> None:
        record_path.write_text(json.dumps(changed))
        with pytest.raises(kind, match=match) as error:
            trained(run)
        assert "\n" not in str(error.value)

    refused(
        FlextokError, "format flextok.training-state/2 in .*, found 'x/3'; resume with", {**record, "format": "x/3"}
    )
    tensors = {name: tensor for name, tensor in record["tensors"].items() if name != "exp_avg.head.bias"}
    refused(FlextokError, "Missing key .* exp_avg.head.bias", {**record, "tensors": tensors})
    tensors = json.loads(json.dumps(record["tensors"]).replace(part.name, "../../secret"))
    refused(UsageError, "state.json: 'tensors.*file'.*secret", {**record, "tensors": tensors})
    part.write_bytes(b"\xff" * part.stat().st_size)
    refused(FlextokError, "expected a whole part of a training state in .*; remove its folder", record)
