"""A frozen backbone as a transformer of scikit-learn: images in, features out, each image computed once.

The features go through a cache, the same file that `extract` writes. So clones, folds and processes share them: a grid
search runs each image through the backbone once. Only the taps of the cache get more rows; its table of images, with
labels and splits, stays as it is.

Pickled pipelines name this class as `featcache.extras.transformer.feature_extractor.FeatureExtractor`, so it must stay
at this path.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.arrays import Features
from featcache.cache.reader import stored_rows
from featcache.errors import ImagesNotFound, InvalidParameter, UnreadableImages, UsageError, WeightsMismatch
from featcache.extraction import Options
from featcache.extraction.extract_options import options_of
from featcache.extraction.feature_lookup import ImageFeatures, look_up
from featcache.extraction.starter import WarmEngines
from featcache.extras.transformer.image_column import ImageColumn, column_name, image_column
from featcache.files import temporary_folder
from featcache.spec import IDENTITY, Failure, choose
from featcache.sweeps import Chosen
from featcache.text import counted
from featcache.trust import how_to_allow, is_allowed

ON_ERROR = ("raise", "nan")
NOT_OF_EXTRACTION = ("cache", "on_error")  # parameters that `extract` does not have
OF_THIS_PROCESS = ("_folder", "_warm")  # attributes
MOST_NAMED = 20  # images that a message names


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images -> features of a frozen backbone, (N, D) float32, each image computed once.

        pipeline = make_pipeline(fc.FeatureExtractor("mobilenet_v2", cache="features.h5"), LogisticRegression())
        pipeline.fit(paths, labels)

    X is a list of paths, of Pillow images or of arrays (H, W, 3), one array (N, H, W, 3) of uint8, or one column of a
    data frame. Copies of an image are computed once.

    cache: the file that keeps the features, as in `extract`; an existing one is used and keeps its labels and splits.
        None keeps them as long as this object lives; clones, as in a grid search, compute them again.
    backbone, tap, weights, size, pool, resize, decode, bits, precision, dtype, engine, device, batch, trust: as in
        `extract`. The features of several taps, or of several backbones, stand side by side.
    on_error: "raise" an error that names the images that cannot be used, or give them rows of "nan".

    Fitting checks the parameters and computes the features of X; nothing is learnt from them. So `transform` works
    without `fit`, too. After `fit`, `taps_` has the names of the taps, and `transform` raises WeightsMismatch if the
    features would not be those of `fit`: if the file with the weights has changed, for example.

    Raises InvalidParameter, NotImages and UnreadableImages, which are ValueErrors, ImagesNotFound, which is a
    FileNotFoundError, and what else `extract` raises.
    """

    def __init__(
        self,
        backbone: str | list[str] = "mobilenet_v2",
        *,
        tap: str | list[str] = "top",
        cache: str | Path | None = None,
        weights: str | None = None,
        size: int | None = None,
        pool: str | None = None,
        resize: str = "stretch",
        decode: str = "exact",
        bits: int | None = None,
        precision: str = "float32",
        dtype: str = "float32",
        engine: str = "auto",
        device: str = "auto",
        batch: int | str = "auto",
        trust: bool = False,
        on_error: str = "raise",
    ) -> None:
        self.backbone = backbone
        self.tap = tap
        self.cache = cache
        self.weights = weights
        self.size = size
        self.pool = pool
        self.resize = resize
        self.decode = decode
        self.bits = bits
        self.precision = precision
        self.dtype = dtype
        self.engine = engine
        self.device = device
        self.batch = batch
        self.trust = trust
        self.on_error = on_error

    @classmethod
    def for_trial(cls, trial: Chosen) -> FeatureExtractor:
        """Return the extractor of the features that a trial of a run reads, through the cache of the run.

            make_pipeline(fc.FeatureExtractor.for_trial(run.best), run.best.estimator).predict(paths)

        It counts as fitted: it raises WeightsMismatch rather than give other features than those of the run.
        Raises UsageError if one extraction does not give these features, or if a function of yours makes the backbone
        and you have not named it: see `fc.allow`.
        """
        taps = trial.taps
        network = taps[0].backbone
        shared = {replace(tap, name="", layer="") for tap in taps}
        if len(shared) > 1 or taps[0].view != IDENTITY:
            raise UsageError(
                f"Trial {trial.trial.trial} of {trial.run.path} reads '{trial.trial.tap}', which one extraction does "
                "not give. Join one FeatureExtractor for each tap with scikit-learn's FeatureUnion"
            )
        if network.origin == "import" and not is_allowed(network.weights):
            raise UsageError(f"{trial.run.path} names {network.weights}. {how_to_allow(network.weights)}")

        cache = trial.run.cache()
        extractor = cls(**options_of(taps), cache=cache.path)
        stored = stored_rows(cache.path)
        extractor.taps_ = [tap.name for tap in taps]
        extractor.fingerprints_ = [tap.fingerprint for tap in taps]
        extractor.widths_ = [math.prod(stored[tap.fingerprint].shape) for tap in taps]
        extractor.n_features_in_ = 1
        return extractor

    def fit(self, X: Any, y: Any = None) -> FeatureExtractor:
        """Check the parameters, and compute the features of the images X that the cache lacks. y is not used."""
        self._fitted_features(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Features:
        """Return the features (N, D) of the images X, as `fit` and then `transform` do. y is not used."""
        return self._fitted_features(X).array

    def transform(self, X: Any) -> Features:
        """Return the features (N, D) of the images X; compute what the cache lacks."""
        features = self._features(X)
        if hasattr(self, "fingerprints_"):
            self._check_columns(X, reset=False)
            fingerprints = [tap.fingerprint for tap in features.taps]
            if fingerprints != self.fingerprints_:
                raise WeightsMismatch(
                    f"FeatureExtractor was fitted on {', '.join(self.taps_)}, and would now give other features: its "
                    "parameters, the file with the weights or the 8-bit network has changed. Fit it again"
                )
        return features.array

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names of the D columns: tap and number, such as mobilenet_v2/top_0. input_features: not used."""
        check_is_fitted(self, "taps_")
        names: list[str] = []
        for tap, width in zip(self.taps_, self.widths_, strict=True):
            names += [f"{tap}_{number}" for number in range(width)]
        return np.array(names, object)

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may expect: a column of images or paths, and that `transform` needs no `fit`."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # features are float32, whatever the images are
        tags.requires_fit = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all but the temporary cache and the engines, which belong to this process."""
        return {name: value for name, value in super().__getstate__().items() if name not in OF_THIS_PROCESS}

    def _fitted_features(self, X: Any) -> ImageFeatures:
        self._warm = WarmEngines()  # without the engines of other parameters
        features = self._features(X)
        self._check_columns(X, reset=True)
        self.taps_ = [tap.name for tap in features.taps]
        self.fingerprints_ = [tap.fingerprint for tap in features.taps]
        self.widths_ = list(features.widths)
        return features

    def _check_columns(self, X: Any, *, reset: bool) -> None:
        """Remember the name of the column of images, or raise ValueError if it is another than in `fit`."""
        if column_name(X) is not None:
            validate_data(self, X, reset=reset, skip_check_array=True)
        elif reset:
            self.n_features_in_ = 1
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_

    def _features(self, X: Any) -> ImageFeatures:
        """Return the features of the images X. Raises an error if some have none, unless `on_error` allows it."""
        with _usage_as_value_errors():
            choose("on_error", self.on_error, ON_ERROR)
            options = self._options()
            column = image_column(X)
            if self.on_error == "raise":
                # Before anything is computed: most often, the whole list is relative to another folder.
                _check_files(column)
            if not hasattr(self, "_warm"):
                self._warm = WarmEngines()
            features = look_up(column.source, column.paths, options, self._cache_path(), self._warm)
        if not features.taps:
            raise _unusable(column, features.failures, "Leave them out")
        if features.failures and self.on_error == "raise":
            raise _unusable(column, features.failures, "Leave them out, or get rows of NaN: `on_error='nan'`")
        return features

    def _options(self) -> Options:
        """Return the parameters as options of an extraction. Raises UsageError for what a transformer cannot do."""
        values = self.get_params(deep=False)
        for name in NOT_OF_EXTRACTION:
            del values[name]
        options = Options(**values)
        if self.pool == "none":
            raise UsageError(
                "`pool='none'` gives maps of features, and a transformer gives one vector for each image. Use avg, max "
                "or flatten"
            )
        if self.cache is None and self.precision != "float32":
            raise UsageError(
                f"`precision='{self.precision}'` needs a `cache`, which remembers what computed the features: those of "
                "another engine would not fit"
            )
        return options

    def _cache_path(self) -> Path:
        """Return the path of the cache; without one, of a temporary cache that goes with this object."""
        if self.cache is not None:
            if not isinstance(self.cache, (str, os.PathLike)):
                raise UsageError(f"`cache` takes the path of a file, or None; got {self.cache!r}")
            return Path(self.cache)
        if not hasattr(self, "_folder"):
            stack = ExitStack()
            self._folder = stack.enter_context(temporary_folder())
            weakref.finalize(self, stack.close)
        return self._folder / "features.h5"


@contextmanager
def _usage_as_value_errors() -> Iterator[None]:
    """Raise each UsageError of the block as InvalidParameter, which is a ValueError and names our parameters."""
    try:
        yield
    except UsageError as error:
        raise InvalidParameter(str(error).replace("`out`", "`cache`")) from error


def _check_files(column: ImageColumn) -> None:
    """Raise ImagesNotFound, with the paths, if files do not exist."""
    if not column.in_files:
        return
    paths = dict.fromkeys(column.paths)
    absent = [path for path in paths if not os.path.exists(path)]
    if absent:
        raise ImagesNotFound(
            f"{counted(len(absent), 'image')} of {len(paths)} cannot be found: {_listed(absent)}. The current folder "
            f"is {Path.cwd()}; give paths from there, or absolute ones"
        )


def _unusable(column: ImageColumn, failures: Mapping[str, Failure], cure: str) -> UnreadableImages:
    """Return the error that names the images that cannot be used."""
    named: list[str] = []
    for path in sorted(failures):
        named.append(f"{column.name(path)} ({failures[path].reason})")
    num_images = len(set(column.paths))
    return UnreadableImages(
        f"{counted(len(failures), 'image')} of {num_images} cannot be used: {_listed(named)}. {cure}"
    )


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
