"""What a model starts from: the head of a trial as layers, on the backbones that its features came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.backbones.build import build
from featcache.backbones.lineage import Lineage, Lineages, lineage_of
from featcache.errors import ImagesChanged, NoImages, UsageError, WeightsMismatch
from featcache.heads.absorb import decision_logits, exact_head, is_exact
from featcache.heads.distil import distilled
from featcache.heads.layers import Affine, Head, Squares, Unit
from featcache.images.manifest import Images
from featcache.images.sources import Source, open_source
from featcache.models.assemble import Part, assemble
from featcache.spec import ImageRow, Tap, digest_of
from featcache.sweeps import Chosen
from featcache.sweeps.metrics import Score, wilson

NO_FILES = ("", "imagenet", "embedded", "none")  # what weights may be instead of a file
UNSUPERVISED = (Affine, Squares, Unit)  # layers of a head that know no labels
ARRAYS = ("kernel", "bias", "scale", "offset", "support")  # of the layers of a head


@dataclass(frozen=True)
class Start:
    """One trial of a run as the start of a model."""

    chosen: Chosen

    def __post_init__(self) -> None:
        """Raise UsageError if the trial has no head, since it failed or was left out."""
        trial = self.chosen.trial
        if trial.status != "ok":
            raise UsageError(
                f"Trial {trial.trial} ({trial.head}) of {self.chosen.run.path} has no head: {trial.status}. "
                "Take RUN@best, or another: featcache show RUN"
            )

    @cached_property
    def estimator(self) -> Any:
        """Return the fitted pipeline, its logits those of the sweep."""
        return self.chosen.estimator

    @cached_property
    def is_exact(self) -> bool:
        """Return whether the layers give the estimator's own logits; if not they were taught by it."""
        return is_exact(self.estimator[-1])

    @cached_property
    def head(self) -> Head:
        """Return the head as layers on raw features."""
        trial = self.chosen.trial
        if self.is_exact:
            return exact_head(self.estimator, trial.tap, trial.temperature)
        features = self.chosen.features(self.rows("train"))
        return distilled(self.estimator, features, trial.tap, trial.temperature, self.chosen.run.settings.seed)

    def rows(self, split: str) -> list[ImageRow]:
        """Return the labelled images of a split that the run uses."""
        return self.chosen.run.rows(self.chosen.run.cache(), split)

    @property
    def files(self) -> list[Path]:
        """Return what is read to make the model: the cache, and the backbones' own files."""
        backbones = [tap.backbone for tap in self.chosen.taps]
        own = [one.weights for one in backbones if one.origin != "import" and one.weights not in NO_FILES]
        return [self.chosen.run.cache().path, *map(Path, own)]

    def logits(self, rows: Sequence[ImageRow]) -> Floats:
        """Return (N, K) from cached features: the estimator's own, or those of the head that it taught."""
        features = self.chosen.features(rows)
        if self.is_exact:
            return decision_logits(self.estimator, features) / self.chosen.trial.temperature
        return self.head.logits(features)

    def agreement(self) -> Score | None:
        """Return the share of images that chose on which a taught head names its teacher's class; None of an exact one.

        Without such images it is that of those that both have seen.
        """
        if self.is_exact:
            return None
        features = self.chosen.features(self.rows("val") or self.rows("train"))
        said = self.estimator.classes_[self.head.logits(features).argmax(axis=1)]
        return wilson(int((said == self.estimator.predict(features)).sum()), len(said))

    def parts(self) -> list[Part]:
        """Return the backbones, built anew, each with the taps that the head reads of it.

        Raises WeightsMismatch if they are not those the features were made with, UsageError if they take images of
        different sizes.
        """
        _require_one_size(self.chosen.taps)
        groups: dict[object, list[Tap]] = {}
        for tap in self.chosen.taps:
            key = (tap.backbone, tap.weights_digest, tap.preprocess, tap.pooling, tap.precision)
            groups.setdefault(key, []).append(tap)
        return [Part(_built(taps[0]), tuple(taps)) for taps in groups.values()]

    def model(self, parts: Sequence[Part] | None = None) -> Any:
        """Return the model of backbones and head, not checked yet."""
        parts = self.parts() if parts is None else parts
        return assemble(parts, self.head, len(self.chosen.run.classes), self.order)

    def lineages(self, *, is_tuned: bool = False) -> Lineages:
        """Return which images made the model, those behind its backbones included. is_tuned: these train, too.

        What enters the last layer of a head is trained on labels where that is not the only trained one: then the
        images of the run are behind the features, too. Scalers see no labels, so they do not count.
        """
        backbones = Lineage()
        for tap in self.chosen.taps:
            backbones |= lineage_of(tap.backbone, tap.layer) or Lineage()
        train, val = self.rows("train"), self.rows("val")
        of_run = Lineage.of([*train, *val] if self.chosen.refit else train, val)
        has_hidden = any(not isinstance(layer, UNSUPERVISED) for layer in self.head.layers[:-1])
        features = backbones | of_run if is_tuned or has_hidden else backbones
        return Lineages(features, backbones | of_run)

    @property
    def order(self) -> list[str]:
        """Return the names of the taps as their features stand side by side."""
        return [tap.name for tap in self.chosen.taps]

    @property
    def facts(self) -> dict[str, Any]:
        """Return what travels inside MODEL.keras beside its certificate."""
        taps = [tap.to_json() for tap in self.chosen.taps]
        return {
            "classes": list(self.chosen.run.classes),
            "tap": taps[0],
            "taps": taps,
            "run": self.chosen.run.path.name,
            "trial": self.chosen.trial.trial,
            "head": self.chosen.trial.head,
            "start": self.digest,
        } | ({"refit": True} if self.chosen.refit else {})

    @cached_property
    def digest(self) -> str:
        """Return one digest of what it starts from: the layers of the head, its taps, and the images of the run."""
        taps = [tap.fingerprint for tap in self.chosen.taps]
        hashed = hashlib.sha256(digest_of([taps, self.chosen.run.images_digest]).encode())
        for layer in self.head.layers:
            for name, value in vars(layer).items():
                hashed.update(f"{type(layer).__name__}.{name}={np.shape(value)}".encode())
                hashed.update(np.ascontiguousarray(value).tobytes() if name in ARRAYS else str(value).encode())
        return hashed.hexdigest()


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


def _built(tap: Tap) -> Any:
    backbone = build(tap.backbone, tap.preprocess.size, tap.pooling, tap.precision)
    if backbone.weights_digest != tap.weights_digest:
        raise WeightsMismatch(
            f"The weights of '{tap.backbone.name}' ({tap.backbone.weights}) are not those that tap '{tap.name}' "
            "was made with. Give those back, or extract again with these"
        )
    return backbone


def _require_one_size(taps: Sequence[Tap]) -> None:
    sizes = {(tap.preprocess.size, tap.preprocess.resize): tap.name for tap in taps}
    if len(sizes) > 1:
        said = " and ".join(f"'{name}' {size} pixels ({resize})" for (size, resize), name in sizes.items())
        raise UsageError(
            f"One model takes images of one size, but tap {said}. Extract both at one: featcache extract --size"
        )
    bits = {tap.preprocess.bits: tap.name for tap in taps}
    if len(bits) > 1:
        said = " and ".join(f"'{name}' takes {number} bits" for number, name in bits.items())
        raise UsageError(
            f"One model takes 16-bit images of one range, but tap {said}. Extract both at one: featcache extract --bits"
        )
