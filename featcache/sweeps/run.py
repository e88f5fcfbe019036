"""The folder of one sweep: run.json (all that is needed to repeat it), trials.csv, heads/."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featcache.cache.reader import Cache
from featcache.errors import NotARun, UnknownHead
from featcache.files import read_json, write_json, write_whole
from featcache.heads import store
from featcache.heads.estimators import FAMILIES, family_of, make_pipeline
from featcache.spec import ImageRow, Tap, digest_of
from featcache.sweeps.metrics import Metric

RUN_FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """What a sweep was asked for; `featcache sweep --config run.json` repeats it."""

    cache: str
    heads: tuple[str, ...]
    taps: tuple[str, ...]
    cv: int | None = None  # folds over train; None: the stored validation split
    metric: Metric = "accuracy"
    class_weight: str | None = None
    shots: int | None = None  # at most so many images per class in train, and as many in val
    seed: int = 0
    grid: dict[str, dict[str, list[Any]]] | None = None  # values instead of the heads' own: {head: {parameter: values}}


@dataclass(frozen=True)
class Trial:
    """One head setting on one tap, with its score on the images that choose."""

    trial: int
    tap: str
    width: int
    head: str
    params: dict[str, Any]
    status: str  # "ok" or the reason why it has no score
    score: float
    interval: tuple[float, float]
    fit_s: float
    handoff: bool
    converged: bool
    temperature: float
    rank: int  # from simple to complex; decides between equal scores
    log_loss: float | None = None  # on the images that choose; None where a head gives no logits


@dataclass(frozen=True)
class Run:
    """A finished sweep."""

    path: Path
    settings: Settings
    classes: tuple[str, ...]
    fingerprints: dict[str, str]  # {tap: fingerprint}
    num_train: int
    num_select: int  # images that chose: of val, or of train under cross-validation
    trials: tuple[Trial, ...]
    seconds: float
    tuned: tuple[str, ...] = ()  # files of the models that were fine-tuned from its trials
    test_opened: tuple[dict[str, Any], ...] = ()  # each time the test split was looked at
    images_digest: str = ""  # of the contents and labels of the training and validation images

    def __repr__(self) -> str:
        return f"Run({self.path}, {len(self.trials)} trials on {', '.join(self.settings.taps)})"

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the folder of a run. Raises NotARun."""
        path = Path(path)
        if not (path / "run.json").is_file():
            raise NotARun(f"{path} is not the folder of a run (it has no run.json). Make one: featcache sweep CACHE.h5")
        facts = read_json(path / "run.json", NotARun)
        try:
            return _from_json(path, facts)
        except (KeyError, TypeError, AttributeError) as error:
            raise NotARun(f"{path / 'run.json'} is damaged or of another version: {error}. Sweep again") from error

    @property
    def ranked(self) -> list[Trial]:
        """Return the trials that have a score, best first.

        Of equal scores the simpler kind of head comes first, of one kind the setting with the lower log loss.
        """
        scored = [trial for trial in self.trials if trial.status == "ok"]
        return sorted(scored, key=_order)

    @property
    def best(self) -> Chosen:
        """Return the best trial."""
        return self["best"]

    @property
    def best_handoff(self) -> Chosen:
        """Return the best of the trials that can be handed to Keras."""
        for trial in self.ranked:
            if trial.handoff:
                return Chosen(self, trial)
        raise UnknownHead(
            f"{self.path} has no head that can be handed off. Sweep some of: ridge, logreg, svm, softmax, mlp"
        )

    def __getitem__(self, which: str | int) -> Chosen:
        """Return a trial by its number, or "best". Raises UnknownHead."""
        ranked = self.ranked
        if not ranked:
            raise UnknownHead(
                f"{self.path} has no trial with a score: {self.trials[0].status if self.trials else 'it is empty'}"
            )
        if which == "best":
            return Chosen(self, ranked[0])
        found = [trial for trial in self.trials if str(trial.trial) == str(which)]
        if not found:
            raise UnknownHead(f"{self.path} has trials 1 to {len(self.trials)} and 'best'; got '{which}'")
        return Chosen(self, found[0])

    def cache(self) -> Cache:
        """Open the cache that the run was made from. Raises NotARun if its features are others now."""
        cache = Cache.open(self._cache_path())
        for tap, fingerprint in self.fingerprints.items():
            if tap not in cache.taps or cache.taps[tap].fingerprint != fingerprint:
                raise NotARun(
                    f"{self.path} was made from features of tap '{tap}' that {cache.path} no longer has. Sweep again"
                )
        if cache.classes != self.classes:
            raise NotARun(f"{self.path} was made for other classes than {cache.path} has now. Sweep again")
        if digest_of_rows([*self.rows(cache, "train"), *self.rows(cache, "val")]) != self.images_digest:
            raise NotARun(
                f"Images, labels or splits of {cache.path} are not those {self.path} was made from. Sweep again"
            )
        return cache

    def _cache_path(self) -> Path:
        """Where the cache was, or beside the run if both were moved together."""
        path = Path(self.settings.cache)
        beside = self.path.parent / path.name
        return beside if not path.exists() and beside.exists() else path

    def rows(self, cache: Cache, split: str) -> list[ImageRow]:
        """Return the labelled images of a split that this run uses: of train and val at most `shots` per class."""
        shots = None if split == "test" else self.settings.shots
        return [row for row in cache.usable(split, shots) if row.label]

    def add_tuned(self, model: Path) -> None:
        """Write down that a model was fine-tuned from a trial of this run, for the final report."""
        replace(self, tuned=tuple(dict.fromkeys([*self.tuned, str(model.resolve())]))).save()

    def save(self) -> None:
        """Write run.json and trials.csv."""
        facts = {"format": RUN_FORMAT, **asdict(self)}
        del facts["path"]
        write_json(self.path / "run.json", facts)
        write_whole(self.path / "trials.csv", _csv(self.trials).encode())


@dataclass(frozen=True)
class Chosen:
    """One trial of a run, as something to use."""

    run: Run
    trial: Trial

    def __repr__(self) -> str:
        return f"Chosen({self.run.path}@{self.trial.trial}, {self.trial.head}, {self.trial.score:.4f})"

    @property
    def tap(self) -> Tap:
        """Return the tap that the head reads."""
        return self.run.cache().taps[self.trial.tap]

    @property
    def estimator(self) -> Any:
        """Return the fitted scikit-learn Pipeline of scaler and classifier; its labels are class indices."""
        trial = self.trial
        if family_of(trial.head).handoff:
            return store.load(head_file(self.run.path, trial), trial.head, trial.params, trial.width)
        cache = self.run.cache()
        rows = self.run.rows(cache, "train")
        pipeline = make_pipeline(trial.head, trial.params, self.run.settings.class_weight, self.run.settings.seed)
        return pipeline.fit(cache.features(rows, trial.tap), cache.labels(rows))

    def to_keras(self, images: str | Path | None = None) -> Any:
        """Return the Keras model that takes images and gives probabilities, with its `certificate`.

        images: where the images lie now, if not where they were extracted from. Raises ParityFailed.
        """
        from featcache.assembly import handoff

        return handoff(self, images=images)


def open_trial(text: str) -> Chosen:
    """Return the trial that `RUN@best`, `RUN@3` or `RUN` (its best) names."""
    path, at, which = text.rpartition("@")
    return Run.open(path)[which] if at else Run.open(text).best


def head_file(run: Path, trial: Trial) -> Path:
    """Return where the arrays of a trial's head lie."""
    return run / "heads" / f"{trial.trial}.npz"


def digest_of_rows(rows: Sequence[ImageRow]) -> str:
    """Return one digest of the contents and labels of these images, in order."""
    return digest_of([[row.digest, row.label] for row in rows])


def free_folder(wanted: Path) -> Path:
    """Return `wanted`, or the first of wanted-2, wanted-3 .. that does not exist."""
    return next(path for path in _numbered(wanted) if not path.exists())


def spelt(value: Any) -> str:
    """Return the value of a parameter as short as it can be read.

    >>> spelt(1e-06), spelt(256), spelt("euclidean"), spelt(None)
    ('1e-06', '256', 'euclidean', 'None')
    """
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def _order(trial: Trial) -> tuple[float, int, float, int, int]:
    kind = list(FAMILIES).index(family_of(trial.head).name)
    loss = math.inf if trial.log_loss is None else trial.log_loss
    return -trial.score, kind, loss, trial.rank, trial.trial


def _from_json(path: Path, facts: dict[str, Any]) -> Run:
    if facts.pop("format") != RUN_FORMAT:
        raise KeyError("format")
    settings = Settings(**{**facts.pop("settings")})
    trials = tuple(Trial(**{**trial, "interval": tuple(trial["interval"])}) for trial in facts.pop("trials"))
    for name in ("classes", "tuned", "test_opened"):
        facts[name] = tuple(facts.get(name, ()))
    settings = Settings(**{**asdict(settings), "heads": tuple(settings.heads), "taps": tuple(settings.taps)})
    return Run(path=path, settings=settings, trials=trials, **facts)


def _csv(trials: tuple[Trial, ...]) -> str:
    text = io.StringIO()
    names = [
        "trial",
        "tap",
        "width",
        "head",
        "params",
        "status",
        "score",
        "low",
        "high",
        "fit_s",
        "handoff",
        "converged",
    ]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for trial in trials:
        params = " ".join(f"{key}={spelt(value)}" for key, value in trial.params.items())
        low, high = trial.interval
        writer.writerow(
            [
                *(trial.trial, trial.tap, trial.width, trial.head, params, trial.status),
                *(f"{value:.4f}" for value in (trial.score, low, high, trial.fit_s)),
                *(trial.handoff, trial.converged),
            ]
        )
    return text.getvalue()
