"""Train a model and keep its best weights; the weights it starts with are epoch 0 and compete.

One loop for fine-tuning, on images or on what the frozen part makes of them, and for training from scratch, so that
they can be compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.errors import EnvironmentFault
from featcache.spec import Progress, Tick, silent
from featcache.sweeps.metrics import Metric, Score, better, log_loss, score
from featcache.tuning.data import Labelled, in_order
from featcache.tuning.optimizing import Group, make_optimizer, rate_at
from featcache.tuning.recipe import Recipe
from featcache.tuning.state import State

Checkpoint = Callable[[], None]
KeepState = Callable[[State], None]
VALIDATE = "judge on validation images"  # a step of the progress
MIXTURES = tuple(step / 10 for step in range(1, 10))  # shares of the end's weights, the rest is the start's
NO_MEMORY = (
    "resource_exhausted",
    "resourceexhausted",
    "out of memory",
    "oom when",
    "memoryerror",
    "failed to allocate",
)


@dataclass(frozen=True)
class Epoch:
    """One line of the history; epoch 0 is the start."""

    epoch: int
    train_loss: float  # NaN where nothing was trained
    val_loss: float
    val: Score
    seconds: float  # validation included, writing files not; of the first epoch compilation too
    metric: Metric = "accuracy"
    images: int = 0  # that training has seen until here
    mixture: float | None = None  # share of these weights in a mixture with those of the start

    def better_than(self, other: Epoch) -> bool:
        """Tell whether this epoch has the better validation score, or the same and the lower loss."""
        mine, theirs = (better(self.metric, epoch.val.value) for epoch in (self, other))
        return (mine, -self.val_loss) > (theirs, -other.val_loss)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"train_loss": self.train_loss if math.isfinite(self.train_loss) else None}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Epoch:
        """Return the epoch that `to_json` wrote."""
        loss = math.nan if facts["train_loss"] is None else facts["train_loss"]
        return cls(**{**facts, "train_loss": loss, "val": Score(*facts["val"])})


@dataclass(frozen=True)
class Trained:
    """What training came to; the model holds the weights of the best epoch."""

    history: tuple[Epoch, ...]
    best: Epoch
    val_logits: Floats  # (M, K), what the best says of the validation images
    stopped: str = ""  # why it ended before its epochs were over, if it did
    batch: int = 0  # images per step: less than asked for, where memory was short


@dataclass
class Task:
    """What is trained on what."""

    model: Any  # keras.Model: what the sets give -> logits (N, K)
    groups: Sequence[Group]  # the weights that train: of the twin if there is one
    train_set: Labelled
    val_set: Labelled
    changing: Sequence[Any]  # all weights of the model that training can change
    twin: Any = None  # the same model at reduced precision, which is the one that trains
    checkpoint: Checkpoint = lambda: None  # called whenever the model holds weights better than any before
    keep: KeepState | None = None  # called after every epoch
    facts: dict[str, Any] | None = None  # of the training, for its state
    log: Callable[[Epoch, float], None] = lambda epoch, rate: None
    name: str = "train"  # of its progress


def train(task: Task, recipe: Recipe, progress: Progress, state: State | None = None) -> Trained:
    """Train; leave the model with its best weights.

    Stops early after `patience` epochs without improvement, `max_seconds` after its first step, or when the loss is not
    finite. When memory runs out it goes on with half the batch, once. state: to go on from.
    Raises EnvironmentFault if memory runs out again.
    """
    run = _Running(task, recipe, progress)
    if state is None:
        run.begin()
    else:
        run.go_on(state)
    run.to_the_end()
    if recipe.wise_ft:
        run.mix()
    run.assign(run.best_weights)
    if state is not None:
        task.checkpoint()  # the file may have been moved away meanwhile
    return Trained(tuple(run.history), run.best, run.logits_of_best(), run.stopped, run.recipe.batch)


def predict_logits(
    model: Any, images: Labelled, batch: int = 32, progress: Progress = silent, step: str = "predict"
) -> Floats:
    """Return (N, K) logits of a logits model; the last batch is filled up so that one shape is compiled.

    step: what the progress, which counts images, is called.
    """
    found = []
    done, total = 0, len(images)
    progress(Tick(step, done, total))
    for inputs, _ in images.batches(in_order(images), batch):
        several = isinstance(inputs, list)
        filled = [_filled(one, batch) for one in inputs] if several else _filled(inputs, batch)
        count = len(inputs[0]) if several else len(inputs)
        found.append(np.asarray(model.predict_on_batch(filled))[:count])
        done += count
        progress(Tick(step, done, total))
    return np.concatenate(found)


class _Running:
    """A training under way."""

    def __init__(self, task: Task, recipe: Recipe, progress: Progress) -> None:
        self.task, self.recipe, self.progress = task, recipe, progress
        self.clock = _Clock(recipe.max_seconds)
        self.history: list[Epoch] = []
        self.stopped = ""
        self.is_over = self.is_halved = False
        self.trainer = task.twin or task.model
        self._compile()
        self.start_weights = self._weights() if recipe.wise_ft else []

    def begin(self) -> None:
        """Judge the start, which is epoch 0."""
        self.last_weights, self.last_slots = self._weights(), self._slots()
        start = Epoch(0, math.nan, math.nan, Score(0, 0, 0), 0.0)
        try:
            found = self._evaluate(start)
        except Exception as error:
            self._halve_batch(error)
            found = self._evaluate(start)
        self._note(found)

    def go_on(self, state: State) -> None:
        """Take over the weights, the optimizer and the history of an earlier training."""
        self.history = [Epoch.from_json(one) for one in state.history]
        self.best = self.history[0]
        for one in self.history[1:]:
            self.best = one if one.better_than(self.best) else self.best
        self.best_weights, self.last_weights = list(state.best), list(state.weights)
        if state.batch != self.recipe.batch:
            self.recipe, self.is_halved = replace(self.recipe, batch=state.batch), True
            self._compile()
        self.last_slots = list(state.optimizer)
        self._go_back()
        self.is_over = state.is_over

    def to_the_end(self) -> None:
        """Train epoch after epoch."""
        while not self.is_over and self.history[-1].epoch < self.recipe.epochs:
            try:
                self._one_epoch(self.history[-1].epoch + 1)
            except Exception as error:
                self._halve_batch(error)

    def mix(self) -> None:
        """Judge mixtures of the weights of the start and the end (WiSE-FT, https://arxiv.org/abs/2109.01903).

        The end is the best epoch, or the last where none was better than the start.
        """
        epoch = self.best.epoch or self.history[-1].epoch
        end = self.best_weights if self.best.epoch else self.last_weights
        for share in MIXTURES if epoch else ():
            self.assign([(1 - share) * one + share * other for one, other in zip(self.start_weights, end, strict=True)])
            self._note(self._evaluate(Epoch(epoch, math.nan, math.nan, Score(0, 0, 0), 0.0, mixture=share)))

    def logits_of_best(self) -> Floats:
        """Return (M, K) of the validation images, once the model has its best weights."""
        return predict_logits(self.task.model, self.task.val_set, self.recipe.batch, self.progress, VALIDATE)

    def assign(self, weights: Sequence[Floats]) -> None:
        """Set the weights that training changes."""
        for variable, value in zip(self.task.changing, weights, strict=True):
            variable.assign(value)
        if self.task.twin is not None:
            self.task.twin.set_weights(self.task.model.get_weights())

    def _one_epoch(self, number: int) -> None:
        began = time.perf_counter()
        loss, seen = self._steps(number)
        rate = rate_at(self.task.groups[0], self.recipe, self._step(), self.steps)
        if not math.isfinite(loss):
            return self._diverged("loss", number, self._step() + math.ceil(seen / self.recipe.batch) - 1)
        found = self._evaluate(
            Epoch(number, loss, math.nan, Score(0, 0, 0), 0.0, images=seen + self.history[-1].images)
        )
        if not math.isfinite(found.val_loss):
            return self._diverged("validation loss", number, self._step() + self.num_batches - 1)
        found = replace(found, seconds=time.perf_counter() - began)
        self._note(found)
        self.task.log(found, rate)
        self._show(number, self.num_batches)
        too_long = number - self.best.epoch >= self.recipe.patience
        self.is_over = self.clock.is_up or too_long or number == self.recipe.epochs
        if too_long and not self.clock.is_up:
            self.stopped = f"no better validation score for {self.recipe.patience} epochs in a row"
        self._keep()

    def _batches(self, number: int) -> Iterator[tuple[Any, Classes]]:
        """Yield the batches of an epoch, all of one size, so that one shape is compiled.

        50 images in batches of at most 32 make two of 25; what does not divide evenly, less than one image per batch,
        waits for another epoch. With `steps_per_epoch`, batches are full, and the images are gone through as often as
        that takes, each time in another order and, if views are new in every epoch, in new views.
        """
        count = len(self.task.train_set)
        size = count // self.num_batches
        if self.recipe.steps_per_epoch is not None:
            size = min(self.recipe.batch, count)
        of_pass = min(self.num_batches, count // size)
        num_passes = math.ceil(self.num_batches / of_pass)
        for at in range(num_passes):
            number_of_pass = (number - 1) * num_passes + at + 1
            order = np.random.default_rng((self.recipe.seed, number_of_pass)).permutation(count)
            steps = min(of_pass, self.num_batches - at * of_pass)
            yield from self.task.train_set.batches(order[: size * steps], size, number_of_pass)

    def _steps(self, number: int) -> tuple[float, int]:
        """Train for an epoch, or until time is up; return the mean loss and how many images were seen."""
        losses, seen, num_classes = [], 0, self.task.model.outputs[0].shape[-1]
        self._show(number, 0)
        for inputs, labels in self._batches(number):
            seen += len(labels)
            wanted = np.eye(num_classes, dtype=np.float32)[labels] if self.recipe.label_smoothing else labels
            weights = self.class_weights[labels]
            losses.append(float(self.trainer.train_on_batch(inputs, wanted, sample_weight=weights)))
            self.clock.tick()
            if len(losses) < self.num_batches:  # the last is shown once it is judged
                self._show(number, len(losses))
            if not math.isfinite(losses[-1]) or self.clock.is_up:
                break
            self.trainer.reset_metrics()
        return float(np.mean(losses)), seen

    def _diverged(self, what: str, number: int, step: int) -> None:
        self.is_over = True
        rate, name = max((rate_at(group, self.recipe, step, self.steps), group.name) for group in self.task.groups)
        self.stopped = f"the {what} was not finite in epoch {number}, at a learning rate of {rate:.1e} ({name})"

    def _note(self, found: Epoch) -> None:
        self.history.append(found)
        self.last_weights = self._weights()
        if len(self.history) == 1 or found.better_than(self.best):
            self.best, self.best_weights = found, self.last_weights
            self.task.checkpoint()

    def _keep(self) -> None:
        self.last_slots = self._slots()
        if self.task.keep is not None:
            optimizer = tuple(self.last_slots)
            history = tuple(one.to_json() for one in self.history)
            weights, best = tuple(self.last_weights), tuple(self.best_weights)
            self.task.keep(
                State(self.task.facts or {}, weights, best, optimizer, history, self.recipe.batch, self.is_over)
            )

    def _compile(self) -> None:
        import keras

        recipe = self.recipe
        self.num_batches = recipe.steps_per_epoch or math.ceil(len(self.task.train_set) / recipe.batch)
        self.steps = self.num_batches * recipe.epochs
        self.class_weights = _class_weights(self.task.train_set.labels, recipe.class_weight)
        kinds = keras.losses
        loss: Any = kinds.SparseCategoricalCrossentropy(from_logits=True)
        if recipe.label_smoothing:
            loss = kinds.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
        optimizer = make_optimizer(self.task.groups, recipe, self.steps)
        self.trainer.compile(optimizer, loss, auto_scale_loss=False)
        optimizer.build(self.trainer.trainable_variables)

    def _halve_batch(self, error: Exception) -> None:
        """Go back to before the epoch, with half the batch. Raises the error if it is of another kind."""
        if not _is_no_memory(error):
            raise error
        if self.is_halved or self.recipe.batch == 1:
            raise EnvironmentFault(
                f"There is not memory enough to train in batches of {self.recipe.batch}. "
                "Unfreeze less, take smaller images (extract --size), or give a smaller `batch`"
            ) from error
        half = max(1, self.recipe.batch // 2)
        note = f"out of memory with {self.recipe.batch} images per step; going on with {half}"
        self.progress(Tick("memory", 0, 0, note))
        steps = self.steps
        self.recipe, self.is_halved = replace(self.recipe, batch=half), True
        self._compile()
        self._go_back()
        for variable in self._optimizer_variables():
            if variable.name == "iteration":  # the same place of the schedule
                variable.assign(round(int(variable) * self.steps / steps))

    def _go_back(self) -> None:
        """Set weights and optimizer to what they were after the last epoch."""
        self.assign(self.last_weights)
        for variable, value in zip(self._optimizer_variables(), self.last_slots, strict=True):
            variable.assign(value)

    def _weights(self) -> list[Floats]:
        import keras

        return [np.array(keras.ops.convert_to_numpy(one)) for one in self.task.changing]

    def _optimizer_variables(self) -> list[Any]:
        return list(self.trainer.optimizer.variables)

    def _slots(self) -> list[Floats]:
        import keras

        return [np.array(keras.ops.convert_to_numpy(one)) for one in self._optimizer_variables()]

    def _step(self) -> int:
        return self.num_batches * max(0, self.history[-1].epoch)

    def _evaluate(self, epoch: Epoch) -> Epoch:
        val = self.task.val_set
        if self.task.twin is not None:
            self.task.model.set_weights(self.task.twin.get_weights())
        values = predict_logits(self.task.model, val, self.recipe.batch, self.progress, VALIDATE)
        found = score(val.labels, values.argmax(axis=1), self.recipe.metric, values)
        return replace(epoch, val_loss=log_loss(values, val.labels), val=found, metric=self.recipe.metric)

    def _show(self, number: int, steps: int) -> None:
        """Show how far the training is: in steps, `steps` of this epoch, or in seconds where time is what ends it."""
        best = f"best val {self.best.val.value:.4f}"
        if math.isinf(self.recipe.max_seconds):
            done, epochs = (number - 1) * self.num_batches + steps, self.recipe.epochs
            self.progress(Tick(self.task.name, done, self.steps, f"epoch {number} of {epochs}, {best}"))
            return
        limit = math.ceil(self.recipe.max_seconds)
        seconds = limit if self.clock.is_up else min(int(self.clock.seconds), limit)
        self.progress(Tick("train for equal time", seconds, limit, f"epoch {number}, {best}"))


class _Clock:
    """Counts from the end of the first step: compiling it is nobody's training."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._started: float | None = None

    def tick(self) -> None:
        """Note that a step has ended."""
        if self._started is None:
            self._started = time.perf_counter()

    @property
    def is_up(self) -> bool:
        """Tell whether the time is over."""
        return self.seconds > self._max_seconds

    @property
    def seconds(self) -> float:
        """Return the time since the first step ended."""
        return 0.0 if self._started is None else time.perf_counter() - self._started


def _class_weights(labels: Classes, class_weight: str | None) -> Floats:
    counts = np.bincount(labels)
    if class_weight is None:
        return np.ones(len(counts), dtype=np.float32)
    return (len(labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def _filled(inputs: Any, batch: int) -> Any:
    return np.concatenate([inputs, np.zeros((batch - len(inputs), *inputs.shape[1:]), inputs.dtype)])


def _is_no_memory(error: Exception) -> bool:
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in NO_MEMORY)
