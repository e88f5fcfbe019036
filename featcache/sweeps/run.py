"""The folder of one sweep: run.json (all that is needed to repeat it), trials.csv, heads/, predictions/.

Only the sweep writes these. Later commands record what they did in files beside them: see `records`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from featcache.cache.changes import Review
from featcache.cache.layout import looks_beside
from featcache.cache.reader import Cache
from featcache.errors import DataError, FeatcacheError, NotARun, UnknownHead
from featcache.files import check_seal, read_json, write_sealed, write_whole
from featcache.heads.estimators import is_own_class
from featcache.heads.steps import STANDARDISE
from featcache.notebook import html, import_pandas, never_raising
from featcache.spec import ImageRow
from featcache.sweeps import records
from featcache.sweeps.chosen import Chosen
from featcache.sweeps.inputs import digest_of_rows, rows_of
from featcache.sweeps.metrics import Metric
from featcache.sweeps.presets import preset_of
from featcache.sweeps.selection import Selection
from featcache.sweeps.trial import COLUMNS, Trial, best_first, row_of, trials_csv
from featcache.sweeps.trial_rows import failures, ties, trial_rows
from featcache.text import Table, counted
from featcache.trust import allow_flags

RUN_FORMAT = 4
WITHOUT_MAKERS = 3  # the format before, which did not say what the run was made with
WITHOUT_DIGEST = 2  # the format before that, which also held what `records` keeps in files now


@dataclass(frozen=True)
class Settings:
    """What a sweep was asked for; `featcache sweep --config run.json` repeats it."""

    cache: str
    heads: tuple[str, ...]
    taps: tuple[str, ...]
    cv: int | str | None = None  # as run.json spells it; `selection` is its meaning
    metric: Metric = "accuracy"
    class_weight: str | None = None
    shots: int | None = None  # the most images per class in train, and in val
    seed: int = 0
    grid: dict[str, dict[str, list[Any]]] | None = None  # values instead of the heads' own: {head: {parameter: values}}
    prepare: tuple[str, ...] = (STANDARDISE,)  # chains of steps before the heads
    preset: str | None = None  # the protocol that set what is not set otherwise
    budget: float | None = None  # seconds, most of which go to promising settings
    memory: float | None = None  # bytes that features may take; None: a quarter of the machine's
    refit: bool = False  # fit the winner on train and val in the end
    train_views: bool = False  # fit heads on all cached views of each training image

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Settings:
        """Return the settings that run.json holds, where tuples are lists."""
        tuples: dict[str, Any] = {name: tuple(facts[name]) for name in ("heads", "taps", "prepare")}
        return cls(**{**facts, **tuples})

    @property
    def selection(self) -> Selection:
        """Return which images choose among the heads."""
        return Selection.parse(self.cv)

    @property
    def few(self) -> tuple[tuple[int, int], ...]:
        """Return the small training sets of its preset, each (images per class, seed)."""
        return preset_of(self.preset).few if self.preset else ()


@dataclass(frozen=True)
class Run:
    """A sweep, and how far it has come."""

    path: Path
    settings: Settings
    classes: tuple[str, ...]
    fingerprints: dict[str, str]  # {tap: fingerprint}, of the views that heads were fitted on too
    num_train: int
    num_select: int  # images that chose: of val, or of train under cross-validation
    trials: tuple[Trial, ...]
    seconds: float
    tuned: tuple[str, ...] = ()  # files of the models that were fine-tuned from its trials
    test_opened: tuple[dict[str, Any], ...] = ()  # each time the test split was looked at
    images_digest: str = ""  # of the contents and labels of the training and validation images
    planned: int = 0  # trials; a run with fewer was stopped
    refitted: int | None = None  # the trial whose head was fitted again on train and val
    # Which of `tuned` have a record in a file; it is not part of run.json.
    recorded: tuple[str, ...] = field(default=(), repr=False, compare=False)
    makers: tuple[Mapping[str, Any], ...] = ()  # see `provenance.made_with`; several if it went on elsewhere
    unjudged: tuple[str, ...] = ()  # classes without an image that chose: scores do not cover them

    def __repr__(self) -> str:
        return f"Run({self.path}, {counted(len(self.trials), 'trial')} on {', '.join(self.settings.taps)})"

    @never_raising
    def _repr_html_(self) -> str:
        chose = f"chosen on {counted(self.num_select, 'image')} by {self.settings.selection.describe()}"
        notes = [*ties(self), *failures(self)]
        if not self.is_finished:
            notes.append(f"{len(self.trials)} of {self.planned} trials are done; the same sweep goes on with it.")
        try:
            self.cache()
        except FeatcacheError as error:  # the run still has its scores
            notes.append(str(error))
        return html(f"{self.path}: {counted(len(self), 'trial')}, {chose}", Table(*trial_rows(self)), notes=notes)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the folder of a run. Raises NotARun."""
        path = Path(path)
        file = path / "run.json"
        if not file.is_file():
            raise NotARun(f"{path} is not the folder of a run (it has no run.json). Make one: featcache sweep CACHE.h5")
        facts = read_json(file, NotARun)
        try:
            return cls._from_json(path, _checked(facts, file))._with_records()
        except (KeyError, TypeError, AttributeError) as error:
            raise NotARun(f"{file} is damaged or of another version: {error}. Sweep again") from error

    @classmethod
    def _from_json(cls, path: Path, facts: dict[str, Any]) -> Run:
        del facts["format"]
        settings = Settings.from_json(facts.pop("settings"))
        trials = tuple(Trial.from_json(trial) for trial in facts.pop("trials"))
        for name in ("classes", "tuned", "test_opened", "makers", "unjudged"):
            facts[name] = tuple(facts.get(name, ()))
        return cls(path=path, settings=settings, trials=trials, **facts)

    def _with_records(self) -> Run:
        """Return the run with the records in files of its folder. Raises NotARun if one of them is damaged."""
        recorded = records.read_tuned(self.path)
        tuned = dict.fromkeys([*self.tuned, *recorded])
        looks = records.read_looks(self.path / records.LOOKS)
        return replace(self, tuned=tuple(tuned), recorded=tuple(recorded), test_opened=(*self.test_opened, *looks))

    def save(self, *, replaces: bool = True) -> None:
        """Write run.json and trials.csv.

        replaces: False begins a run: Overtaken is raised if there is a run.json already, and trials.csv comes later.
        """
        path = self.path / "run.json"
        facts = {"format": RUN_FORMAT, **asdict(self)}
        del facts["path"], facts["recorded"]
        if not self.unjudged:
            del facts["unjudged"]  # earlier versions refuse a key that they do not know
        if not self.settings.train_views:
            del facts["settings"]["train_views"]  # as above
        # Only what an earlier version wrote into run.json stays there; the rest is in files beside it.
        facts["tuned"] = [file for file in self.tuned if file not in self.recorded]
        facts["test_opened"] = [look for look in self.test_opened if "record" not in look]
        if replaces:
            # Before run.json, which says how far the sweep is: after a kill in between it writes both again.
            write_whole(self.path / "trials.csv", trials_csv(self.trials).encode())
        write_sealed(path, facts, unchanged=lambda: replaces or not path.exists())

    @property
    def is_finished(self) -> bool:
        """Return whether all trials were made, and the winner was fitted again if it was asked for."""
        lacks_refit = self.settings.refit and self.refitted is None
        return len(self.trials) >= self.planned and not lacks_refit

    @property
    def ranked(self) -> list[Trial]:
        """Return the trials that have a score, best first: see `best_first`."""
        return best_first(self.trials, self.settings.metric)

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

    def to_frame(self) -> Any:
        """Return the trials as a pandas.DataFrame: those with a score, best first, then the others.

        Its columns are those of trials.csv. Raises EnvironmentFault without pandas.
        """
        pandas = import_pandas()
        without_score = [trial for trial in self.trials if trial.status != "ok"]
        rows = [row_of(trial) for trial in (*self.ranked, *without_score)]
        return pandas.DataFrame(rows, columns=COLUMNS)

    def plot(self, axes: Any = None) -> Any:
        """Draw the best trial of each kind of head on each tap with its 95 % interval, and return the axes.

        axes: of matplotlib, to draw on; by default a new figure's. Raises UsageError if no trial has a score,
        EnvironmentFault without matplotlib.
        """
        # The one import of a later room: users call this method on a run, and matplotlib loads only if they do.
        from featcache.extras.report.score_axes import plot_scores

        return plot_scores(self, axes)

    def __iter__(self) -> Iterator[Chosen]:
        """Yield the trials that have a score, best first."""
        return (Chosen(self, trial) for trial in self.ranked)

    def __len__(self) -> int:
        """Return how many trials have a score."""
        return len(self.ranked)

    def __bool__(self) -> bool:
        """Return True: a run without a scored trial is a run."""
        return True

    @property
    def _refit_command(self) -> str:
        """Return the command that does this sweep again with --refit: its trials stay."""
        own_heads = [head for head in self.settings.heads if is_own_class(head)]
        allowed = allow_flags(own_heads)
        config = quote(str(self.path / "run.json"))
        folder = quote(str(self.path))
        return f"featcache sweep {quote(self.settings.cache)} --config {config} --refit -o {folder}{allowed}"

    def __getitem__(self, name: str | int) -> Chosen:
        """Return a trial by its number, "best", or "refit": the best, fitted on train and val. Raises UnknownHead."""
        ranked = self.ranked
        if not ranked:
            reason = self.trials[0].status if self.trials else "it is empty"
            raise UnknownHead(f"{self.path} has no trial with a score: {reason}")
        if name == "best":
            return Chosen(self, ranked[0])
        if name == "refit":
            if self.refitted is None:
                if self.settings.few:
                    raise UnknownHead(f"{self.path} has no 'refit', since its preset draws a few images. Take 'best'")
                raise UnknownHead(f"{self.path} has no head fitted on train and val. Fit one: {self._refit_command}")
            return replace(self[self.refitted], refit=True)
        for trial in self.trials:
            if str(trial.trial) == str(name):
                return Chosen(self, trial)
        names = " and 'best'" if self.refitted is None else ", 'best' and 'refit'"
        raise UnknownHead(f"{self.path} has trials 1 to {len(self.trials)}{names}; got '{name}'")

    def cache(self) -> Cache:
        """Open the cache that the run was made from. Raises NotARun if its features or images have changed."""
        cache = Cache.open(self.cache_path)
        for tap, fingerprint in self.fingerprints.items():
            if tap not in cache.taps or cache.taps[tap].fingerprint != fingerprint:
                raise NotARun(
                    f"{self.path} was made from features of tap '{tap}' that {cache.path} no longer has. Sweep again"
                )
        if cache.classes != self.classes:
            raise NotARun(f"{self.path} was made for other classes than {cache.path} has now. Sweep again")
        train, val = self.rows(cache, "train"), self.rows(cache, "val")
        digest = digest_of_rows([*train, *val], with_groups=self.settings.selection.is_within_train)
        if len(train) != self.num_train or digest != self.images_digest:
            raise NotARun(
                f"{cache.path} has changed since {self.path} was made from it: images came or went, or labels, "
                "groups or splits changed. Sweep again"
            )
        return cache

    @property
    def cache_path(self) -> Path:
        """Where the cache was, or its place beside the run if both were moved together."""
        path = Path(self.settings.cache)
        beside = self.path.parent / path.name
        return beside if not path.exists() and beside.exists() else path

    def rows(self, cache: Cache, split: str) -> list[ImageRow]:
        """Return the labelled images of a split that this run uses: see `inputs.rows_of`."""
        return rows_of(cache, split, self.settings.taps, self.settings.shots)

    def looks(self) -> list[dict[str, Any]]:
        """Return every recorded look at the test split of this run's cache, of other runs too, oldest first.

        Raises NotARun if a record is damaged.
        """
        beside = records.read_looks(looks_beside(self.cache_path))
        names = {look["record"] for look in beside}
        only_here = [look for look in self.test_opened if look.get("record") not in names]
        return sorted([*only_here, *beside], key=lambda look: str(look.get("at", "")))

    def test_reviews(self) -> list[Review]:
        """Return the reviews that changed labels of test images, oldest first; none if the cache is gone."""
        try:
            reviews = Cache.open(self.cache_path).changes.reviews
        except DataError:
            return []
        changed = [review for review in reviews if review.split == "test" and review.outcome != "kept"]
        return sorted(changed, key=lambda review: review.at)


def open_trial(text: str) -> Chosen:
    """Return the trial that `RUN@best`, `RUN@3` or `RUN` (its best) names."""
    run, chosen = open_named(text)
    return chosen or run.best


def open_named(text: str) -> tuple[Run, Chosen | None]:
    """Return the run that `RUN` or `RUN@3` names, which may have an @ in its name, and the trial if it names one."""
    path, at, trial = text.rpartition("@")
    if not at or (Path(text) / "run.json").is_file():
        return Run.open(text), None
    run = Run.open(path)
    return run, run[trial]


def _checked(facts: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the facts of a run.json whose format is known and whose seal is whole. Raises NotARun, KeyError."""
    written = facts["format"]
    if isinstance(written, int) and written > RUN_FORMAT:
        raise NotARun(
            f"{file} has format {written}; this featcache reads formats up to {RUN_FORMAT}. "
            "Update featcache: pip install -U featcache"
        )
    if written in (RUN_FORMAT, WITHOUT_MAKERS):
        return check_seal(
            facts, file, NotARun, "Sweep again; with other settings: featcache sweep CACHE.h5 --config FILE.toml"
        )
    if written != WITHOUT_DIGEST:
        raise KeyError("format")
    return facts
