"""The folder of one sweep: run.json (all that is needed to repeat it), trials.csv, heads/, predictions/.

Only the sweep writes these. What later commands record lies in files of their own: see `records`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.cache.changes import Review
from featcache.cache.layout import looks_beside
from featcache.cache.reader import Cache
from featcache.errors import DataError, NotARun, UnknownHead
from featcache.files import check_seal, read_json, write_sealed, write_whole
from featcache.heads import store
from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import check_heads_of_file, complexity, is_own_class, make_pipeline
from featcache.heads.steps import STANDARDISE
from featcache.spec import ImageRow, Preprocess, Tap, digest_of
from featcache.sweeps import records
from featcache.sweeps.metrics import METRICS, Metric, Score, better
from featcache.sweeps.presets import preset_of
from featcache.sweeps.unseen import judging

RUN_FORMAT = 4
WITHOUT_MAKERS = 3  # the format before, which did not say what the run was made with
WITHOUT_DIGEST = 2  # the format before that, which also held what is in files of its own now
LOO = "loo"
NOT_JUDGED = -1  # instead of a predicted class, of an image that stays in the training of all folds
DROPPED = "dropped:"  # how the status of a trial begins that a budget left out


@dataclass(frozen=True)
class Settings:
    """What a sweep was asked for; `featcache sweep --config run.json` repeats it."""

    cache: str
    heads: tuple[str, ...]
    taps: tuple[str, ...]
    cv: int | str | None = None  # folds over train, or "loo"; None: the stored validation split
    metric: Metric = "accuracy"
    class_weight: str | None = None
    shots: int | None = None  # at most so many images per class in train, and as many in val
    seed: int = 0
    grid: dict[str, dict[str, list[Any]]] | None = None  # values instead of the heads' own: {head: {parameter: values}}
    prepare: tuple[str, ...] = (STANDARDISE,)  # chains of steps before the heads
    preset: str | None = None  # the protocol that set what is not set otherwise
    budget: float | None = None  # seconds, of which the promising get most
    memory: float | None = None  # bytes that features may take; None: a quarter of the machine's
    refit: bool = False  # fit the winner on train and val in the end

    @property
    def few(self) -> tuple[tuple[int, int], ...]:
        """Return the small training sets of its preset, each (images per class, seed)."""
        return preset_of(self.preset).few if self.preset else ()


@dataclass(frozen=True)
class Trial:
    """One head setting on one tap, with its score on the images that choose."""

    trial: int
    tap: str
    width: int
    head: str
    params: dict[str, Any]
    status: str  # "ok" or the reason why it has no score
    score: float | None  # None where there is none
    interval: tuple[float, float] | None
    fit_s: float  # of one fit, the mean over folds
    handoff: bool
    converged: bool
    temperature: float
    rank: int  # from simple to complex; decides between equal scores
    log_loss: float | None = None  # on the images that choose; None where a head gives no logits
    prepare: str = STANDARDISE
    scores: Mapping[str, float | None] = field(default_factory=dict)  # by every metric
    fold_scores: tuple[float, ...] = ()  # of the metric that chooses, fold by fold
    few: tuple[int, int] | None = None  # images per class and seed of its small training set, if it had one
    size: int = 0  # bytes of the stored head; 0: it is fitted again when it is wanted

    @property
    def dropped(self) -> bool:
        """Return whether a budget left it out."""
        return self.status.startswith(DROPPED)

    @property
    def failed(self) -> bool:
        """Return whether its classifier raised."""
        return self.status != "ok" and not self.dropped

    @property
    def judged(self) -> Score:
        """Return its score with the interval, not numbers where it has none."""
        return Score(*(math.nan if one is None else one for one in (self.score, *(self.interval or (None, None)))))

    @property
    def std(self) -> float | None:
        """Return the standard deviation over folds, if there are several."""
        return float(np.std(self.fold_scores, ddof=1)) if len(self.fold_scores) > 1 else None


@dataclass(frozen=True)
class Run:
    """A sweep, and how far it has come."""

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
    planned: int = 0  # trials; with fewer there, the sweep was stopped
    refitted: int | None = None  # the trial whose head was fitted again on train and val
    recorded: tuple[str, ...] = field(
        default=(), repr=False, compare=False
    )  # those of `tuned` with a record of their own
    makers: tuple[Mapping[str, Any], ...] = ()  # see `provenance.made_with`; several if it went on elsewhere
    unjudged: tuple[str, ...] = ()  # classes without an image that chose, so that scores say nothing about them

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
            run = _from_json(path, facts)
            return run._with_records()
        except (KeyError, TypeError, AttributeError) as error:
            raise NotARun(f"{path / 'run.json'} is damaged or of another version: {error}. Sweep again") from error

    @property
    def is_finished(self) -> bool:
        """Return whether nothing is left to do of what it was asked."""
        return len(self.trials) >= self.planned and not (self.settings.refit and self.refitted is None)

    @property
    def ranked(self) -> list[Trial]:
        """Return the trials that have a score, best first.

        Of equal scores the simpler kind of head comes first, of one kind the setting with the lower log loss.
        """
        scored = [trial for trial in self.trials if trial.status == "ok"]
        return sorted(scored, key=lambda trial: _order(trial, self.settings.metric))

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

    def __iter__(self) -> Iterator[Chosen]:
        """Yield the trials that have a score, best first."""
        return (Chosen(self, trial) for trial in self.ranked)

    def __len__(self) -> int:
        """Return how many trials have a score."""
        return len(self.ranked)

    def __bool__(self) -> bool:
        """Return True: a run without a scored trial is a run."""
        return True

    def __getitem__(self, which: str | int) -> Chosen:
        """Return a trial by its number, "best", or "refit": the best, fitted on train and val. Raises UnknownHead."""
        ranked = self.ranked
        if not ranked:
            raise UnknownHead(
                f"{self.path} has no trial with a score: {self.trials[0].status if self.trials else 'it is empty'}"
            )
        if which == "best":
            return Chosen(self, ranked[0])
        if which == "refit":
            return self._refit()
        found = [trial for trial in self.trials if str(trial.trial) == str(which)]
        if not found:
            names = " and 'best'" if self.refitted is None else ", 'best' and 'refit'"
            raise UnknownHead(f"{self.path} has trials 1 to {len(self.trials)}{names}; got '{which}'")
        return Chosen(self, found[0])

    def _refit(self) -> Chosen:
        if self.refitted is None:
            raise UnknownHead(f"{self.path} has no head fitted on train and val. Sweep with `refit=True`")
        return replace(self[self.refitted], refit=True)

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
        train, val = self.rows(cache, "train"), self.rows(cache, "val")
        if len(train) != self.num_train or digest_of_rows([*train, *val], self.settings.cv) != self.images_digest:
            raise NotARun(
                f"Images, labels, groups or splits of {cache.path} are not those {self.path} was made from. Sweep again"
            )
        return cache

    def _cache_path(self) -> Path:
        """Where the cache was, or beside the run if both were moved together."""
        path = Path(self.settings.cache)
        beside = self.path.parent / path.name
        return beside if not path.exists() and beside.exists() else path

    def rows(self, cache: Cache, split: str) -> list[ImageRow]:
        """Return the labelled images of a split that this run uses: see `rows_of`."""
        return rows_of(cache, split, self.settings)

    def _with_records(self) -> Run:
        """Return the run with what is recorded in files of its folder. Raises NotARun if one of them is damaged."""
        recorded = records.read_tuned(self.path)
        tuned = dict.fromkeys([*self.tuned, *recorded])
        looks = records.read_looks(self.path / records.LOOKS)
        return replace(self, tuned=tuple(tuned), recorded=tuple(recorded), test_opened=(*self.test_opened, *looks))

    def looks(self) -> list[dict[str, Any]]:
        """Return every look at the test split of this run's cache that is recorded, of other runs too, oldest first.

        Raises NotARun if a record is damaged.
        """
        beside = records.read_looks(looks_beside(self._cache_path()))
        names = {look["record"] for look in beside}
        own = [look for look in self.test_opened if look.get("record") not in names]
        return sorted([*own, *beside], key=lambda look: str(look.get("at", "")))

    def test_reviews(self) -> list[Review]:
        """Return the reviews that changed labels of test images, oldest first; none if the cache is gone."""
        try:
            reviews = Cache.open(self._cache_path()).changes.reviews
        except DataError:
            return []
        changed = [review for review in reviews if review.split == "test" and review.outcome != "kept"]
        return sorted(changed, key=lambda review: review.at)

    def save(self, *, replaces: bool = True) -> None:
        """Write run.json and trials.csv.

        replaces: False begins a run: Overtaken is raised if there is a run.json already, and trials.csv comes later.
        """
        path = self.path / "run.json"
        facts = {"format": RUN_FORMAT, **asdict(self)}
        del facts["path"], facts["recorded"]
        if not self.unjudged:
            del facts["unjudged"]  # earlier versions do not know it
        if replaces:
            # Before run.json, which says how far the sweep is: if it is killed in between, it writes both again.
            write_whole(self.path / "trials.csv", _csv(self.trials).encode())
        # Only what an earlier version wrote into run.json stays there; the rest has files of its own.
        facts["tuned"] = [file for file in self.tuned if file not in self.recorded]
        facts["test_opened"] = [look for look in self.test_opened if "record" not in look]
        write_sealed(path, facts, unchanged=lambda: replaces or not path.exists())


@dataclass(frozen=True)
class Chosen:
    """One trial of a run, as something to use."""

    run: Run
    trial: Trial
    refit: bool = False  # its head is the one that was fitted on train and val

    def __repr__(self) -> str:
        return f"Chosen({self.run.path}@{self.trial.trial}, {self.trial.head}, {self.trial.judged.value:.4f})"

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
        names = [tap.backbone.weights for tap in self.taps if tap.backbone.origin == "import"]
        if is_own_class(self.trial.head):
            names.append(self.trial.head)
        return tuple(dict.fromkeys(names))

    @property
    def estimator(self) -> Any:
        """Return the fitted scikit-learn Pipeline of steps and classifier; its labels are class indices.

        What is not stored is fitted again. Raises UnknownHead if that takes a class that the user did not name.
        """
        return self.fitted()

    def fitted(self, cache: Cache | None = None) -> Any:
        """Return the estimator. cache: that of the run, if it is open already."""
        trial = self.trial
        try:
            check_heads_of_file([trial.head])
        except UnknownHead as error:
            raise UnknownHead(f"Trial {trial.trial} of {self.run.path}: {error}") from error
        if trial.size:
            path = head_file(self.run.path, "refit" if self.refit else trial.trial)
            return store.load(path, trial.head, trial.params, trial.width, trial.prepare, len(self.run.classes))
        cache = self.run.cache() if cache is None else cache
        rows = [row for split in ("train", "val")[: 1 + self.refit] for row in self.run.rows(cache, split)]
        if trial.few is not None:
            rows = [rows[at] for at in few_of(cache.labels(rows), *trial.few)]
        settings = self.run.settings
        pipeline = make_pipeline(trial.head, trial.params, settings.class_weight, settings.seed, trial.prepare)
        return pipeline.fit(features_of(cache, rows, trial.tap), cache.labels(rows))

    def logits(self, rows: Sequence[ImageRow]) -> Floats:
        """Return (N, K) of images of the cache, with their temperature, from its features."""
        return decision_logits(self.estimator, self.features(rows)) / self.trial.temperature

    def features(self, rows: Sequence[ImageRow]) -> Features:
        """Return the (N, D) features of images of the cache that the head reads."""
        return features_of(self.run.cache(), rows, self.trial.tap)

    def to_keras(self, images: str | Path | None = None) -> Any:
        """Return the Keras model that takes images and gives probabilities, with its `certificate`.

        images: where the images lie now, if not where they were extracted from. Raises ParityFailed.
        """
        from featcache.models import handoff

        return handoff(self, images=images)


def open_trial(text: str) -> Chosen:
    """Return the trial that `RUN@best`, `RUN@3` or `RUN` (its best) names."""
    run, chosen = open_named(text)
    return chosen or run.best


def open_named(text: str) -> tuple[Run, Chosen | None]:
    """Return the run that `RUN` or `RUN@3` names, which may have an @ in its name, and the trial if it names one."""
    path, at, which = text.rpartition("@")
    if not at or (Path(text) / "run.json").is_file():
        return Run.open(text), None
    run = Run.open(path)
    return run, run[which]


def head_file(run: Path, name: int | str) -> Path:
    """Return where the arrays of a trial's head lie, by its number, or those of "refit"."""
    return run / "heads" / f"{name}.npz"


def predictions_file(run: Path, trial: int | str) -> Path:
    """Return where the predictions of a trial lie, on the images that chose."""
    return run / "predictions" / f"{trial}.npz"


def by_depth(cache: Cache, names: Sequence[str]) -> list[str]:
    """Return taps as their layers follow one another, as far as names tell: numbers by value, stems first, top last.

    Those of one backbone stand together.
    """
    backbones = list(dict.fromkeys(cache.taps[name].backbone for name in names))

    def place(name: str) -> tuple[Any, ...]:
        layer = cache.taps[name].layer.lower()
        parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", layer)]
        return backbones.index(cache.taps[name].backbone), layer in _LAST, not layer.startswith(_FIRST), parts

    return sorted(names, key=place)


_FIRST = ("stem", "expanded_conv", "conv1", "pool1", "bn_conv1")
_LAST = ("top", "avg_pool", "predictions")


def rows_of(cache: Cache, split: str, asked: Settings) -> list[ImageRow]:
    """Return the labelled images of a split that a sweep uses: of train and val at most `shots` per class.

    Of val and test those that can judge: see `unseen`.
    """
    rows = [row for row in cache.usable(split, None if split == "test" else asked.shots) if row.label]
    return judging(cache, rows, split, single_taps(cache, asked.taps))


def single_taps(cache: Cache, names: Sequence[str]) -> list[str]:
    """Return each tap of these names once, of those that join several, too."""
    return list(dict.fromkeys(tap for name in names for tap in taps_in(cache, name)))


def taps_in(cache: Cache, name: str) -> list[str]:
    """Return the taps of a name that may join several."""
    return [name] if name in cache.taps else [part.strip() for part in name.split("+")]


def few_of(labels: Classes, shots: int, seed: int) -> Classes:
    """Return the rows of a small training set, (n,): of each class `shots` or all there are, drawn by the seed."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def features_of(cache: Cache, rows: Sequence[ImageRow], tap: str) -> Features:
    """Return the (N, D) features of a tap, or of several joined by +, beside one another."""
    if tap in cache.taps:
        return cache.features(rows, tap)
    return np.concatenate([cache.features(rows, name) for name in taps_in(cache, tap)], axis=1)


def digest_of_rows(rows: Sequence[ImageRow], cv: int | str | None = None) -> str:
    """Return one digest of the contents and labels of these images, in order; under `cv` of their groups, too."""
    return digest_of([[row.digest, row.label, *([row.group] if cv and row.group else [])] for row in rows])


def free_folder(wanted: Path) -> Path:
    """Return `wanted`, or the first of wanted-2, wanted-3 .. that does not exist: photos.run, photos-2.run .."""
    return next(path for path in numbered(wanted) if not path.exists())


def spelt(value: Any) -> str:
    """Return the value of a parameter as short as it can be read.

    >>> spelt(1e-06), spelt(256), spelt("euclidean"), spelt(None)
    ('1e-06', '256', 'euclidean', 'None')
    """
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def numbered(path: Path) -> Iterator[Path]:
    """Yield photos.run, photos-2.run, photos-3.run .. without end."""
    end = ".run" if path.suffix == ".run" else ""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name.removesuffix(end)}-{number}{end}")


def _order(trial: Trial, metric: Metric) -> tuple[float, int, float, int, int]:
    loss = math.inf if trial.log_loss is None else trial.log_loss
    return -better(metric, trial.judged.value), complexity(trial.head), loss, trial.rank, trial.trial


def _from_json(path: Path, facts: dict[str, Any]) -> Run:
    file, written = path / "run.json", facts["format"]
    if isinstance(written, int) and written > RUN_FORMAT:
        raise NotARun(
            f"{file} has format {written}; this featcache reads formats up to {RUN_FORMAT}. "
            "Update featcache: pip install -U featcache"
        )
    if written in (RUN_FORMAT, WITHOUT_MAKERS):
        facts = check_seal(facts, file, NotARun, "Sweep again; to sweep with other settings: --config FILE.toml")
    elif written != WITHOUT_DIGEST:
        raise KeyError("format")
    del facts["format"]
    asked = facts.pop("settings")
    lists: dict[str, Any] = {name: tuple(asked[name]) for name in ("heads", "taps", "prepare")}
    settings = Settings(**{**asked, **lists})
    trials = tuple(_trial(trial) for trial in facts.pop("trials"))
    for name in ("classes", "tuned", "test_opened", "makers", "unjudged"):
        facts[name] = tuple(facts.get(name, ()))
    return Run(path=path, settings=settings, trials=trials, **facts)


def _trial(facts: dict[str, Any]) -> Trial:
    few = None if facts["few"] is None else tuple(facts["few"])
    lists: dict[str, Any] = {name: float(facts[name]) for name in ("temperature", "fit_s")}
    lists["fold_scores"] = tuple(map(float, facts["fold_scores"]))
    lists |= {"score": None, "interval": None}
    if facts["status"] == "ok":
        lists |= {"score": float(facts["score"]), "interval": tuple(map(float, facts["interval"]))}
    return Trial(**{**facts, **lists, "few": few})


def _csv(trials: tuple[Trial, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *METRICS])
    for trial in trials:
        low, high = trial.interval or (None, None)
        row = asdict(trial) | {"std": trial.std, "low": low, "high": high}
        row["shots"] = None if trial.few is None else trial.few[0]
        row["params"] = " ".join(f"{key}={spelt(value)}" for key, value in trial.params.items())
        row |= {name: trial.scores.get(name) for name in METRICS}
        writer.writerow(_cell(row[name]) for name in (*_COLUMNS, *METRICS))
    return text.getvalue()


_COLUMNS = (
    *("trial", "tap", "width", "prepare", "shots", "head", "params", "status", "score", "low", "high", "std"),
    *("fit_s", "size", "handoff", "converged"),
)


def _cell(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value
