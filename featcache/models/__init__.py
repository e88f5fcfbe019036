"""A trial of a run -> a Keras model of backbones and head, with its parity certificate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from featcache.images.manifest import Images
from featcache.models.certificate import Certificate, certified
from featcache.models.modelfile import check_model_path, kind_of, load_model, save_model
from featcache.models.probe import Probe, image_source
from featcache.models.reference import Reference, reference_of_head
from featcache.sweeps import Chosen

__all__ = [
    "Certificate",
    "Probe",
    "Reference",
    "checked_model",
    "hand_off",
    "handoff",
    "image_source",
    "load_model",
    "save_model",
]


def handoff(
    chosen: Chosen,
    out: str | Path | None = None,
    *,
    images: Images | str | Path | None = None,
    force: bool = False,
) -> Any:
    """Return the Keras model of backbones and head, checked, and write it to `out` if given.

    The model takes (N, height, width, 3) uint8 images of any size and gives (N, K) probabilities; it has the
    attributes `certificate` and `class_names`. A head that has no exact form in Keras, such as a forest, is distilled
    into a dense one, and the certificate says how often both agree. images: where the images are now, if they have
    moved, or a scan of them. force: replace the file at `out` even if it is not an earlier model of a handoff.
    Raises UsageError if something else lies at `out` or taps take images of different sizes, WeightsMismatch if the
    backbone has other weights than when the features were made, ParityFailed if the logits differ.
    """
    return hand_off(Probe.open(chosen, images), out, force=force)


def hand_off(probe: Probe, out: str | Path | None = None, *, force: bool = False) -> Any:
    """Return the Keras model of an opened trial, and write it to `out` if given, as `handoff` does."""
    _ = probe.source  # images that have moved must raise now, and not after Keras has started
    kind = kind_of(None, lambda: probe.facts)
    if out is not None:
        check_model_path(Path(out), kind, inputs=probe.files, force=force)
    model = checked_model(probe)
    if out is not None:
        # Again: the proof may have taken minutes, and somebody may have put a file there.
        check_model_path(Path(out), kind, inputs=probe.files, force=force)
        facts = probe.facts | {"certificate": asdict(model.certificate)}
        save_model(model, Path(out), facts, probe.lineages(), reference_of_head(probe))
    return model


def checked_model(probe: Probe) -> Any:
    """Return the Keras model of an opened trial, with its certificate. Raises what `handoff` raises."""
    model = probe.model()
    model.certificate = certified(model, probe)
    model.class_names = probe.chosen.run.classes
    return model
