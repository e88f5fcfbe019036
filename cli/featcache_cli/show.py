"""featcache show."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featcache_cli.output import Json, emit


def command(run: Annotated[str, typer.Argument(help="RUN, RUN@best or RUN@3.")], json: Json = False) -> None:
    """Show the table of trials of a run, or one trial.

    Example: featcache show photos.run@best
    """
    from featcache.reports.table import trials_table
    from featcache.sweeps import Run, Trial, open_trial

    def document(trial: Trial) -> dict[str, Any]:
        return {
            "trial": trial.trial,
            "tap": trial.tap,
            "width": trial.width,
            "head": trial.head,
            "params": trial.params,
            "status": trial.status,
            "score": trial.score,
            "interval": list(trial.interval),
            "fit_s": trial.fit_s,
            "handoff": trial.handoff,
            "converged": trial.converged,
        }

    if "@" in run:
        facts = document(open_trial(run).trial)
        emit(json, facts, lambda: "\n".join(f"{key:10} {value}" for key, value in facts.items()))
    else:
        opened = Run.open(run)
        trials = opened.ranked + [trial for trial in opened.trials if trial.status != "ok"]
        emit(json, {"trials": [document(trial) for trial in trials]}, lambda: trials_table(opened))
