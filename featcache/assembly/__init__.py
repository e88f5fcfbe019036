"""Best head -> Keras model, with its parity certificate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from featcache.assembly.assemble import assemble
from featcache.assembly.certificate import Certificate, certify, evidence, require
from featcache.assembly.modelfile import check_free, load_model, save_model
from featcache.backbones.build import build
from featcache.errors import ImagesChanged, NoImages, UsageError, WeightsMismatch
from featcache.heads.absorb import dense_head
from featcache.images.manifest import Images
from featcache.images.sources import Source, open_source
from featcache.sweeps import Chosen

__all__ = ["Certificate", "handoff", "load_model", "save_model"]


def handoff(chosen: Chosen, out: str | Path | None = None, *, images: Images | str | Path | None = None) -> Any:
    """Return the Keras model of backbone and head, checked, and write it to `out` if given.

    The model takes (N, height, width, 3) uint8 images of any size and gives (N, K) probabilities; it has the
    attributes `certificate` and `class_names`. images: where the images lie now, if they have moved, or a scan of them.
    Raises UsageError if the head has no exact form in Keras or something else lies at `out`, WeightsMismatch if the
    backbone's weights are not those the features were made with, ParityFailed if the logits differ by more than 1e-3.
    """
    require_handoff(chosen)
    if out is not None:
        check_free(Path(out), facts_of(chosen))
    pixels, cached = evidence(chosen, image_source(chosen, images))
    model = assembled(chosen)
    model.certificate = require(certify(model, pixels, cached), f"{chosen.run.path}@{chosen.trial.trial}")
    model.class_names = chosen.run.classes
    if out is not None:
        save_model(model, Path(out), facts_of(chosen) | {"certificate": asdict(model.certificate)})
    return model


def assembled(chosen: Chosen) -> Any:
    """Return the model of backbone and head, not checked yet."""
    tap = chosen.tap
    backbone = build(tap.backbone, tap.preprocess.size, tap.pooling)
    if backbone.weights_digest != tap.weights_digest:
        raise WeightsMismatch(
            f"The weights of '{tap.backbone.name}' ({tap.backbone.weights}) are not those that tap '{tap.name}' "
            "was made with. Give those back, or extract again with these"
        )
    head = dense_head(chosen.estimator, tap.name, chosen.trial.temperature)
    return assemble(backbone, tap, head, len(chosen.run.classes))


def require_handoff(chosen: Chosen) -> None:
    """Raise UsageError, naming the best trial that can, if the head has no exact form in Keras."""
    trial = chosen.trial
    if not trial.handoff:
        other = chosen.run.best_handoff.trial
        scored = trial.status == "ok"
        why = f", {trial.judged.value:.3f}) has no exact form in Keras" if scored else f") has no head: {trial.status}"
        raise UsageError(
            f"Trial {trial.trial} ({trial.head}{why}. "
            f"The best that has: {chosen.run.path}@{other.trial} ({other.head}, {other.judged.value:.3f})"
        )


def image_source(chosen: Chosen, images: Images | str | Path | None) -> Source:
    """Return where the bytes of the images come from: where they were extracted from, unless told otherwise.

    Raises ImagesChanged if there is nothing any more.
    """
    if isinstance(images, Images):
        return images.source
    place = chosen.run.cache().root if images is None else images
    try:
        return open_source(place)
    except NoImages as error:
        raise ImagesChanged(
            f"There are no images at {place}. If they have moved: --images FOLDER; else extract again"
        ) from error


def facts_of(chosen: Chosen) -> dict[str, Any]:
    """Return what travels inside MODEL.keras beside its certificate."""
    return {
        "classes": list(chosen.run.classes),
        "tap": chosen.tap.to_json(),
        "run": chosen.run.path.name,
        "trial": chosen.trial.trial,
        "head": chosen.trial.head,
    }
