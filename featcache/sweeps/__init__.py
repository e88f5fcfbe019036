"""Cache -> trials -> best: metrics, run folder, sweep."""

from featcache.sweeps.run import Chosen, Run, Settings, Trial, open_trial
from featcache.sweeps.trials import sweep

__all__ = ["Chosen", "Run", "Settings", "Trial", "open_trial", "sweep"]
