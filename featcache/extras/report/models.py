"""A model file beside a head: what it says of the images that chose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from featcache.arrays import Floats
from featcache.errors import UsageError
from featcache.images.manifest import Images
from featcache.models import image_source, load_model
from featcache.models.assemble import logits_of
from featcache.spec import Progress, silent
from featcache.sweeps import Chosen, Run
from featcache.tuning.data import ImageSet
from featcache.tuning.train import VALIDATE, predict_logits


@dataclass(frozen=True)
class ModelFile:
    """A model that was handed over or fine-tuned from a trial, and what it says of the validation images."""

    name: str
    chosen: Chosen
    val_logits: Floats = field(repr=False)  # (M, K)


def model_on_val(
    run: Run, path: Path, images: Images | str | Path | None = None, progress: Progress = silent
) -> ModelFile:
    """Return what a model file says of the validation images of the run it came from.

    Raises NotAModel, UsageError if it came from another run, DataError if there are no such images.
    """
    model, facts = load_model(path)
    if facts.get("run") != run.path.name or facts["classes"] != list(run.classes):
        raise UsageError(f"{path} came from the run {facts.get('run')}, so it cannot be compared with {run.path}")
    chosen, cache = run[facts["trial"]], run.cache()
    rows = run.rows(cache, "val")
    if not rows:
        raise UsageError(f"{cache.path} has no validation images to compare {path} on")
    judged = ImageSet(image_source(chosen, images), rows, cache.labels(rows), chosen.preprocess)
    return ModelFile(str(path), chosen, predict_logits(logits_of(model), judged, progress=progress, step=VALIDATE))
