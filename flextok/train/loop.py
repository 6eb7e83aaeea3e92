"""The one training loop under stage 0, tokenizer and prior: plain torch, the same in one process and in many.

The gradient is the mean over the global batch whatever the number of workers; what is saved are the averaged (EMA)
weights and learned buffers. A run resumes exactly where its last state was written: weights, buffers, average, optimizer
moments and step are stored, sample order and random draws follow from them (see sample_order.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from flextok.errors import FlextokError, UsageError
from flextok.model.nn.dropout import BatchRows
from flextok.model.nn.flops import TRAINING
from flextok.model.nn.precision import autocast_dtype
from flextok.model.rng import SampleRng
from flextok.runtime import interrupts
from flextok.runtime.ahead import ahead
from flextok.runtime.compute import ComputeConfig
from flextok.train.alarms import Alarms
from flextok.train.blocks import prepare_blocks
from flextok.train.config import TrainConfig
from flextok.train.history import BackgroundSink, History
from flextok.train.machine import DEVICE_HOURS, Machine
from flextok.train.objective import Batch, Objective, Pictures
from flextok.train.optimizer import learning_rate
from flextok.train.parallel import DistContext, shares
from flextok.train.probe import Probe
from flextok.train.sample_order import sample_order
from flextok.train.saver import StateSaver
from flextok.train.selection import check_metric, is_newest_best, since_best
from flextok.train.sharding import adding_up, chosen_parallel, gathered, wrap, wrapped_again
from flextok.train.sinks.base import HistoryRow
from flextok.train.state import newest_state
from flextok.train.trained import Trained
from flextok.train.validation import held_out_losses

T = TypeVar("T")
OnProgress = Callable[[int, str], None]
DEFAULT_COMPUTE = ComputeConfig()
READ_AHEAD = 3  # batches


class StopTraining(Exception):
    """Raised by a function that gets the progress, to end the training after a state is written."""


def train(
    objective: Objective,
    config: TrainConfig,
    world: DistContext,
    run_url: str,
    validation: Objective | None = None,
    on_progress: OnProgress = lambda step, note: None,
    compute: ComputeConfig = DEFAULT_COMPUTE,
    sinks: Sequence[BackgroundSink] = (),
) -> list[HistoryRow]:
    """Train `objective.model` to the end and leave the averaged weights in it; gives back the history.

    Its rows go to `sinks` too, as they come. Averages of other decays are in `objective.further_averages`.

    Resumes from the newest state under `run_url`, whatever the number of members and `compute` that wrote it. All
    members of `world` call it with equal arguments and read and write states there; only the first has the weights in
    the end where they were trained in shards. Raises FlextokError when the loss or the gradient is not finite.
    """
    if len(objective.source) == 0:
        raise UsageError("expected samples to train on, found none")
    if config.batch_size < world.size * config.gradient_accumulation_steps:
        raise UsageError(
            "expected a batch of at least one sample a worker and accumulation step, found batch_size "
            f"{config.batch_size} for {world.size} workers and gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps}; raise train.batch_size, or lower train.gradient_accumulation_steps "
            "or compute.train_workers"
        )
    if config.is_judged and validation is None:
        raise UsageError(
            "expected held-out samples for train.keep_best and train.stop_early, found none; set train.validate_every, or "
            "leave them out"
        )
    return _Run(objective, config, world, run_url, validation, compute, sinks).run(on_progress)


class _Run:
    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        world: DistContext,
        run_url: str,
        validation: Objective | None,
        compute: ComputeConfig,
        sinks: Sequence[BackgroundSink],
    ):
        self.objective, self.config, self.world, self.run_url = objective.to(world.device), config, world, run_url
        self.validation = validation.to(world.device) if validation is not None else None
        prepare_blocks(objective.model, compute, world.device)
        # Sharding puts other parameters in the place of those that are there: what is made of them comes after it.
        self.forward = wrap(objective, world, chosen_parallel(compute, objective.trained().values(), world))
        self.trained = Trained(objective, config, world)
        self.saver = StateSaver(run_url, world, config.keep_states)
        self.has_frozen = False
        self.is_enough = False  # by held-out losses, before the last step
        self.dtype = autocast_dtype(config.precision, world.device)
        self.machine = Machine(world, self.dtype)
        self.probe: Probe | None = None  # of the step before a row of the history
        self.history = History(sinks)
        self.turns = objective.turns()
        self.alarms = Alarms(self.history, self.turns, tells=world.is_first)
        # Sums since the last row of the history: loss, gradient norm.
        self.sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        self.summed_steps = 0
        self.wish: StopTraining | None = None
        self.wishes = torch.zeros(1, device=world.device)  # of all members, after the step before

    def run(self, on_progress: OnProgress) -> list[HistoryRow]:
        try:
            self._train(on_progress)
        finally:
            self.saver.close()
        self.objective.further_averages = self.trained.further_averages()
        self.trained.finish()
        self.objective.eval()
        return self.history.rows

    def _train(self, on_progress: OnProgress) -> None:
        first_step = self._resume()
        self.objective.train()
        note = ""
        on_progress(first_step, note)
        self.machine.begin(sum(self.history.values(DEVICE_HOURS, most=1)))
        with interrupts.held():  # between steps, where a state can be written
            for step, batch, rng in self._batches(first_step) if not self.is_enough else ():
                self._freeze(step)
                if step in self.turns:
                    self.trained.turn()
                self._step(step, batch, rng)
                done = step + 1
                if self._is_due(done, self.config.log_every):
                    note = self._log(done)
                if self.validation is not None and self._is_due(done, self.config.validate_every):
                    self._validate(done, self.validation)
                    self._judge()
                pictures = self.objective.pictures
                if pictures is not None and self._is_due(done, pictures.every):
                    self._show(done, pictures)
                if done % self.config.checkpoint_every == 0 and done < self.config.steps:
                    self._save(done)
                self._tell(on_progress, done, note)
                if self.is_enough:
                    break

    def _freeze(self, step: int) -> None:
        if self.has_frozen:
            return
        if names := self.objective.frozen(step):
            self.trained.freeze(names)
            self.objective.freeze(self.world)
            self.forward = wrapped_again(self.forward, self.objective, self.world)
            self.has_frozen = True

    def _tell(self, on_progress: OnProgress, done: int, note: str) -> None:
        """Progress; where that brings the wish to end, or a signal has, a state is written first."""
        self.saver.tell()
        try:
            if interrupts.pending():
                raise StopTraining
            on_progress(done, note)
        except StopTraining as wish:
            self.wish = wish
        if self._is_stopped():
            if done < self.config.steps and self._is_sound():
                self._save_last(done)
            interrupts.check()
            raise self.wish or StopTraining

    def _is_stopped(self) -> bool:
        """Whether to end after this step: at once where this member can write the state without the others.

        Shards take all of them. They agree a step late, so that none waits for what the others do in this one.
        """
        if not self.trained.is_sharded:
            return self.wish is not None
        wishes, own = self.wishes, torch.full_like(self.wishes, self.wish is not None)
        self.wishes = self.world.sum(own)
        return bool(wishes > 0)

    def _is_sound(self) -> bool:
        """Whether all losses and gradients since the last row are finite: of all members where all of them write."""
        # Without shards the others are in the next step, and would be needed here for their sums.
        sums = self.world.sum(self.sums.clone()) if self.trained.is_sharded else self.sums
        return bool(sums.isfinite().all())

    def _step(self, step: int, batch: Batch, rng: SampleRng) -> None:
        config, world = self.config, self.world
        # Dropout's masks: the same after a resume, and for any number of workers and slices.
        seed = int(np.random.SeedSequence((config.seed, step, 0)).generate_state(1)[0])
        slices = [
            ({name: tensor[cut] for name, tensor in batch.items()}, SampleRng(rng.seed, rng.places[cut]))
            for cut in shares(len(rng), config.gradient_accumulation_steps)
        ]
        loss_sum = torch.zeros_like(self.sums[0])
        with self._autocast():
            self.objective.prepare(slices)
        for number, (part, own_rng) in enumerate(slices, 1):
            is_last = number == len(slices)
            place = own_rng.places[0] % config.batch_size
            with BatchRows.of_step(place, config.batch_size, seed), adding_up(self.forward, is_last):
                with self._autocast(), self.trained.buffers.slice(len(own_rng) / config.batch_size, is_last):
                    losses_B = self.forward(part, own_rng)
                # The gradient is averaged over workers, which may hold unequal parts of the batch.
                (losses_B.sum() * (world.size / config.batch_size)).backward()
            loss_sum += losses_B.detach().sum()
        self.probe = Probe() if self._is_due(step + 1, config.log_every) else None
        norm, is_taken = self.trained.step(step, self.probe)
        if not is_taken:
            self.probe = None
            self.alarms.tell_skipped(step + 1, norm.item())
            return
        self.sums += torch.stack([loss_sum, norm / world.size])
        self.summed_steps += 1

    def _batches(self, first_step: int) -> Iterator[tuple[int, Batch, SampleRng]]:
        """This worker's part of each global batch; read ahead in a thread where samples come from storage."""
        source, config = self.objective.source, self.config
        order = sample_order(config.seed, len(source), source.windows, source.weights)

        def fetch(step: int) -> tuple[int, Batch, SampleRng]:
            part = self.world.part(config.batch_size)
            places = range(step * config.batch_size + part.start, step * config.batch_size + part.stop)
            rng = SampleRng(config.seed, places)
            return step, self.objective.fetch(order.indices(places), rng), rng

        steps = range(first_step, config.steps)
        fetched = map(fetch, steps) if source.in_memory else _read_ahead(fetch, steps)
        for step, batch, rng in self.machine.waited_for(fetched):
            yield step, {name: tensor.to(self.world.device) for name, tensor in batch.items()}, rng

    def _log(self, done: int) -> str:
        if self.summed_steps == 0:
            return "all steps left out"
        flops, samples = self.objective.flops(), self.summed_steps * self.config.batch_size
        loss, norm = self._means(done)
        seconds = self.machine.seconds
        parts = {**(self.probe.values() if self.probe else {}), **self.objective.loss_parts(self.world)}
        values = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/lr": learning_rate(self.config.optimizer, done - 1, self.config.steps),
            **self.machine.row(samples, TRAINING * flops if flops else None),
            **self.objective.interval_metrics(self.world),
            **{f"train/{name}": value for name, value in parts.items()},
        }
        self.history.add(done, values)
        self.alarms.look(done, seconds)
        return f"loss {loss:.4f}"

    def _means(self, done: int) -> tuple[float, float]:
        """Mean loss and gradient norm since the last call."""
        loss_sum, norm_sum = self.world.sum(self.sums).tolist()
        means = loss_sum / (self.summed_steps * self.config.batch_size), norm_sum / self.summed_steps
        self.sums.zero_()
        self.summed_steps = 0
        self._check_finite(done, *means)
        return means

    def _is_due(self, done: int, every: int | None) -> bool:
        return every is not None and (done % every == 0 or done == self.config.steps)

    def _check_finite(self, done: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.history.add(done, {"alarm/not_finite": 1.0})
        raise FlextokError(
            f"expected a finite loss and gradient, found loss {loss:.4g} and gradient norm {norm:.4g} by step {done}; "
            "states from before are kept; lower train.optimizer.lr, take precision float32, or leave such steps out "
            "(train.skip_spikes)"
        )

    def _validate(self, done: int, validation: Objective) -> None:
        """Held-out losses of the averaged weights, in the history."""
        with self.trained.averaged(), gathered(self.objective), self._autocast():
            values = held_out_losses(validation, self.config, self.world)
        self.objective.train()
        self.history.add(done, values)

    def _show(self, done: int, pictures: Pictures) -> None:
        """Have the averaged weights draw pictures for the sinks.

        The first member does so alone where it holds all weights: the others wait for it in the exchange of gradients of
        the step after.
        """
        if not (self.world.is_first or self.trained.is_sharded):
            return
        with torch.no_grad(), self.trained.averaged(), gathered(self.objective):
            picture_HWC = pictures.drawn()
        self.objective.train()
        self.history.show(done, picture_HWC)

    def _judge(self) -> None:
        """After a validation: keep the weights that are the best so far, and see whether more are worth it."""
        best, stop = self.config.keep_best, self.config.stop_early
        for chosen in filter(None, (best, stop)):
            check_metric(self.history, chosen.metric)
        if best is not None and is_newest_best(self.history, best.metric):
            self.trained.keep()
        self.is_enough = self._has_enough()

    def _has_enough(self) -> bool:
        stop = self.config.stop_early
        return stop is not None and since_best(self.history, stop.metric) >= stop.patience

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def _save(self, done: int) -> None:
        """Begin to write the training state, unless it is already spoiled by a loss that is not finite."""
        self._check_finite(done, *self.world.sum(self.sums.clone()).tolist())
        self.saver.save(done, self.trained.tensors(), self.history.rows)

    def _save_last(self, done: int) -> None:
        """The state of a training that is to end: by the first member alone where that holds all of it."""
        if self.trained.is_sharded:
            self.saver.save_now(done, self.trained.tensors(), self.history.rows)
        elif self.world.is_first:
            self.saver.save_alone(done, self.trained.tensors(), self.history.rows)

    def _resume(self) -> int:
        """Take over the newest state, which is the first member's choice; gives back the steps done."""
        state = self.world.shared(newest_state(self.run_url) if self.world.is_first else None)
        if state is None:
            return 0
        self.trained.take_over(state, self.saver)
        self.history.take_over(state.record.history)
        self.is_enough = self._has_enough()
        return state.record.step


def _read_ahead(fetch: Callable[[int], T], steps: range) -> Iterator[T]:
    """`map(fetch, steps)` with the next few computed meanwhile, by one thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        for _, fetched in ahead(lambda step: pool.submit(fetch, step), steps, READ_AHEAD):
            yield fetched
