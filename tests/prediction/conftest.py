"""A model that knows blue, green and red."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.models import handoff
from featcache.sweeps import Run


@pytest.fixture(scope="session")
def model(toy_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a model that knows blue, green and red. Do not change it."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    handoff(next(toy_run[trial.trial] for trial in toy_run.trials if trial.params == {"C": 1.0}), path)
    return path
