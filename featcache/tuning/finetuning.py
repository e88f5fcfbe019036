"""Fine-tuning from a head: assemble the model, prove that it starts at the head, train it, and keep the best."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.backbones.lineage import Lineages
from featcache.errors import NoOwnClassifier, ParityFailed, UsageError
from featcache.images.manifest import Images
from featcache.models import Probe
from featcache.models.assemble import ModelPart, backbones_of, logits_of
from featcache.models.certificate import Certificate, certified, tolerance_of
from featcache.models.modelfile import check_model_path, kind_of, read_reference, save_model
from featcache.models.reference import reference_of_head, reference_of_model
from featcache.outputs import check_output
from featcache.settings import Augmentation, ClassWeight, Metric, Optimizer, Schedule, TrainingPrecision
from featcache.spec import Progress, Tick, silent
from featcache.sweeps import Chosen
from featcache.sweeps.metrics import Score, score
from featcache.tuning import prefix
from featcache.tuning.data import ActivationSet, LabelledSet, image_sets
from featcache.tuning.logs import logger
from featcache.tuning.optimizing import RateGroup, groups
from featcache.tuning.own_classifier import check_own, train_own_classifier
from featcache.tuning.precision import twin_of
from featcache.tuning.scratch import check_constructor, train_from_scratch
from featcache.tuning.stages import TrainablePart, place
from featcache.tuning.stages import unfreeze as set_trainable
from featcache.tuning.state import STATE, TrainingState, state_file
from featcache.tuning.train import Epoch, TrainingResult, TrainingTask, train
from featcache.tuning.training_recipe import Recipe, control_names, recipe_of
from featcache.tuning.tuned import Tuned

log = logging.getLogger(__name__)

NUM_CHECKED = 32  # images on which the part that trains is compared with the whole model
TINY_LOSS = 5e-5  # of training: what four digits would show as 0.0000


def finetune(
    chosen: Chosen,
    out: str | Path | None = None,
    *,
    unfreeze: str | int = "last",
    epochs: int = 10,
    learning_rate: float = 1e-5,
    head_lr: float | None = None,
    lr_decay: float = 1.0,
    optimizer: Optimizer = "adamw",
    weight_decay: float = 1e-4,
    momentum: float | None = None,
    schedule: Schedule = "cosine",
    warmup: float = 0.05,
    clip: float | None = None,
    batch: int = 32,
    steps_per_epoch: int | None = None,
    patience: int = 3,
    class_weight: ClassWeight | None = None,
    label_smoothing: float = 0.0,
    augment: Augmentation = "none",
    views: int | None = None,
    augment_val: bool = False,
    prefix: bool = True,
    precision: TrainingPrecision = "float32",
    wise_ft: bool = False,
    seed: int = 0,
    metric: Metric | None = None,
    max_seconds: float = math.inf,
    controls: str | Sequence[str] = (),
    resume: bool | None = None,
    logs: str | Path | None = None,
    images: Images | str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Tuned:
    """Fine-tune from a head of a run and return the best model on validation, the head itself included.

    Split, labels and preprocessing come from the run.

    out: the model file, written whenever the model is better than any before (default: finetuned.keras in the run).
    Beside it, with the suffix .state, lies how far training has come. resume: continue from that file; None: if it
    belongs to this training. logs: a folder for TensorBoard. images: where they are now, if they have moved. force:
    replace the file at `out` even if it is not an earlier model of a fine-tuning with the same options.
    unfreeze: none, last, all, a number of layers, the block from which on the backbone trains, or gradual; batch
    normalisation stays in inference. learning_rate: the highest of the last block; head_lr: the head's, by
    default the same; lr_decay: a block's rate as a fraction of the next block's. schedule: cosine or
    constant, after the rate has risen over the fraction `warmup` of all steps.
    optimizer: adamw, adam, sgd, rmsprop or adagrad. weight_decay: of kernels, with adamw and sgd. momentum: with sgd,
    by default 0.9. clip: the largest gradient norm of a learning-rate group.
    epochs: at most; patience: epochs without a better score on validation before training stops; max_seconds: of
    training. batch: images per step. steps_per_epoch: by default each image once.
    class_weight: "balanced", or None as in the run. metric: chooses the best epoch, by default the run's.
    augment: none, light, strong or tutorial. views: augmented views of each image, computed once; None: a new one in
    each epoch. augment_val: judge the start, all epochs and the controls on one augmented view of each validation
    image, always the same; `val_logits` of the result stay the logits of the images as they are.
    prefix: compute the frozen part once and keep it in the run, unless every epoch sees new views.
    wise_ft: also judge mixtures of the weights of start and end. precision: float32, bfloat16 or float16.
    controls: "frozen", "unfrozen", "scratch": train these too, for as many epochs on the same images, to compare; their
    states are in .frozen.state and so on. "own": train the classifier of your own model file on, with the same options;
    it is left out, and `notes` says why, if its outputs are not the classes of these images.
    Raises UsageError, UnknownBlock, ParityFailed (before anything is trained), WeightsMismatch, DiskFault.
    """
    recipe = recipe_of(
        chosen,
        unfreeze=None if unfreeze is None else str(unfreeze),
        epochs=epochs,
        learning_rate=learning_rate,
        head_lr=head_lr,
        lr_decay=lr_decay,
        optimizer=optimizer,
        weight_decay=weight_decay,
        momentum=momentum,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        batch=batch,
        steps_per_epoch=steps_per_epoch,
        patience=patience,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        augment=augment,
        views=views,
        augment_val=augment_val,
        prefix=prefix,
        precision=precision,
        wise_ft=wise_ft,
        seed=seed,
        metric=metric,
        max_seconds=max_seconds,
    )
    names = control_names(controls)
    if chosen.refit:
        raise UsageError("RUN@refit was fitted on validation images, which fine-tuning has to choose on. Use RUN@best")
    path = chosen.run.path / "finetuned.keras" if out is None else Path(out)
    probe = Probe.open(chosen, images)
    if "own" in names:
        check_own(probe)
    if "scratch" in names:
        check_constructor(probe)
    _ = probe.source  # images that have moved must raise now, and not after a head was distilled
    tuning = _FineTuning(probe, recipe, progress)

    # All files that will be written are checked before the first epoch, which may be hours before the last control.
    kind = kind_of(recipe.to_json(), lambda: tuning.facts)
    check_model_path(path, kind, inputs=probe.files, force=force)
    for name in ("", *names):
        check_output(state_file(path, name), STATE, force=force)
    tuning.check_blocks()

    tuned = tuning.run(path, state_file(path), resume, logs)
    tuned.save(probe.cache)  # before the controls train: a kill during them must not lose the record

    # resume=True demands a state. A control that had not begun when training stopped has none: it begins now.
    resume_control = False if resume is False else None
    trained_controls: dict[str, Tuned] = {}
    notes = list(tuned.notes)
    if tuned.trained and (note := note_on_fit(recipe, tuned.trained[0])):
        notes.append(f"{note}.")
    for name in names:
        try:
            trained_controls[name] = _control(name, probe, recipe, state_file(path, name), resume_control, progress)
        except NoOwnClassifier as error:
            notes.append(f"The control '{name}' is left out: {error}.")
    tuned = replace(tuned, controls=trained_controls, notes=tuple(notes))
    tuned.save(probe.cache)
    return tuned


class _FineTuning:
    """One fine-tuning: the assembled model, and what of it trains."""

    def __init__(self, probe: Probe, recipe: Recipe, progress: Progress) -> None:
        self.probe, self.recipe, self.progress = probe, recipe, progress

    @property
    def facts(self) -> dict[str, Any]:
        """Return what is stored in MODEL.keras beside its certificate."""
        return self.probe.facts | {"finetuned": self.recipe.to_json()}

    @cached_property
    def parts(self) -> list[ModelPart]:
        """Return the backbones, which this fine-tuning changes."""
        return self.probe.parts()

    def check_blocks(self) -> None:
        """Raise UnknownBlock or UsageError for what cannot be unfrozen: Keras must start, but no head be taught yet."""
        for part in self.parts:
            place([layer.name for layer in part.network("backbone").layers], self.recipe.unfreeze)

    def run(
        self, path: Path | None, keep: Path, resume: bool | None, logs: str | Path | None = None, name: str = "train"
    ) -> Tuned:
        """Train, write the best model to `path` if there is one, and the state to `keep`. name: shown as progress."""
        state = TrainingState.find(keep, self.facts, resume)
        if state is not None and state.is_over:
            note = f"this training is finished ({keep}) and shown again; `resume=False` starts over"
            self.progress(Tick("resume", 0, 0, note))
        sets: tuple[LabelledSet, LabelledSet] = image_sets(self.probe, self.recipe)
        model = self.probe.model(self.parts)
        unfrozen = self._unfreeze(model)
        # After unfreezing: the proof is about the first training step, which sees the layers that train in training.
        certificate = certified(model, self.probe)
        facts = self.facts | {"certificate": asdict(certificate)}
        num_trainable = sum(backbone.num_weights for backbone in unfrozen)
        lineages = self.probe.lineages(is_tuned=num_trainable > 0)

        cut = self._cut(model, sets)
        began = time.perf_counter()
        if cut is not None:
            activations = prefix.activations(cut, self.probe, self.recipe, self.progress)
            self._check_parts(logits_of(model), cut, activations)
            sets = activations
        prefix_s = time.perf_counter() - began

        def checkpoint() -> None:
            if path is not None:
                save_model(model, path, facts, lineages)

        trains = logits_of(model) if cut is None else cut.model
        task = self._task(model, trains, sets)
        task.checkpoint, task.keep, task.facts = checkpoint, lambda state: state.save(keep), self.facts
        write_log = logger(None if logs is None else Path(logs))

        def log_epoch(epoch: Epoch, rate: float) -> None:
            write_log(epoch, rate)
            note = note_on_fit(self.recipe, epoch)
            if note and path is not None:  # without a path it is a control, which trains for comparison only
                self.progress(Tick(name, 0, 0, note))

        task.name, task.log = name, log_epoch
        trained = train(task, self.recipe, self.progress, state)
        model.certificate, model.class_names = certificate, self.probe.chosen.run.classes
        if path is not None:
            self._add_reference(model, path, facts, lineages, trained)
        return self._tuned(model, path, certificate, unfrozen, cut, prefix_s, trained)

    def _unfreeze(self, model: Any) -> list[TrainablePart]:
        unfrozen = [set_trainable(network, self.recipe.unfreeze) for network in backbones_of(model)]
        for note in dict.fromkeys(backbone.note for backbone in unfrozen if backbone.note):
            self.progress(Tick("unfreeze", 0, 0, note))
        return unfrozen

    def _cut(self, model: Any, sets: Sequence[LabelledSet]) -> prefix.Cut | None:
        """Return the model in two parts, if it pays to compute the frozen one only once."""
        if not self.recipe.computes_frozen_once:
            return None
        cut = prefix.cut(model, self.parts, self.probe.tap_names)
        if cut is not None:
            num_bytes = prefix.bytes_needed(cut, self.recipe, len(sets[0]), len(sets[1]))
            note = f"what is frozen is computed once, up to {cut.layers}: {num_bytes / 1e6:.0f} MB"
            self.progress(Tick("prefix", 0, 0, note))
        return cut

    def _check_parts(self, full_model: Any, cut: prefix.Cut, sets: Sequence[ActivationSet]) -> None:
        """Raise ParityFailed unless the part that trains gives the logits of the whole model on the same images."""
        log.info("Comparing the part that trains with the whole model on %d images", 2 * NUM_CHECKED)
        sets_of_images = image_sets(self.probe, self.recipe)
        first_augmented = 1 if self.recipe.is_augmented else 0
        first_views = (first_augmented, sets_of_images[1].judging_view)
        for images, activations, view in zip(sets_of_images, sets, first_views, strict=True):
            expected = on_batch(full_model, images.first(NUM_CHECKED, view))
            logits = on_batch(cut.model, [array[:NUM_CHECKED] for array in activations.views[0]])
            difference = float(np.abs(logits - expected).max())
            if not difference <= tolerance_of(expected, self.probe.taps):
                raise ParityFailed(
                    f"The part that would train differs by {difference:.2g} in its logits from the whole model, cut at "
                    f"{cut.layers}. Train without computing the frozen part once: `prefix=False`"
                )

    def _task(self, model: Any, trains: Any, sets: tuple[LabelledSet, LabelledSet]) -> TrainingTask:
        """Return the training of `trains`, the part of the model that changes, at the precision of the recipe."""
        twin = None if self.recipe.precision == "float32" else twin_of(trains, self.recipe.precision)
        return TrainingTask(
            model=trains,
            groups=_of_twin(groups(model, self.recipe), trains, twin),
            train_set=sets[0],
            val_set=sets[1],
            changing=trains.trainable_weights,
            twin=twin,
        )

    def _add_reference(
        self, model: Any, path: Path, facts: dict[str, Any], lineages: Lineages, trained: TrainingResult
    ) -> None:
        """Write the model once more with its reference, which checkpoints leave out because it takes long."""
        if read_reference(path) is not None:
            return
        if trained.best.epoch == 0:  # it is the head as it was handed off: no image has trained the backbone
            save_model(model, path, facts, self.probe.lineages(), reference_of_head(self.probe))
        else:
            save_model(model, path, facts, lineages, reference_of_model(model, self.probe, self.progress))

    def _tuned(
        self,
        model: Any,
        path: Path | None,
        certificate: Certificate,
        unfrozen: Sequence[TrainablePart],
        cut: prefix.Cut | None,
        prefix_s: float,
        trained: TrainingResult,
    ) -> Tuned:
        return Tuned(
            model=model,
            path=path,
            history=trained.history,
            best=trained.best,
            certificate=certificate,
            num_trainable=sum(backbone.num_weights for backbone in unfrozen),
            seconds=prefix_s + sum(epoch.seconds for epoch in trained.history),
            prefix_s=prefix_s,
            unfrozen=", ".join(dict.fromkeys(backbone.block for backbone in unfrozen if backbone.block)),
            prefix="" if cut is None else cut.layers,
            chosen=self.probe.chosen,
            val_logits=trained.val_logits,
            notes=tuple(backbone.note for backbone in unfrozen if backbone.note),
            stopped=trained.stopped,
            flags=tuple(self.recipe.flags),
            val_view=self.recipe.val_view,
            plain_val=self._plain_val(trained.val_logits),
        )

    def _plain_val(self, logits: Floats) -> Score | None:
        """Return the score of logits of the validation images as they are; None if these judged the epochs anyway."""
        if not self.recipe.augment_val:
            return None
        labels = self.probe.labels(self.probe.rows("val"))
        return score(labels, logits.argmax(axis=1), self.recipe.metric, logits)


def note_on_fit(recipe: Recipe, epoch: Epoch) -> str:
    """Return what to try instead if the head fits its training images already, which the first epoch tells; else ""."""
    if epoch.epoch != 1 or not epoch.train_loss < TINY_LOSS:
        return ""
    options = ["a larger `learning_rate`", "`label_smoothing=0.1`"]
    if not recipe.is_augmented:
        options.insert(0, "`augment='light'`")
    if recipe.unfreeze != "all":
        options.insert(0, "`unfreeze='all'`")
    return (
        f"The head already fits the training images (training loss {epoch.train_loss:.1e} in epoch 1), so there is "
        f"almost nothing left to learn. Try {', '.join(options[:-1])} or {options[-1]}"
    )


def on_batch(model: Any, inputs: Any) -> Floats:
    """Return what a model gives for one batch."""
    import keras

    return np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(inputs)))


def _of_twin(rate_groups: list[RateGroup], model: Any, twin: Any) -> list[RateGroup]:
    """Return the groups with the weights of the twin, if there is one."""
    if twin is None:
        return rate_groups
    weight_of_twin = {id(weight): other for weight, other in zip(model.weights, twin.weights, strict=True)}
    of_twin = []
    for group in rate_groups:
        of_twin.append(replace(group, weights=tuple(weight_of_twin[id(weight)] for weight in group.weights)))
    return of_twin


def _control(name: str, probe: Probe, recipe: Recipe, keep: Path, resume: bool | None, progress: Progress) -> Tuned:
    """Train a control: for as many epochs, on the same images, without early stopping (but for `own`)."""
    if name == "own":
        return train_own_classifier(probe, replace(recipe, wise_ft=False, precision="float32"), keep, resume, progress)
    unfreeze = {"frozen": "none", "unfrozen": "all", "scratch": "all"}[name]
    recipe = replace(recipe, unfreeze=unfreeze, patience=recipe.epochs, wise_ft=False)
    if name == "scratch":
        recipe = replace(recipe, learning_rate=1e-3, head_lr=None, lr_decay=1.0, precision="float32")
        return train_from_scratch(probe, recipe, keep, resume, progress)
    return _FineTuning(probe, recipe, progress).run(None, keep, resume, name=f"train {name}")
