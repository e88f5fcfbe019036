"""featcache sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, progress

if TYPE_CHECKING:
    from featcache.sweeps import Run


def command(
    cache: Annotated[Path | None, typer.Argument(help="A CACHE.h5 with labels.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run. [default: CACHE.run]")] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads",
            help="Of ridge, logreg, svm, softmax, knn, mlp, mlp:WIDTH, mlp:1024-512; each is a grid. [default: all]",
        ),
    ] = None,
    tap: Annotated[
        str | None, typer.Option("--tap", help="Taps of the cache, comma between them. [default: all]")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", help="Other values to try: ridge.alpha=1e-6..1e5:45, logreg.C=0.1,1; once for each."),
    ] = None,
    cv: Annotated[int | None, typer.Option("--cv", help="Choose by so many folds within train, not on val.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="accuracy, balanced_accuracy or macro_f1.")] = None,
    class_weight: Annotated[
        str | None, typer.Option("--class-weight", help="balanced: rare classes weigh as much.")
    ] = None,
    shots: Annotated[int | None, typer.Option("--shots", help="At most so many images per class.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Trials at once; -1: one per core.")] = -1,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of folds and initial weights.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings from a TOML file or a run.json; flags win.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit many heads on cached features and choose the best, on validation images, never on test.

    Example: featcache sweep photos.h5 --heads logreg,ridge,mlp:512
    """
    from featcache.errors import UsageError
    from featcache.heads.grids import parse_grid
    from featcache.sweeps import sweep
    from featcache_cli.config import read_settings

    flags = {
        "cache": str(cache) if cache else None,
        "heads": heads,
        "taps": tap,
        "cv": cv,
        "metric": metric,
        "class_weight": class_weight,
        "shots": shots,
        "seed": seed,
        "grid": parse_grid(grid) if grid else None,
    }
    asked = read_settings(config) | {name: value for name, value in flags.items() if value is not None}
    if "cache" not in asked:
        raise UsageError("Name a cache: featcache sweep CACHE.h5")
    with progress(quiet) as draw:
        run = sweep(**asked, out=out, jobs=jobs, progress=draw)
    emit(json, document(run), lambda: text(run))


def document(run: Run) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    best = run.best.trial
    return {
        "run": str(run.path),
        "trials": len(run.trials),
        "failed": sum(trial.status != "ok" for trial in run.trials),
        "seconds": run.seconds,
        "best": {
            "trial": best.trial,
            "tap": best.tap,
            "head": best.head,
            "params": best.params,
            "metric": run.settings.metric,
            "score": best.score,
            "interval": list(best.interval),
        },
    }


def text(run: Run) -> str:
    """Return the result as a person reads it."""
    from featcache.reports.table import trials_table

    return "\n".join(
        [
            trials_table(run, limit=20),
            f"Run: {run.path}",
            f"Next: featcache handoff {run.path}@{_next(run)} -o model.keras",
        ]
    )


def _next(run: Run) -> str:
    """Return the trial to hand off: the best, unless it has no form in Keras."""
    if run.best.trial.handoff or not any(trial.handoff for trial in run.ranked):
        return "best"
    return str(run.best_handoff.trial.trial)
