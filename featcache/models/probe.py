"""A trial opened for use, and what a model starts from: its head as layers, on the backbones behind its features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats, Pixels
from featcache.backbones import hub
from featcache.backbones.build import built_for
from featcache.backbones.lineage import Lineage, Lineages, lineage_of
from featcache.cache.reader import Cache
from featcache.errors import ImagesChanged, NoImages, UsageError
from featcache.extraction.engines import BATCH, KerasEngine
from featcache.heads.absorb import decision_logits, exact_head, is_exact
from featcache.heads.distil import distilled
from featcache.heads.layers import Affine, Head, Squares, Unit
from featcache.images.manifest import Images
from featcache.images.sources import Source, open_source
from featcache.models.assemble import ModelPart, assemble
from featcache.spec import ImageRow, Preprocess, Tap, digest_of
from featcache.sweeps import Chosen
from featcache.sweeps.chosen import own_code_of
from featcache.sweeps.inputs import arrays_to_fit, features_of, taps_in
from featcache.sweeps.metrics import Score, wilson

NO_FILES = ("", "imagenet", "embedded", "none")  # what `weights` may be instead of a file
UNSUPERVISED = (Affine, Squares, Unit)  # layers of a head that see no labels
ARRAYS = ("kernel", "bias", "scale", "offset", "support")  # fields of a head's layers


@dataclass(frozen=True)
class Probe:
    """One trial of a run, opened for use: its cache, its images, its estimator and its head.

    Each is opened only once. So a command opens one probe and passes it down, and all its steps see the same rows,
    even if another process changes the cache meanwhile.
    """

    chosen: Chosen
    cache: Cache
    images: Images | str | Path | None = None  # where the images are now; None: where they were extracted from

    @classmethod
    def open(cls, chosen: Chosen, images: Images | str | Path | None = None) -> Probe:
        """Open a trial.

        Raises UsageError if it has no head, because it failed or was left out; NotARun if the features or images in
        the cache have changed since the sweep.
        """
        trial = chosen.trial
        if trial.status != "ok":
            raise UsageError(
                f"Trial {trial.trial} ({trial.head}) of {chosen.run.path} has no head: {trial.status}. "
                "Take RUN@best, or another: featcache show RUN"
            )
        return cls(chosen, chosen.run.cache(), images)

    @cached_property
    def source(self) -> Source:
        """Return where the bytes of the images come from. Raises ImagesChanged if there are none any more."""
        return _opened(self.cache.root if self.images is None else self.images)

    @cached_property
    def taps(self) -> tuple[Tap, ...]:
        """Return the taps that the head reads, in the order in which their features are joined."""
        return tuple(self.cache.taps[name] for name in taps_in(self.cache, self.chosen.trial.tap))

    @property
    def tap_names(self) -> list[str]:
        """Return the names of the taps, in the same order."""
        return [tap.name for tap in self.taps]

    @property
    def own_code(self) -> tuple[str, ...]:
        """Return the user's own class and functions that the trial is made with, as --allow takes them."""
        return own_code_of(self.chosen.trial, self.taps)

    @property
    def preprocess(self) -> Preprocess:
        """Return how pixels enter the backbones."""
        return self.taps[0].preprocess

    @cached_property
    def estimator(self) -> Any:
        """Return the fitted pipeline, which gives the sweep's logits."""
        return self.chosen.fitted(self.cache)

    @cached_property
    def is_exact(self) -> bool:
        """Return whether the layers give the estimator's own logits. If not, they were distilled from it."""
        return is_exact(self.estimator[-1])

    @cached_property
    def head(self) -> Head:
        """Return the head as layers on raw features."""
        trial = self.chosen.trial
        if self.is_exact:
            return exact_head(self.estimator, trial.tap, trial.temperature)
        features, _ = self.arrays_to_fit(self.rows("train"))
        seed = self.chosen.run.settings.seed
        return distilled(self.estimator, features, trial.tap, trial.temperature, seed)

    @property
    def files(self) -> list[Path]:
        """Return the files that the model is made from: the cache, and the backbones' own weights."""
        paths = [self.cache.path]
        for tap in self.taps:
            # The "weights" of an imported backbone name a Python function.
            if tap.backbone.origin == "hub":
                paths.append(hub.folder_of(tap.backbone))
            elif tap.backbone.origin != "import" and tap.backbone.weights not in NO_FILES:
                paths.append(Path(tap.backbone.weights))
        return paths

    def rows(self, split: str) -> list[ImageRow]:
        """Return the labelled images of a split that the run uses."""
        return self.chosen.run.rows(self.cache, split)

    def labels(self, rows: Sequence[ImageRow]) -> Classes:
        """Return the class indices (N,) of images."""
        return self.cache.labels(rows)

    def features(self, rows: Sequence[ImageRow]) -> Features:
        """Return the cached features (N, D) that the head reads."""
        return features_of(self.cache, rows, self.chosen.trial.tap)

    def arrays_to_fit(self, rows: Sequence[ImageRow]) -> tuple[Features, Classes]:
        """Return the features and classes that such a head is fitted on, if these are the training images."""
        trial, run = self.chosen.trial, self.chosen.run
        return arrays_to_fit(self.cache, rows, trial.tap, run.settings.train_views, run.fingerprints)

    @property
    def precision(self) -> str:
        """Return the precision of the features that the head was fitted on, such as "int8", or "float32+int8"."""
        return "+".join(dict.fromkeys(tap.precision for tap in self.taps))

    @property
    def is_8_bit(self) -> bool:
        """Return whether the head was fitted on 8-bit features, which Keras cannot compute."""
        return any(tap.precision == "int8" for tap in self.taps)

    def model_features(self, rows: Sequence[ImageRow], pixels: Pixels) -> Features:
        """Return the features (N, D) that the model must compute from the pixels of images: the cached ones.

        Of a head on 8-bit features, newly built backbones compute all features in float32 instead.
        """
        if not self.is_8_bit:
            return self.features(rows)
        by_name: dict[str, Features] = {}
        for part in self.parts():
            arrays = KerasEngine(part.backbone, part.taps, BATCH).forward(pixels)
            for tap, array in zip(part.taps, arrays, strict=True):
                by_name[tap.name] = array.reshape(len(array), -1)
        return np.concatenate([by_name[name] for name in self.tap_names], axis=1)

    def logits(self, rows: Sequence[ImageRow]) -> Floats:
        """Return (N, K) from cached features: by the estimator itself, or by the head that it taught."""
        return self.logits_of(self.features(rows))

    def logits_of(self, features: Features) -> Floats:
        """Return (N, K) from features (N, D), as `logits` does."""
        if self.is_exact:
            return decision_logits(self.estimator, features) / self.chosen.trial.temperature
        return self.head.logits(features)

    def agreement(self) -> Score | None:
        """Return the share of images on which a taught head names its teacher's class; None if the head is exact.

        Measured on the validation images, or on the training images if the run has none.
        """
        if self.is_exact:
            return None
        features = self.features(self.rows("val") or self.rows("train"))
        # A class that the teacher never saw has no column: its columns are `classes_`.
        columns = self.head.logits(features).argmax(axis=1)
        is_same_class = self.estimator.classes_[columns] == self.estimator.predict(features)
        return wilson(int(is_same_class.sum()), len(features))

    def parts(self) -> list[ModelPart]:
        """Return the backbones, newly built, each with the taps that the head reads from it.

        Raises WeightsMismatch if a backbone has other weights than when the features were made, UsageError if two
        take images of different sizes.
        """
        _require_one_size(self.taps)
        taps_by_network: dict[object, list[Tap]] = {}
        for tap in (tap.in_keras for tap in self.taps):
            # Taps that differ only in their layer come from one network.
            network = (tap.backbone, tap.weights_digest, tap.preprocess, tap.pooling, tap.precision)
            taps_by_network.setdefault(network, []).append(tap)
        parts: list[ModelPart] = []
        for taps in taps_by_network.values():
            parts.append(ModelPart(built_for(taps[0], taps[0].precision), tuple(taps)))
        return parts

    def model(self, parts: Sequence[ModelPart] | None = None) -> Any:
        """Return the model of backbones and head, not checked yet."""
        parts = self.parts() if parts is None else parts
        return assemble(parts, self.head, len(self.chosen.run.classes), self.tap_names)

    def lineages(self, *, is_tuned: bool = False) -> Lineages:
        """Return which images made the model, including those that trained its backbones.

        is_tuned: whether the backbones train, too. Hidden layers of a head were trained on labels, so the run's images
        also shaped what enters its last layer. Scalers see no labels and do not count.
        """
        backbones = Lineage()
        for tap in self.taps:
            backbones |= lineage_of(tap.backbone, tap.layer) or Lineage()
        train, val = self.rows("train"), self.rows("val")
        trained = [*train, *val] if self.chosen.refit else train
        model = backbones | Lineage.of(trained, val)
        has_hidden = any(not isinstance(layer, UNSUPERVISED) for layer in self.head.layers[:-1])
        features = model if is_tuned or has_hidden else backbones
        return Lineages(features, model)

    @property
    def facts(self) -> dict[str, Any]:
        """Return what is stored in MODEL.keras beside its certificate."""
        taps = [tap.to_json() for tap in self.taps]
        facts: dict[str, Any] = {
            "classes": list(self.chosen.run.classes),
            "tap": taps[0],
            "taps": taps,
            "run": self.chosen.run.path.name,
            "trial": self.chosen.trial.trial,
            "head": self.chosen.trial.head,
            "start": self.digest,
        }
        if self.chosen.refit:
            facts["refit"] = True
        return facts

    @cached_property
    def digest(self) -> str:
        """Return one digest of what a model starts from: the head's layers, its taps, and the images of the run."""
        fingerprints = [tap.fingerprint for tap in self.taps]
        hashed = hashlib.sha256(digest_of([fingerprints, self.chosen.run.images_digest]).encode())
        for layer in self.head.layers:
            for name, value in vars(layer).items():
                # With the shape, because the bytes of (2, 3) and (3, 2) may be equal.
                hashed.update(f"{type(layer).__name__}.{name}={np.shape(value)}".encode())
                if name in ARRAYS:
                    hashed.update(np.ascontiguousarray(value).tobytes())
                else:
                    hashed.update(str(value).encode())
        return hashed.hexdigest()


def by_digest(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Return images in an order that has nothing to do with their names or classes.

    So the first ones are a fair sample, and the same every time.
    """
    return sorted(rows, key=lambda row: row.digest)


def image_source(chosen: Chosen, images: Images | str | Path | None) -> Source:
    """Return where the bytes of a run's images come from. Raises ImagesChanged if there are none any more.

    images: where the images are now; None: where they were extracted from.
    """
    return _opened(chosen.run.cache().root if images is None else images)


def _opened(images: Images | str | Path) -> Source:
    if isinstance(images, Images):
        return images.source
    try:
        return open_source(images)
    except NoImages as error:
        raise ImagesChanged(
            f"There are no images at {images}. If they have moved: `images=FOLDER`; else extract again"
        ) from error


def _require_one_size(taps: Sequence[Tap]) -> None:
    sizes = {(tap.preprocess.size, tap.preprocess.resize): tap.name for tap in taps}
    if len(sizes) > 1:
        listed = " and ".join(f"'{name}' {size} pixels ({resize})" for (size, resize), name in sizes.items())
        raise UsageError(f"One model takes images of one size, but tap {listed}. Extract both at one `size`")
    interpolations = {tap.preprocess.interpolation: tap.name for tap in taps}
    if len(interpolations) > 1:
        listed = " and ".join(f"'{name}' is {interpolation}" for interpolation, name in interpolations.items())
        raise UsageError(f"One model resizes its images in one way, but tap {listed}. Take a head on one of them")
    bits = {tap.preprocess.bits: tap.name for tap in taps}
    if len(bits) > 1:
        listed = " and ".join(f"'{name}' takes {number} bits" for number, name in bits.items())
        raise UsageError(
            f"One model takes 16-bit images of one range, but tap {listed}. Extract both with the same `bits`"
        )
