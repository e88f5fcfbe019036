"""featcache sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.errors import UnknownHead, UsageError
from featcache.settings import SweepOptions
from featcache.trust import allow_flags
from featcache_cli.config import set_by_file, set_by_run
from featcache_cli.output import Allow, Json, Quiet, emit, in_shell, progress, say

if TYPE_CHECKING:
    from featcache.sweeps import Run


MANY = 8  # most values listed one by one


def command(
    *,
    ctx: typer.Context,
    cache: Annotated[Path | None, typer.Argument(help="A CACHE.h5 with labels.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run. [default: CACHE.run]")] = None,
    options: SweepOptions,
    allow: Allow = None,
    force: Annotated[
        bool, typer.Option("--force", help="With -o: replace an earlier run that has other settings.")
    ] = False,
    list_heads: Annotated[
        bool, typer.Option("--list-heads", help="Only list heads and presets, and what each tries.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit many heads on cached features and choose the best, on validation images, never on test.

    Stopped by Ctrl-C, it keeps what is done, and the same command goes on. --config also takes the run.json of a run.

    Example: featcache sweep photos.h5 --heads logreg,ridge,mlp:512
    """
    if list_heads:
        emit(json, choices(), choices_text)
        return
    from featcache.heads.estimators import check_heads_of_file
    from featcache.heads.grids import parse_grid
    from featcache.sweeps import sweep
    from featcache.sweeps.budget import parse_seconds
    from featcache.sweeps.tap_data import parse_bytes

    # Before anything names a head: the user's own classes are allowed from here on.
    trust.allow(*(allow or ()))
    before = set_by_run(ctx)
    if before and options.heads is not None and set_by_file(ctx, "heads"):
        # A TOML file is the user's own. A run.json comes with a run, which may be anyone's.
        try:
            check_heads_of_file([head.strip() for head in options.heads.split(",")])
        except UnknownHead as error:
            raise UnknownHead(f"--config {before[0]}: {error}") from error
    if cache is None:
        raise UsageError("Name a cache: featcache sweep CACHE.h5")
    settings = dict(vars(options))
    # A list of --config would be replaced by the flag's: look at both, so that a second preset is not ignored.
    presets = [*(options.preset or []), *(ctx.default_map or {}).get("preset", [])]
    if len(set(presets)) > 1:
        raise UsageError(f"--preset takes one protocol; got {', '.join(presets)}. Leave all but one out")
    settings["preset"] = presets[0] if presets else None
    parsers: dict[str, Callable[[Any], Any]] = {"budget": parse_seconds, "memory": parse_bytes, "grid": parse_grid}
    for name, parse in parsers.items():
        settings[name] = parse(settings[name]) if settings[name] else None
    with progress(quiet) as draw:
        run = sweep(cache, out=out, force=force, progress=draw, **settings)
    if before and before[1] != run.images_digest:
        say(f"{before[0]} was made from other images, labels or splits, so this is not the same sweep again")
    emit(json, document(run), lambda: text(run))


def document(run: Run) -> dict[str, Any]:
    """Return the run and its best trial as they stand in JSON."""
    best = run.best.trial
    return {
        "run": str(run.path),
        "trials": len(run.trials),
        "failed": sum(trial.failed for trial in run.trials),
        "dropped": sum(trial.dropped for trial in run.trials),
        "unjudged": list(run.unjudged),
        "seconds": run.seconds,
        "best": {
            "trial": best.trial,
            "tap": best.tap,
            "head": best.head,
            "params": best.params,
            "metric": run.settings.metric,
            "score": best.score,
            "interval": list(best.judged[1:]),
            "std": best.std,
            "prepare": best.prepare,
        },
    }


def text(run: Run) -> str:
    """Return the run as a person reads it."""
    from featcache.extras.report.table import trials_table

    trial_name = _next(run)
    trial = in_shell(f"{run.path}@{trial_name}")
    allowed = allow_flags(run[trial_name].own_code)
    lines = [
        trials_table(run, limit=20),
        f"Run: {run.path}",
        f"Next: featcache handoff {trial} -o model.keras{allowed}",
    ]
    return "\n".join(lines)


def _next(run: Run) -> str:
    """Return the trial to hand off: `refit` if there is one, else the best that has an exact form in Keras, if any."""
    if run.refitted is not None and run.best.trial.handoff:
        return "refit"
    if run.best.trial.handoff or not any(trial.handoff for trial in run.ranked):
        return "best"
    return str(run.best_handoff.trial.trial)


def choices() -> dict[str, Any]:
    """Return the heads with their own grids and the presets with what they set, as they stand in JSON."""
    from featcache.heads.estimators import DEFAULT_HEADS, FAMILIES, settings
    from featcache.sweeps.presets import PRESETS

    default = [head.partition(":")[0] for head in DEFAULT_HEADS.split(",")]
    heads = []
    for head in FAMILIES:
        candidates = [setting.params for setting in settings(head)]
        grid = {}
        for parameter in candidates[0]:
            grid[parameter] = [params[parameter] for params in candidates]
        heads.append({"head": head, "default": head in default, "grid": grid})
    presets = [{"preset": name, **asdict(preset)} for name, preset in PRESETS.items()]
    return {"heads": heads, "presets": presets}


def choices_text() -> str:
    """Return the heads and presets as a person reads them."""
    from featcache.text import table

    listed = choices()
    heads = []
    for head in listed["heads"]:
        heads.append([head["head"], "yes" if head["default"] else "no", _grid_text(head["grid"])])
    presets = []
    sources = []
    for preset in listed["presets"]:
        for head, grid in preset["grid"].items():
            presets.append([preset["preset"], head, _grid_text(grid), preset["prepare"], _besides_fitting(preset)])
        sources.append(f"{preset['preset']}: {preset['source']}")
    lines = [
        table(["head", "by default", "tries"], heads),
        "Other values: --grid HEAD.PARAMETER=VALUES",
        "",
        table(["preset", "head", "tries", "prepare", "and"], presets),
        *sources,
    ]
    return "\n".join(lines)


def _grid_text(grid: Mapping[str, Sequence[Any]]) -> str:
    """Return a grid as --grid takes it; of more than MANY values only the ends and the number."""
    from featcache.sweeps.trial import spelt

    parts = []
    for parameter, values in grid.items():
        texts = list(dict.fromkeys(map(spelt, values)))
        listed = ",".join(texts) if len(texts) <= MANY else f"{texts[0]}..{texts[-1]} ({len(texts)} values)"
        parts.append(f"{parameter}={listed}")
    return " ".join(parts) or "-"


def _besides_fitting(preset: Mapping[str, Any]) -> str:
    """Return what a preset does besides fitting."""
    parts = []
    if preset["refit"]:
        parts.append("--refit")
    if preset["join_last"]:
        parts.append(f"the last tap, and the last {preset['join_last']} joined")
    if preset["few"]:
        shots = dict.fromkeys(shots for shots, _ in preset["few"])
        num_seeds = len({seed for _, seed in preset["few"]})
        parts.append(f"{', '.join(map(str, shots))} per class, {num_seeds} draws")
    return "; ".join(parts) or "-"
