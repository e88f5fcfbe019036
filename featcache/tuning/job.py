"""Fine-tuning from a head: assemble, prove, train, and keep the best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.errors import ParityFailed, UsageError
from featcache.images.manifest import Images
from featcache.models import Probe
from featcache.models.assemble import Part, backbones_of, logits_of
from featcache.models.certificate import certified, tolerance_of
from featcache.models.modelfile import check_model_path, read_reference, save_model
from featcache.models.reference import reference_of_head, reference_of_model
from featcache.outputs import check_output
from featcache.spec import Progress, Tick, choose, silent
from featcache.sweeps import Chosen
from featcache.tuning import prefix
from featcache.tuning.data import ActivationSet, Labelled, image_sets
from featcache.tuning.logs import logger
from featcache.tuning.optimizing import Group, groups
from featcache.tuning.precision import twin_of
from featcache.tuning.recipe import CONTROLS, Recipe, recipe_of
from featcache.tuning.scratch import train_from_scratch
from featcache.tuning.stages import Unfrozen
from featcache.tuning.stages import unfreeze as set_trainable
from featcache.tuning.state import STATE, State, state_file
from featcache.tuning.train import Task, train
from featcache.tuning.tuned import Tuned

CHECKED = 32  # images on which the whole model is compared with the part of it that trains


def finetune(
    chosen: Chosen,
    out: str | Path | None = None,
    *,
    images: Images | str | Path | None = None,
    resume: bool | None = None,
    logs: str | Path | None = None,
    controls: str | Sequence[str] = (),
    force: bool = False,
    progress: Progress = silent,
    **how: Any,
) -> Tuned:
    """Fine-tune from a head of a run and return the best model on validation, the head itself included.

    out: where the model is written, whenever it is better than any before (default: finetuned.keras in the run); beside
    it, with the suffix .state, how far it has come. resume: go on from there; None: if it is of this training. logs: a
    folder for TensorBoard. controls: "frozen", "unfrozen", "scratch": train these too, for as many epochs on the same
    images, to compare; how far they have come is in .frozen.state and so on. force: replace what lies at `out` even if
    it is not an earlier model of a fine-tuning with the same options.
    how: the fields of `Recipe`, such as unfreeze="block_13", epochs=10, learning_rate=1e-5, augment="light", views=8.
    unfreeze: none, last, all, a number of layers, the block from which on the backbone trains, or gradual; batch
    normalisation stays in inference. Same split, labels and preprocessing as the run. What is frozen is computed once
    and kept in the run, unless every epoch sees new views or prefix=False.
    Raises UsageError, UnknownBlock, ParityFailed (before anything is trained), WeightsMismatch, DiskFault.
    """
    recipe = recipe_of(chosen, how)
    asked = _controls(controls)
    if chosen.refit:
        raise UsageError("RUN@refit was fitted on validation images, which fine-tuning has to choose on. Use RUN@best")
    path = Path(out) if out is not None else chosen.run.path / "finetuned.keras"
    probe = Probe.open(chosen, images)
    tuning = _Tuning(probe, recipe, progress)
    check_model_path(path, tuning.facts, inputs=probe.files, force=force)
    for name in ("", *asked):
        check_output(state_file(path, name), STATE, force=force)
    tuned = tuning.run(path, state_file(path), resume, logs)
    tuned.save(probe.cache)
    again = None if resume is not False else False  # one that had not begun when it was stopped has no state yet
    states = {name: state_file(path, name) for name in asked}
    trained = {name: _control(name, probe, recipe, states[name], again, progress) for name in asked}
    found = replace(tuned, controls=trained)
    found.save(probe.cache)
    return found


class _Tuning:
    """One fine-tuning: the assembled model, and what of it trains."""

    def __init__(self, probe: Probe, recipe: Recipe, progress: Progress) -> None:
        self.probe, self.recipe, self.progress = probe, recipe, progress

    @property
    def facts(self) -> dict[str, Any]:
        """Return what travels inside MODEL.keras beside its certificate."""
        return self.probe.facts | {"finetuned": self.recipe.to_json()}

    def run(
        self, path: Path | None, keep: Path, resume: bool | None, logs: str | Path | None = None, name: str = "train"
    ) -> Tuned:
        """Train, writing the best model to `path`, if there is one, and the state to `keep`. name: of the progress."""
        facts = self.facts
        state = State.find(keep, facts, resume)
        if state is not None and state.is_over:
            note = f"this training is finished ({keep}) and shown again; --no-resume begins anew"
            self.progress(Tick("resume", 0, 0, note))
        sets: tuple[Labelled, Labelled] = image_sets(self.probe, self.recipe)
        parts = self.probe.parts()
        model = self.probe.model(parts)
        unfrozen = self._unfreeze(model)
        certificate = certified(model, self.probe)
        lineages = self.probe.lineages(is_tuned=any(one.num_weights for one in unfrozen))

        def checkpoint() -> None:
            if path is not None:
                save_model(model, path, facts | {"certificate": asdict(certificate)}, lineages)

        cut = self._cut(model, parts, sets)
        trains = logits_of(model) if cut is None else cut.model
        began = time.perf_counter()
        if cut is not None:
            of_part = prefix.activations(cut, self.probe, self.recipe, self.progress)
            self._check_parts(logits_of(model), cut, of_part)
            sets = of_part
        prefix_s = time.perf_counter() - began
        twin = None if self.recipe.precision == "float32" else twin_of(trains, self.recipe.precision)
        task = Task(
            model=trains,
            groups=_of_twin(groups(model, self.recipe), trains, twin),
            train_set=sets[0],
            val_set=sets[1],
            changing=trains.trainable_weights,
            twin=twin,
            checkpoint=checkpoint,
            keep=lambda state: state.save(keep),
            facts=facts,
            name=name,
            log=logger(None if logs is None else Path(logs)),
        )
        found = train(task, self.recipe, self.progress, state)
        model.certificate, model.class_names = certificate, self.probe.chosen.run.classes
        if path is not None and read_reference(path) is None:
            if found.best.epoch == 0:  # it is the head as it was handed over: no image has trained the backbone
                lineages, reference = self.probe.lineages(), reference_of_head(self.probe)
            else:
                reference = reference_of_model(model, self.probe)
            save_model(model, path, facts | {"certificate": asdict(certificate)}, lineages, reference)
        return Tuned(
            model=model,
            path=path,
            history=found.history,
            best=found.best,
            certificate=certificate,
            num_trainable=sum(one.num_weights for one in unfrozen),
            seconds=prefix_s + sum(one.seconds for one in found.history),
            prefix_s=prefix_s,
            unfrozen=", ".join(dict.fromkeys(one.block for one in unfrozen if one.block)),
            prefix="" if cut is None else cut.layers,
            chosen=self.probe.chosen,
            val_logits=found.val_logits,
            notes=tuple(one.note for one in unfrozen if one.note),
            stopped=found.stopped,
            flags=tuple(self.recipe.flags),
        )

    def _unfreeze(self, model: Any) -> list[Unfrozen]:
        found = [set_trainable(network, self.recipe.unfreeze) for network in backbones_of(model)]
        for note in dict.fromkeys(one.note for one in found if one.note):
            self.progress(Tick("unfreeze", 0, 0, note))
        return found

    def _cut(self, model: Any, parts: Sequence[Part], sets: Sequence[Labelled]) -> prefix.Cut | None:
        """Return the model in two, if what is frozen is worth computing once."""
        new_views = self.recipe.is_augmented and self.recipe.views is None
        if not self.recipe.prefix or new_views:
            return None
        found = prefix.cut(model, parts, self.probe.tap_names)
        if found is not None:
            size = prefix.bytes_needed(found, self.recipe, len(sets[0]), len(sets[1]))
            self.progress(
                Tick("prefix", 0, 0, f"what is frozen is computed once, up to {found.layers}: {size / 1e6:.0f} MB")
            )
        return found

    def _check_parts(self, whole: Any, cut: prefix.Cut, sets: Sequence[ActivationSet]) -> None:
        """Raise ParityFailed unless the part that trains says of its activations what the whole says of the images."""
        for images, of_part, view in zip(
            image_sets(self.probe, self.recipe), sets, (int(self.recipe.is_augmented), 0), strict=True
        ):
            expected = on_batch(whole, images.first(CHECKED, view))
            apart = float(np.abs(on_batch(cut.model, [one[:CHECKED] for one in of_part.views[0]]) - expected).max())
            if not apart <= tolerance_of(expected, self.probe.taps):
                raise ParityFailed(
                    f"The part that would train differs by {apart:.2g} in its logits from the whole model, cut at "
                    f"{cut.layers}. Train without computing the frozen part once: --no-prefix"
                )


def on_batch(model: Any, inputs: Any) -> Floats:
    """Return what a model gives for one batch."""
    import keras

    return np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(inputs)))


def _of_twin(found: list[Group], model: Any, twin: Any) -> list[Group]:
    """Return the groups with the weights of the twin, if there is one."""
    if twin is None:
        return found
    same = {id(one): other for one, other in zip(model.weights, twin.weights, strict=True)}
    return [replace(group, weights=tuple(same[id(one)] for one in group.weights)) for group in found]


def _controls(names: str | Sequence[str]) -> list[str]:
    asked = [one.strip() for one in (names.split(",") if isinstance(names, str) else names) if one.strip()]
    return [choose("--controls", one, CONTROLS) for one in dict.fromkeys(asked)]


def _control(name: str, probe: Probe, recipe: Recipe, keep: Path, resume: bool | None, progress: Progress) -> Tuned:
    """Train a control: for as many epochs, on the same images, without early stopping."""
    unfreeze = {"frozen": "none", "unfrozen": "all", "scratch": "all"}[name]
    recipe = replace(recipe, unfreeze=unfreeze, patience=recipe.epochs, wise_ft=False)
    if name == "scratch":
        recipe = replace(recipe, learning_rate=1e-3, head_lr=None, lr_decay=1.0, precision="float32")
        return train_from_scratch(probe, recipe, keep, resume, progress)
    return _Tuning(probe, recipe, progress).run(None, keep, resume, name=f"train {name}")
