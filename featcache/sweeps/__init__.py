"""Cache -> trials -> best: metrics, run folder, sweep, comparison of trials, advice."""

from featcache.sweeps.advising import Advice, advise
from featcache.sweeps.comparing import Comparison, compare
from featcache.sweeps.run import Chosen, Run, Settings, Trial, open_trial
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
