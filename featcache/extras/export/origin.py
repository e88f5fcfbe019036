"""Open the model to export, a MODEL.keras or a trial of a run, and find the run whose images can check it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.backbones.lineage import UNRECORDED, Lineages, lineages_in
from featcache.errors import DataError, UnknownHead, UsageError
from featcache.models import Probe, checked_model, load_model
from featcache.models.modelfile import read_facts
from featcache.spec import Preprocess, Tap
from featcache.sweeps import Run, open_trial


@dataclass(frozen=True)
class Origin:
    """A model to export, and what is known about it."""

    name: str  # as the user gave it
    model: Any  # keras.Model: uint8 images of any size -> probabilities
    facts: dict[str, Any]
    probe: Probe | None  # the trial that it came from, opened; None if its run was not found

    @property
    def classes(self) -> list[str]:
        """Return the class names, in the order of the model's outputs."""
        return list(self.facts["classes"])

    @property
    def lineages(self) -> Lineages:
        """Return which images trained it or helped to choose it."""
        if self.probe is not None and not Path(self.name).is_file():
            return self.probe.lineages()
        return lineages_in(Path(self.name)) or UNRECORDED

    @property
    def preprocess(self) -> Preprocess:
        """Return how images become its input."""
        return Tap.from_json(self.facts["tap"]).preprocess


def check_origin(text: str) -> None:
    """Raise early, before Keras starts, what `open_origin` would raise about a missing or damaged file or run."""
    if _is_file(text):
        read_facts(Path(text))
    else:
        open_trial(text)


def _is_file(text: str) -> bool:
    return Path(text).suffix == ".keras" or Path(text).is_file()


def open_origin(text: str, run: str | Path | None = None) -> Origin:
    """Return the model that MODEL.keras or RUN@best names.

    run: the run that MODEL.keras came from, if it is not beside the model.
    Raises NotAModel, NotARun, UnknownHead; UsageError if the model did not come from `run`.
    """
    path = Path(text)
    if _is_file(text):
        model, facts = load_model(path)
        return Origin(text, model, facts, _probe_of(path, facts, run))
    if run is not None:
        raise UsageError(f"`run` goes with a MODEL.keras; {text} names its run itself")
    probe = Probe.open(open_trial(text))
    model = checked_model(probe)
    facts = probe.facts | {"certificate": asdict(model.certificate)}
    return Origin(text, model, facts, probe)


def _probe_of(path: Path, facts: dict[str, Any], run: str | Path | None) -> Probe | None:
    """Return the trial that a model file came from, in `run` or in a run of the recorded name near the file."""
    if run is not None:
        probe = _probe_in(Run.open(run), facts)
        if probe is None:
            raise UsageError(f"{path} did not come from {run}, but from a run that was called {facts.get('run')}")
        return probe
    name = str(facts.get("run"))
    for folder in (path.parent / name, path.parent, Path(name)):
        if not (folder / "run.json").is_file():
            continue
        # A broken run of that name is not an error: the next folder may hold the right one.
        with suppress(DataError, UsageError):
            probe = _probe_in(Run.open(folder), facts)
            if probe is not None:
                return probe
    return None


def _probe_in(run: Run, facts: dict[str, Any]) -> Probe | None:
    """Return the trial of a run that the model started from. A run may have the name and other heads: None."""
    try:
        trial = "refit" if facts.get("refit") else facts["trial"]
        chosen = run[trial]
    except (UnknownHead, KeyError):
        return None
    probe = Probe.open(chosen)
    return probe if probe.digest == facts.get("start") else None
