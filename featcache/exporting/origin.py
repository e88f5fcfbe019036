"""What is exported: a MODEL.keras or a trial of a run, and the run that has the images to check it with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.assembly import Start, handoff, load_model
from featcache.backbones.lineage import UNRECORDED, Lineages, lineages_in
from featcache.errors import DataError, UnknownHead, UsageError
from featcache.spec import Preprocess, Tap
from featcache.sweeps import Chosen, Run, open_trial


@dataclass(frozen=True)
class Origin:
    """A model with what is known of it."""

    name: str  # as the user gave it
    model: Any  # keras.Model: uint8 images of any size -> probabilities
    facts: dict[str, Any]
    chosen: Chosen | None  # the trial that it came from, if its run was found

    @property
    def classes(self) -> list[str]:
        """Return the names of its classes."""
        return list(self.facts["classes"])

    @property
    def lineages(self) -> Lineages:
        """Return which images made it."""
        if self.chosen is not None and not Path(self.name).is_file():
            return Start(self.chosen).lineages()
        return lineages_in(Path(self.name)) or UNRECORDED

    @property
    def preprocess(self) -> Preprocess:
        """Return how images are made ready for it."""
        return Tap.from_json(self.facts["tap"]).preprocess


def open_origin(text: str, run: str | Path | None = None) -> Origin:
    """Return the model that MODEL.keras or RUN@best names. run: where the run is, if not beside the model.

    Raises NotAModel, NotARun, UnknownHead, UsageError if the model did not come from the run that is given.
    """
    path = Path(text)
    if path.suffix == ".keras" or path.is_file():
        model, facts = load_model(path)
        return Origin(text, model, facts, _chosen(path, facts, run))
    if run is not None:
        raise UsageError(f"--run goes with a MODEL.keras; {text} names its run itself")
    chosen = open_trial(text)
    model = handoff(chosen)
    return Origin(text, model, Start(chosen).facts | {"certificate": asdict(model.certificate)}, chosen)


def _chosen(path: Path, facts: dict[str, Any], given: str | Path | None) -> Chosen | None:
    """Return the trial a model came from: of the run that is given, or of that of its name around it or here."""
    if given is not None:
        found = _matching(Run.open(given), facts)
        if found is None:
            raise UsageError(f"{path} did not come from {given}, but from a run that was called {facts.get('run')}")
        return found
    name = str(facts.get("run"))
    for place in (path.parent / name, path.parent, Path(name)):
        if (place / "run.json").is_file():
            with suppress(DataError, UsageError):
                if found := _matching(Run.open(place), facts):
                    return found
    return None


def _matching(run: Run, facts: dict[str, Any]) -> Chosen | None:
    """Return the trial, if it is what the model started from."""
    try:
        chosen = run["refit" if facts.get("refit") else facts["trial"]]
    except (UnknownHead, KeyError):
        return None
    return chosen if Start(chosen).digest == facts.get("start") else None
