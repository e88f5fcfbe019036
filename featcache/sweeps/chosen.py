"""One trial of a run, as something to use: its fitted pipeline, its logits, its Keras model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.arrays import Features, Floats
from featcache.errors import UnknownHead
from featcache.heads import store
from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import check_heads_of_file, is_own_class, make_pipeline
from featcache.notebook import html, never_raising
from featcache.spec import ImageRow, Preprocess, Tap
from featcache.sweeps.inputs import arrays_to_fit, features_of, few_of, taps_in
from featcache.sweeps.run_paths import head_file
from featcache.sweeps.trial import Trial, trial_fields

if TYPE_CHECKING:
    from featcache.cache.reader import Cache
    from featcache.sweeps.run import Run


@dataclass(frozen=True)
class Chosen:
    """One trial of a run, as something to use."""

    run: Run
    trial: Trial
    refit: bool = False  # its head is the one that was fitted on train and val

    def __repr__(self) -> str:
        return f"Chosen({self.run.path}@{self.trial.trial}, {self.trial.head}, {self.trial.judged.value:.4f})"

    @never_raising
    def _repr_html_(self) -> str:
        number = "refit" if self.refit else self.trial.trial
        return html(f"{self.run.path}@{number}", trial_fields(self.trial))

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Return the taps that the head reads, in the order of their features."""
        cache = self.run.cache()
        return tuple(cache.taps[name] for name in taps_in(cache, self.trial.tap))

    @property
    def preprocess(self) -> Preprocess:
        """Return how pixels enter the first backbone."""
        return self.taps[0].preprocess

    @property
    def own_code(self) -> tuple[str, ...]:
        """Return the user's own class and functions that this trial is made with, as --allow takes them."""
        return own_code_of(self.trial, self.taps)

    @property
    def estimator(self) -> Any:
        """Return the fitted scikit-learn Pipeline of steps and classifier; its labels are class indices.

        A head that is not stored is fitted again. Raises UnknownHead if that takes a class that the user did not name.
        """
        return self.fitted()

    def fitted(self, cache: Cache | None = None) -> Any:
        """Return the estimator. cache: the run's cache, if it is open already."""
        run, trial = self.run, self.trial
        try:
            check_heads_of_file([trial.head])
        except UnknownHead as error:
            raise UnknownHead(f"Trial {trial.trial} of {run.path}: {error}") from error
        if trial.size:
            path = head_file(run.path, "refit" if self.refit else trial.trial)
            return store.load(path, trial.head, trial.params, trial.width, trial.prepare, len(run.classes))

        cache, settings = cache or run.cache(), run.settings
        rows = run.rows(cache, "train")
        if self.refit:
            rows += run.rows(cache, "val")
        if trial.few is not None:
            rows = [rows[number] for number in few_of(cache.labels(rows), *trial.few)]
        pipeline = make_pipeline(trial.head, trial.params, settings.class_weight, settings.seed, trial.prepare)
        return pipeline.fit(*arrays_to_fit(cache, rows, trial.tap, settings.train_views, run.fingerprints))

    def logits(self, rows: Sequence[ImageRow]) -> Floats:
        """Return the (N, K) logits of images of the cache, divided by the trial's temperature."""
        return decision_logits(self.estimator, self.features(rows)) / self.trial.temperature

    def features(self, rows: Sequence[ImageRow]) -> Features:
        """Return the (N, D) features of images of the cache that the head reads."""
        return features_of(self.run.cache(), rows, self.trial.tap)

    def to_keras(self, images: str | Path | None = None) -> Any:
        """Return the Keras model that takes images and gives probabilities, with its `certificate`.

        images: where the images lie now, if not where they were extracted from. Raises ParityFailed.
        """
        # The one import of a later room: users call this method on a trial, and Keras loads only if they do.
        from featcache.models import handoff

        return handoff(self, images=images)


def own_code_of(trial: Trial, taps: Sequence[Tap]) -> tuple[str, ...]:
    """Return the user's own class and functions that a trial on these taps is made with."""
    names = [tap.backbone.weights for tap in taps if tap.backbone.origin == "import"]
    if is_own_class(trial.head):
        names.append(trial.head)
    return tuple(dict.fromkeys(names))
