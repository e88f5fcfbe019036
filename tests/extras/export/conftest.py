"""A model that knows blue, green and red, beside a copy of its run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from featcache.models import handoff
from featcache.sweeps import Run


@pytest.fixture(scope="session")
def model(toy_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a model, beside its run. Do not change it."""
    folder = tmp_path_factory.mktemp("exporting")
    run = Run.open(shutil.copytree(toy_run.path, folder / toy_run.path.name))
    handoff(next(run[trial.trial] for trial in run.trials if trial.params == {"C": 1.0}), folder / "model.keras")
    return folder / "model.keras"
