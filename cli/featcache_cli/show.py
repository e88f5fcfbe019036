"""featcache show."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.errors import UsageError
from featcache_cli.output import Json, cache_or_remark, emit, shape_text

if TYPE_CHECKING:
    from featcache.models.summary import LayerSummary, ModelSummary
    from featcache.sweeps import Run, Trial

MODELS = (".keras", ".h5", ".hdf5")


def command(
    run: Annotated[str, typer.Argument(help="RUN, RUN@best or RUN@3; or a model: MODEL.keras.")],
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the score against each tap and each parameter instead of the table.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the table of trials of a run, or one trial; of a model its layers, shapes, parameters and what trains.

    Example: featcache show photos.run@best
    """
    if Path(run).suffix.lower() in MODELS and not Path(run).is_dir():
        from featcache.models.summary import summarize

        if plot:
            raise UsageError(f"--plot draws the scores of a run; {run} is a model. Leave it out")
        model = summarize(run)
        emit(json, asdict(model), lambda: _model_text(model))
        return
    from featcache.extras.report.table import trials_table
    from featcache.sweeps.run import open_named
    from featcache.sweeps.trial import trial_fields
    from featcache.text import fields

    opened, chosen = open_named(run)
    cache_or_remark(opened)
    if plot and not json:
        from featcache.extras.report.plot import plots

        emit(json, {}, lambda: plots(opened))
    elif chosen:
        emit(json, of_trial(chosen.trial), lambda: fields(trial_fields(chosen.trial)))
    else:
        emit(json, document(opened), lambda: trials_table(opened))


def _model_text(model: ModelSummary) -> str:
    """Return a model as a person reads it, one line per layer; the layers of a nested model are indented."""
    from featcache.text import counted, printable, table

    rows = []
    for layer in model.layers:
        name = ". " * layer.depth + layer.name
        shape = "several" if layer.shape is None else shape_text(layer.shape)
        rows.append([name, layer.kind, shape, f"{layer.parameters:,}", _trains(layer)])
    lines = [table(["layer", "kind", "gives", "parameters", "trains"], rows)]
    lines.append(f"{model.parameters:,} parameters, of which {model.trainable:,} train.")
    if model.classes:
        lines.append(f"{counted(len(model.classes), 'class')}: {', '.join(map(printable, model.classes))}")
    return "\n".join(lines)


def _trains(layer: LayerSummary) -> str:
    if not layer.parameters:
        return ""
    if 0 < layer.trainable < layer.parameters:
        return f"{layer.trainable:,}"
    return "yes" if layer.trainable else "no"


def document(run: Run) -> dict[str, Any]:
    """Return the trials of a run, best first, as they stand in JSON."""
    failed = [trial for trial in run.trials if trial.status != "ok"]
    trials = [of_trial(trial) for trial in (*run.ranked, *failed)]
    return {"trials": trials, "unjudged": list(run.unjudged)}


def of_trial(trial: Trial) -> dict[str, Any]:
    """Return one trial as it stands in JSON."""
    interval = None if trial.interval is None else list(trial.interval)
    shots = None if trial.few is None else trial.few[0]
    return {
        "trial": trial.trial,
        "tap": trial.tap,
        "width": trial.width,
        "head": trial.head,
        "params": trial.params,
        "status": trial.status,
        "score": trial.score,
        "interval": interval,
        "std": trial.std,
        "scores": dict(trial.scores),
        "temperature": trial.temperature,
        "prepare": trial.prepare,
        "shots": shots,
        "fit_s": trial.fit_s,
        "bytes": trial.size,
        "handoff": trial.handoff,
        "converged": trial.converged,
    }
