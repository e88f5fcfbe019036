"""featcache show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.errors import DataError
from featcache_cli.output import Json, emit, say

if TYPE_CHECKING:
    from featcache.sweeps import Run, Trial


def command(
    run: Annotated[str, typer.Argument(help="RUN, RUN@best or RUN@3.")],
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the score against each tap and each parameter instead of the table.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the table of trials of a run, or one trial.

    Example: featcache show photos.run@best
    """
    from featcache.reports.table import trials_table
    from featcache.reports.text import fields
    from featcache.sweeps.run import open_named

    opened, chosen = open_named(run)
    try:
        opened.cache()
    except DataError as error:  # its scores are shown all the same
        say(str(error))
    if plot and not json:
        from featcache.reports.plot import plots

        emit(json, {}, lambda: plots(opened))
    elif chosen:
        facts = of_trial(chosen.trial)
        emit(json, facts, lambda: fields(facts))
    else:
        emit(json, document(opened), lambda: trials_table(opened))


def document(run: Run) -> dict[str, Any]:
    """Return the trials of a run, best first, as they stand in JSON."""
    failed = [trial for trial in run.trials if trial.status != "ok"]
    return {"trials": [of_trial(trial) for trial in [*run.ranked, *failed]], "unjudged": list(run.unjudged)}


def of_trial(trial: Trial) -> dict[str, Any]:
    """Return one trial as it stands in JSON."""
    return {
        "trial": trial.trial,
        "tap": trial.tap,
        "width": trial.width,
        "head": trial.head,
        "params": trial.params,
        "status": trial.status,
        "score": trial.score,
        "interval": None if trial.interval is None else list(trial.interval),
        "std": trial.std,
        "scores": dict(trial.scores),
        "prepare": trial.prepare,
        "shots": None if trial.few is None else trial.few[0],
        "fit_s": trial.fit_s,
        "bytes": trial.size,
        "handoff": trial.handoff,
        "converged": trial.converged,
    }
