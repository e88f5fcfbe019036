"""Train a model and keep its best weights; the weights it starts with are epoch 0 and compete.

Fine-tuning on images, fine-tuning on the activations of the frozen part, and training from scratch share this loop, so
that their scores can be compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.errors import EnvironmentFault, is_out_of_memory
from featcache.spec import Progress, Tick, silent
from featcache.sweeps.metrics import Metric, Score, better, log_loss, score
from featcache.text import counted
from featcache.tuning.data import LabelledSet, in_order
from featcache.tuning.optimizing import RateGroup, make_optimizer, rate_at
from featcache.tuning.state import TrainingState
from featcache.tuning.training_recipe import Recipe

Checkpoint = Callable[[], None]
KeepState = Callable[[TrainingState], None]
VALIDATE = "judge on validation images"  # as progress calls it
MIXTURES = tuple(step / 10 for step in range(1, 10))  # shares of the last weights; the rest are the first ones


@dataclass(frozen=True)
class Epoch:
    """One line of the history; epoch 0 is the start."""

    epoch: int
    train_loss: float  # NaN where nothing was trained
    val_loss: float
    val: Score
    seconds: float  # validation included, writing files not; of the first epoch compilation too
    metric: Metric = "accuracy"
    images: int = 0  # seen by training so far
    mixture: float | None = None  # share of these weights in a mixture with the weights of the start

    def better_than(self, other: Epoch) -> bool:
        """Return whether this epoch has the better validation score, or the same score and the lower loss."""
        mine = better(self.metric, self.val.value), -self.val_loss
        return mine > (better(self.metric, other.val.value), -other.val_loss)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"train_loss": self.train_loss if math.isfinite(self.train_loss) else None}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Epoch:
        """Return the epoch that `to_json` wrote."""
        loss = math.nan if facts["train_loss"] is None else facts["train_loss"]
        return cls(**{**facts, "train_loss": loss, "val": Score(*facts["val"])})


@dataclass(frozen=True)
class TrainingResult:
    """What training gave; the model holds the weights of the best epoch."""

    history: tuple[Epoch, ...]
    best: Epoch
    val_logits: Floats  # (M, K), from the best weights on the validation images as they are
    stopped: str = ""  # why it ended before its epochs were over, if it did
    batch: int = 0  # images per step: fewer than requested, where memory was short


@dataclass
class TrainingTask:
    """What is trained on what."""

    model: Any  # keras.Model: what the sets give -> logits (N, K)
    groups: Sequence[RateGroup]  # the weights that train: the twin's if there is one
    train_set: LabelledSet
    val_set: LabelledSet
    changing: Sequence[Any]  # all weights of the model that training can change
    twin: Any = None  # the same model at reduced precision, which is the one that trains
    checkpoint: Checkpoint = lambda: None  # called whenever the model holds weights better than any before
    keep: KeepState | None = None  # called after every epoch
    facts: dict[str, Any] | None = None  # about the training, for its state
    log: Callable[[Epoch, float], None] = lambda epoch, rate: None
    name: str = "train"  # as progress calls it


def train(task: TrainingTask, recipe: Recipe, progress: Progress, state: TrainingState | None = None) -> TrainingResult:
    """Train; leave the model with its best weights.

    Stops early after `patience` epochs without improvement, `max_seconds` after its first step, or when the loss is not
    finite. When memory runs out it continues with half the batch, once. state: where to continue from.
    Raises EnvironmentFault if memory runs out again.
    """
    loop = TrainingLoop(task, recipe, progress)
    if state is None:
        loop.begin()
    else:
        loop.restore(state)
    loop.run()
    if recipe.wise_ft:
        loop.mix()
    loop.assign(loop.best_weights)
    if state is not None:
        task.checkpoint()  # somebody may have moved the file away since
    # Images as they are, even if augmented ones judged the epochs: other models are compared with this one on them.
    val_logits = predict_logits(task.model, task.val_set.as_they_are(), loop.recipe.batch, progress, VALIDATE)
    return TrainingResult(tuple(loop.history), loop.best, val_logits, loop.stopped, loop.recipe.batch)


def predict_logits(
    model: Any, images: LabelledSet, batch: int = 32, progress: Progress = silent, step: str = "predict"
) -> Floats:
    """Return (N, K) logits of a logits model. step: how progress, which counts images, calls it."""
    logits = []
    done, total = 0, len(images)
    progress(Tick(step, done, total))
    for inputs, labels in images.batches(in_order(images), batch):
        # The last batch is padded with zeros: Keras compiles once for each shape.
        if isinstance(inputs, list):
            padded: Any = [_padded(array, batch) for array in inputs]
        else:
            padded = _padded(inputs, batch)
        logits.append(np.asarray(model.predict_on_batch(padded))[: len(labels)])
        done += len(labels)
        progress(Tick(step, done, total))
    return np.concatenate(logits)


class TrainingLoop:
    """A training under way."""

    def __init__(self, task: TrainingTask, recipe: Recipe, progress: Progress) -> None:
        self.task, self.recipe, self.progress = task, recipe, progress
        self.clock = _Clock(recipe.max_seconds)
        self.history: list[Epoch] = []
        self.stopped = ""
        self.is_over = self.is_halved = False
        self.trainer = task.twin or task.model
        self._compile()
        self.start_weights = self.weights() if recipe.wise_ft else []

    def begin(self) -> None:
        """Evaluate the start, which is epoch 0."""
        self.last_weights, self.last_slots = self.weights(), self._slots()
        start = Epoch(0, math.nan, math.nan, Score(0, 0, 0), 0.0)
        try:
            start = self.evaluate(start)
        except Exception as error:
            self._halve_batch(error)
            start = self.evaluate(start)
        self._add(start)

    def restore(self, state: TrainingState) -> None:
        """Take over the weights, the optimizer and the history of an earlier training."""
        self.history = [Epoch.from_json(facts) for facts in state.history]
        self.best = self.history[0]
        for epoch in self.history[1:]:
            if epoch.better_than(self.best):
                self.best = epoch
        self.best_weights, self.last_weights = list(state.best), list(state.weights)
        if state.batch != self.recipe.batch:
            self.recipe, self.is_halved = replace(self.recipe, batch=state.batch), True
            self._compile()
        # Compiling made a new optimizer, so its variables are set after that.
        self.last_slots = list(state.optimizer)
        self._go_back()
        self.is_over, self.stopped = state.is_over, state.stopped

    def run(self) -> None:
        """Train epoch after epoch, to the end."""
        while not self.is_over and self.history[-1].epoch < self.recipe.epochs:
            try:
                self._train_epoch(self.history[-1].epoch + 1)
            except Exception as error:
                self._halve_batch(error)

    def mix(self) -> None:
        """Evaluate mixtures of the first and the last weights (WiSE-FT, https://arxiv.org/abs/2109.01903).

        The last weights come from the best epoch, or from the last epoch where none was better than the start.
        """
        epoch = self.best.epoch or self.history[-1].epoch
        if not epoch:
            return  # nothing was trained
        last_weights = self.best_weights if self.best.epoch else self.last_weights
        for share in MIXTURES:
            mixture = []
            for first, last in zip(self.start_weights, last_weights, strict=True):
                mixture.append((1 - share) * first + share * last)
            self.assign(mixture)
            self._add(self.evaluate(Epoch(epoch, math.nan, math.nan, Score(0, 0, 0), 0.0, mixture=share)))

    def weights(self) -> list[Floats]:
        """Return copies of the weights that training changes."""
        import keras

        return [np.array(keras.ops.convert_to_numpy(variable)) for variable in self.task.changing]

    def assign(self, weights: Sequence[Floats]) -> None:
        """Set the weights that training changes."""
        for variable, value in zip(self.task.changing, weights, strict=True):
            variable.assign(value)
        if self.task.twin is not None:
            self.task.twin.set_weights(self.task.model.get_weights())

    def evaluate(self, epoch: Epoch) -> Epoch:
        """Return the epoch with its validation score and loss."""
        if self.task.twin is not None:
            self.task.model.set_weights(self.task.twin.get_weights())  # the float32 model is scored
        labels = self.task.val_set.labels
        logits = predict_logits(self.task.model, self.task.val_set, self.recipe.batch, self.progress, VALIDATE)
        val = score(labels, logits.argmax(axis=1), self.recipe.metric, logits)
        return replace(epoch, val_loss=log_loss(logits, labels), val=val, metric=self.recipe.metric)

    def _train_epoch(self, number: int) -> None:
        began = time.perf_counter()
        loss, num_images = self._steps(number)
        rate = rate_at(self.task.groups[0], self.recipe, self._step(), self.steps)
        if not math.isfinite(loss):
            return self._diverged("loss", number, self._step() + math.ceil(num_images / self.recipe.batch) - 1)
        images = self.history[-1].images + num_images
        epoch = self.evaluate(Epoch(number, loss, math.nan, Score(0, 0, 0), 0.0, images=images))
        if not math.isfinite(epoch.val_loss):
            return self._diverged("validation loss", number, self._step() + self.num_batches - 1)
        epoch = replace(epoch, seconds=time.perf_counter() - began)
        self._add(epoch)
        self.task.log(epoch, rate)
        self._show(number, self.num_batches)
        too_long = number - self.best.epoch >= self.recipe.patience
        self.is_over = self.clock.is_up or too_long or number == self.recipe.epochs
        if too_long and not self.clock.is_up:
            self.stopped = f"no better validation score for {counted(self.recipe.patience, 'epoch')} in a row"
        self._keep()

    def _batches(self, number: int) -> Iterator[tuple[Any, Classes]]:
        """Yield the batches of an epoch, all of one size, so that Keras compiles one shape.

        50 images in batches of at most 32 make two of 25. Images that are left over, fewer than there are batches, wait
        for another epoch. With `steps_per_epoch`, batches are full, and the images are passed through as often as that
        takes, each time in another order and, if views are new in every epoch, in new views.
        """
        count = len(self.task.train_set)
        size = count // self.num_batches
        if self.recipe.steps_per_epoch is not None:
            size = min(self.recipe.batch, count)
        batches_per_pass = min(self.num_batches, count // size)
        num_passes = math.ceil(self.num_batches / batches_per_pass)
        for pass_of_epoch in range(num_passes):
            # The order depends on the seed and the number of the pass alone: a resumed training draws the same.
            pass_of_training = (number - 1) * num_passes + pass_of_epoch + 1
            order = np.random.default_rng((self.recipe.seed, pass_of_training)).permutation(count)
            steps = min(batches_per_pass, self.num_batches - pass_of_epoch * batches_per_pass)
            yield from self.task.train_set.batches(order[: size * steps], size, pass_of_training)

    def _steps(self, number: int) -> tuple[float, int]:
        """Train for an epoch, or until time is up; return the mean loss and how many images were seen."""
        losses: list[float] = []
        num_images, num_classes = 0, self.task.model.outputs[0].shape[-1]
        self._show(number, 0)
        for inputs, labels in self._batches(number):
            num_images += len(labels)
            # Keras smooths one-hot targets only.
            targets = np.eye(num_classes, dtype=np.float32)[labels] if self.recipe.label_smoothing else labels
            weights = self.class_weights[labels]
            losses.append(float(self.trainer.train_on_batch(inputs, targets, sample_weight=weights)))
            self.clock.tick()
            if len(losses) < self.num_batches:  # the last step is shown when its epoch has been evaluated
                self._show(number, len(losses))
            if not math.isfinite(losses[-1]) or self.clock.is_up:
                break
            # train_on_batch returns the mean since the last reset; a reset makes it the loss of this batch.
            self.trainer.reset_metrics()
        return float(np.mean(losses)), num_images

    def _diverged(self, quantity: str, number: int, step: int) -> None:
        self.is_over = True
        rate, name = max((rate_at(group, self.recipe, step, self.steps), group.name) for group in self.task.groups)
        self.stopped = f"the {quantity} was not finite in epoch {number}, at a learning rate of {rate:.1e} ({name})"

    def _add(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        self.last_weights = self.weights()
        if len(self.history) == 1 or epoch.better_than(self.best):
            self.best, self.best_weights = epoch, self.last_weights
            self.task.checkpoint()

    def _keep(self) -> None:
        self.last_slots = self._slots()
        if self.task.keep is None:
            return
        state = TrainingState(
            facts=self.task.facts or {},
            weights=tuple(self.last_weights),
            best=tuple(self.best_weights),
            optimizer=tuple(self.last_slots),
            history=tuple(epoch.to_json() for epoch in self.history),
            batch=self.recipe.batch,
            is_over=self.is_over,
            stopped=self.stopped,
        )
        self.task.keep(state)

    def _compile(self) -> None:
        import keras

        recipe = self.recipe
        self.num_batches = recipe.steps_per_epoch or math.ceil(len(self.task.train_set) / recipe.batch)
        self.steps = self.num_batches * recipe.epochs
        self.class_weights = class_weights(self.task.train_set.labels, recipe.class_weight)
        loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if recipe.label_smoothing:
            loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
        optimizer = make_optimizer(self.task.groups, recipe, self.steps)
        self.trainer.compile(optimizer, loss, auto_scale_loss=False)
        # Built now rather than at the first step: its variables may be set from a state before that.
        optimizer.build(self.trainer.trainable_variables)

    def _halve_batch(self, error: Exception) -> None:
        """Go back to before the epoch, with half the batch. Raises the error if it is of another kind."""
        if not is_out_of_memory(error):
            raise error
        if self.is_halved or self.recipe.batch == 1:
            raise EnvironmentFault(
                f"There is not enough memory to train in batches of {self.recipe.batch}. "
                "Unfreeze less, extract smaller images (`size`), or give a smaller `batch`"
            ) from error
        half = max(1, self.recipe.batch // 2)
        note = f"out of memory with {self.recipe.batch} images per step; going on with {half}"
        self.progress(Tick("memory", 0, 0, note))
        steps = self.steps
        self.recipe, self.is_halved = replace(self.recipe, batch=half), True
        self._compile()
        self._go_back()
        # Half the batch makes twice the steps. The learning rate goes on from the same place in its schedule.
        for variable in self._optimizer_variables():
            if variable.name == "iteration":
                variable.assign(round(int(variable) * self.steps / steps))

    def _go_back(self) -> None:
        """Set weights and optimizer to what they were after the last epoch."""
        self.assign(self.last_weights)
        for variable, value in zip(self._optimizer_variables(), self.last_slots, strict=True):
            variable.assign(value)

    def _optimizer_variables(self) -> list[Any]:
        return list(self.trainer.optimizer.variables)

    def _slots(self) -> list[Floats]:
        import keras

        return [np.array(keras.ops.convert_to_numpy(variable)) for variable in self._optimizer_variables()]

    def _step(self) -> int:
        """Return how many steps the finished epochs took."""
        return self.num_batches * max(0, self.history[-1].epoch)

    def _show(self, number: int, steps: int) -> None:
        """Show how far training is: in steps, `steps` of this epoch, or in seconds where time ends it."""
        best = f"best val {self.best.val.value:.4f}"
        if math.isinf(self.recipe.max_seconds):
            done, epochs = (number - 1) * self.num_batches + steps, self.recipe.epochs
            self.progress(Tick(self.task.name, done, self.steps, f"epoch {number} of {epochs}, {best}"))
            return
        limit = math.ceil(self.recipe.max_seconds)
        seconds = limit if self.clock.is_up else min(int(self.clock.seconds), limit)
        self.progress(Tick("train for equal time", seconds, limit, f"epoch {number}, {best}"))


class _Clock:
    """Counts from the end of the first step: the time that compiling takes is not training time."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._started: float | None = None

    def tick(self) -> None:
        """Note that a step has ended."""
        if self._started is None:
            self._started = time.perf_counter()

    @property
    def is_up(self) -> bool:
        """Return whether the time is over."""
        return self.seconds > self._max_seconds

    @property
    def seconds(self) -> float:
        """Return the time since the first step ended."""
        return 0.0 if self._started is None else time.perf_counter() - self._started


def class_weights(labels: Classes, class_weight: str | None) -> Floats:
    """Return the weight of each class (K,) in the loss: N / (K * count) if balanced, as in scikit-learn, else 1."""
    counts = np.bincount(labels)
    if class_weight is None:
        return np.ones(len(counts), dtype=np.float32)
    return (len(labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def _padded(array: Any, batch: int) -> Any:
    padding = np.zeros((batch - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, padding])
