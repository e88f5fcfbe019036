"""One trial of the toy run to tune, and a toy run whose head has room to improve."""

from __future__ import annotations

import pytest

from featcache.sweeps import Chosen, Run


@pytest.fixture(scope="session")
def perfect(toy_run: Run) -> Chosen:
    """Return a head that makes no mistake on validation: nothing can be better, much can be worse."""
    found = next(toy_run[trial.trial] for trial in toy_run.trials if trial.params == {"C": 0.01})
    assert found.trial.score == 1
    return found


@pytest.fixture(scope="session")
def weak(toy_run: Run) -> Chosen:
    """Return a head with room to improve."""
    found = next(toy_run[trial.trial] for trial in toy_run.trials if trial.params == {"C": 1e-4})
    assert found.trial.score < 1
    return found
