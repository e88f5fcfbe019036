"""Cache -> trials -> best: metrics, run folder, sweep, comparison of trials, advice."""

from featcache.sweeps.advising import Advice, advise
from featcache.sweeps.chosen import Chosen
from featcache.sweeps.comparing import Comparison, compare
from featcache.sweeps.run import Run, Settings, open_trial
from featcache.sweeps.trial import Trial
from featcache.sweeps.trials import sweep

__all__ = [
    "Advice",
    "Chosen",
    "Comparison",
    "Run",
    "Settings",
    "Trial",
    "advise",
    "compare",
    "open_trial",
    "sweep",
]
