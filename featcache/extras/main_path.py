"""The main path in one folder: extract a tap once, sweep heads on it, hand a head off, fine-tune it.

`quickstart` and the recipes take this path. Each step takes the options of the function of its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.extraction import Extracted, extract
from featcache.extraction.api import CACHE
from featcache.images.manifest import Images
from featcache.models import handoff
from featcache.models.modelfile import MODEL
from featcache.outputs import check_output
from featcache.spec import Progress, canonical_json, silent
from featcache.sweeps import Chosen, Run, sweep
from featcache.tuning import Tuned, finetune
from featcache.tuning.state import STATE, state_file

FEATURES = "features.h5"


@dataclass
class MainPath:
    """The images, the folder of all files, and what has been extracted so far."""

    folder: Path
    images: Images
    force: bool = False  # replace a file that is no cache of features
    progress: Progress = silent
    extractions: dict[str, Extracted] = field(default_factory=dict, init=False)  # by their options as JSON

    @property
    def cache(self) -> Path:
        """Return the file with all features."""
        return self.folder / FEATURES

    def extract(self, **options: Any) -> Extracted:
        """Extract with these options, unless that was done before; return what was done then."""
        name = canonical_json(options)
        if name not in self.extractions:
            cache = extract(self.images, out=self.cache, force=self.force, progress=self.progress, **options)
            self.extractions[name] = cache.report
        return self.extractions[name]

    def sweep(self, extracted: Extracted, out: Path, **options: Any) -> Run:
        """Fit heads on the first tap of an extraction."""
        return sweep(self.cache, taps=[extracted.taps[0].tap], out=out, progress=self.progress, **options)

    def handoff(self, head: Chosen, name: str) -> Any:
        """Write the model of a head; `check_folder` said that it may replace the file."""
        return handoff(head, self.folder / name, force=True)

    def finetune(self, head: Chosen, name: str, **options: Any) -> Tuned:
        """Fine-tune from a head; `check_folder` said that the model may replace the file."""
        return finetune(head, self.folder / name, force=True, progress=self.progress, **options)


def check_folder(
    folder: Path, models: Iterable[str], *, controls: Iterable[str] = (), inputs: Iterable[Path] = (), force: bool
) -> None:
    """Raise UsageError or DiskFault unless the main path may write its files, before anything is computed.

    models: names of the fine-tuned models. controls: what is trained beside them. inputs: what the path reads.
    """
    inputs = list(inputs)
    check_output(folder / FEATURES, CACHE, inputs=inputs, force=force)
    for name in models:
        check_output(folder / name, MODEL, inputs=inputs, force=force)
        for control in ("", *controls):
            check_output(state_file(folder / name, control), STATE, inputs=inputs, force=force)
