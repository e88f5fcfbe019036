"""Model -> trained model: start at the head, unfreeze chosen blocks, never end worse."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featcache.assembly import Start, image_source
from featcache.assembly.assemble import Part, assemble, backbones_of
from featcache.assembly.certificate import Certificate, certified
from featcache.assembly.modelfile import check_free, save_model
from featcache.backbones.build import all_layers, build, reproducibly
from featcache.errors import DataError, UsageError
from featcache.images.manifest import Images
from featcache.images.sources import Source
from featcache.spec import Progress, choose, silent
from featcache.sweeps import Chosen, Run
from featcache.tuning.data import ImageSet
from featcache.tuning.stages import unfreeze as set_trainable
from featcache.tuning.train import Epoch, Recipe, train

__all__ = ["Recipe", "Tuned", "finetune", "from_scratch"]


@dataclass(frozen=True)
class Tuned:
    """A trained model and how it got there. `history[0]` is the start; `best` is what `model` holds."""

    model: Any  # keras.Model: uint8 images -> probabilities
    path: Path | None
    history: tuple[Epoch, ...]
    best: Epoch
    certificate: Certificate | None  # None from scratch: there is nothing to agree with
    num_trainable: int  # weights of the backbone that trained
    seconds: float

    def __repr__(self) -> str:
        return (
            f"Tuned({self.path}, val {self.start.val.value:.4f} -> {self.best.val.value:.4f}, epoch {self.best.epoch})"
        )

    @property
    def start(self) -> Epoch:
        """Return epoch 0: the head, before any training."""
        return self.history[0]

    @property
    def seconds_per_epoch(self) -> float:
        """Return the mean time of an epoch, validation included."""
        epochs = self.history[1:]
        return sum(epoch.seconds for epoch in epochs) / len(epochs) if epochs else 0.0


def finetune(
    chosen: Chosen,
    out: str | Path | None = None,
    *,
    unfreeze: str = "last",
    epochs: int = 10,
    learning_rate: float = 1e-5,
    batch: int = 32,
    patience: int = 3,
    class_weight: str | None = None,
    seed: int = 0,
    images: Images | str | Path | None = None,
    max_seconds: float = math.inf,
    progress: Progress = silent,
) -> Tuned:
    """Fine-tune from a head of a run and return the best model on validation, the head itself included.

    out: where the model is written, whenever it is better than any before (default: finetuned.keras in the run).
    unfreeze: none, last, all, a number of layers, or the block from which on the backbone trains; batch
    normalisation stays in inference. Same split, labels and preprocessing as the run.
    Raises UsageError, UnknownBlock, ParityFailed (before anything is trained), WeightsMismatch, DiskFault.
    """
    if chosen.refit:
        raise UsageError("RUN@refit was fitted on validation images, which fine-tuning has to choose on. Use RUN@best")
    recipe = _recipe(chosen, epochs, learning_rate, batch, patience, class_weight, seed, max_seconds)
    path = Path(out) if out is not None else chosen.run.path / "finetuned.keras"
    start = Start(chosen)
    facts = start.facts | {"finetuned": {"unfreeze": unfreeze, **_plain(recipe)}}
    check_free(path, facts)
    train_set, val_set = _sets(chosen, image_source(chosen, images))
    model = start.model()
    num_trainable = sum(set_trainable(network, unfreeze) for network in backbones_of(model))
    certificate = certified(model, start, train_set.source)

    def checkpoint() -> None:
        save_model(model, path, facts | {"certificate": asdict(certificate)})

    history, best = train(model, train_set, val_set, recipe, checkpoint, progress)
    Run.open(chosen.run.path).add_tuned(path)
    model.certificate, model.class_names = certificate, chosen.run.classes
    seconds = sum(epoch.seconds for epoch in history)
    return Tuned(model, path, tuple(history), best, certificate, num_trainable, seconds)


def from_scratch(
    chosen: Chosen,
    *,
    max_seconds: float,
    learning_rate: float = 1e-3,
    epochs: int = 1000,
    patience: int = 1000,
    batch: int = 32,
    seed: int = 0,
    images: Images | str | Path | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Train the same architecture from random weights for `max_seconds`: the control for what transfer is worth.

    All layers train on the same images; the best weights on validation are kept. `max_seconds` does not count the
    first step, which compiles. Moving statistics of batch normalisation follow within tens of steps (momentum at most
    0.9): with Keras' defaults of up to 0.999 a short training would be judged with those it started from.
    """
    recipe = _recipe(chosen, epochs, learning_rate, batch, patience, None, seed, max_seconds)
    train_set, val_set = _sets(chosen, image_source(chosen, images))
    tap = chosen.taps[0]
    backbone = build(replace(tap.backbone, weights="none", seed=seed), tap.preprocess.size, tap.pooling)
    with reproducibly(seed):
        model = assemble([Part(backbone, (tap,))], None, len(chosen.run.classes))
    backbone.network.trainable = True  # not through `model`: already trainable itself, Keras would not look inside
    for layer in all_layers(backbone.network):
        if hasattr(layer, "momentum"):
            layer.momentum = min(layer.momentum, 0.9)
    history, best = train(model, train_set, val_set, recipe, lambda: None, progress)
    return Tuned(
        model,
        None,
        tuple(history),
        best,
        None,
        backbone.network.count_params(),
        sum(e.seconds for e in history),
    )


def _recipe(
    chosen: Chosen,
    epochs: int,
    learning_rate: float,
    batch: int,
    patience: int,
    class_weight: str | None,
    seed: int,
    max_seconds: float,
) -> Recipe:
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise UsageError(f"--lr takes a number above 0; got {learning_rate}")
    for name, value in (("--epochs", epochs), ("--batch", batch), ("--patience", patience)):
        if value < 1:
            raise UsageError(f"{name} takes a number from 1; got {value}")
    if class_weight is not None:
        choose("--class-weight", class_weight, ["balanced"])
    return Recipe(
        epochs=epochs,
        learning_rate=learning_rate,
        batch=batch,
        patience=patience,
        class_weight=class_weight or chosen.run.settings.class_weight,
        metric=chosen.run.settings.metric,
        seed=seed,
        max_seconds=max_seconds,
    )


def _sets(chosen: Chosen, source: Source) -> tuple[ImageSet, ImageSet]:
    cache = chosen.run.cache()
    rows = {split: chosen.run.rows(cache, split) for split in ("train", "val")}
    if not rows["val"]:
        raise DataError(
            f"{cache.path} has no validation images, so nothing can tell whether fine-tuning helps. Split again"
        )
    preprocess = chosen.preprocess
    train_set, val_set = (ImageSet(source, rows[split], cache.labels(rows[split]), preprocess) for split in rows)
    return train_set, val_set


def _plain(recipe: Recipe) -> dict[str, Any]:
    fields = asdict(recipe)
    fields["max_seconds"] = recipe.max_seconds if math.isfinite(recipe.max_seconds) else None
    return fields
