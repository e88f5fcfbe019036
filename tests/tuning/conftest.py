"""One trial of the toy run to tune, and a toy run whose head has room to improve."""

from __future__ import annotations

import shutil

import pytest

from featcache.sweeps import Chosen, Run


@pytest.fixture(scope="session")
def tuned_run(toy_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a copy of the toy run: fine-tuning writes into its run."""
    return Run.open(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("tuned") / "run"))


@pytest.fixture(scope="session")
def perfect(tuned_run: Run) -> Chosen:
    """Return a head that makes no mistake on validation: nothing can be better, much can be worse."""
    found = next(tuned_run[trial.trial] for trial in tuned_run.trials if trial.params == {"C": 0.01})
    assert found.trial.score == 1
    return found


@pytest.fixture(scope="session")
def weak(tuned_run: Run) -> Chosen:
    """Return a head with room to improve."""
    found = next(tuned_run[trial.trial] for trial in tuned_run.trials if trial.params == {"C": 1e-4})
    assert found.trial.score < 1
    return found
