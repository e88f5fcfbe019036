"""featcache sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.errors import UnknownHead, UsageError
from featcache.settings import SweepOptions
from featcache_cli.config import set_by_file, set_by_run
from featcache_cli.output import Allow, Json, Quiet, allow_flags, emit, in_shell, progress, say

if TYPE_CHECKING:
    from featcache.sweeps import Run


MANY = 8  # values that are listed one by one


def command(
    *,
    ctx: typer.Context,
    cache: Annotated[Path | None, typer.Argument(help="A CACHE.h5 with labels.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run. [default: CACHE.run]")] = None,
    options: SweepOptions,
    allow: Allow = None,
    force: Annotated[
        bool, typer.Option("--force", help="With -o: replace a run that is there already, if it was asked otherwise.")
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

    trust.allow(*(allow or ()))
    before = set_by_run(ctx)
    if before and options.heads is not None and set_by_file(ctx, "heads"):
        # a TOML file is the user's own, a run.json comes with a run, which may be anyone's
        try:
            check_heads_of_file([head.strip() for head in options.heads.split(",")])
        except UnknownHead as error:
            raise UnknownHead(f"--config {before[0]}: {error}") from error
    if cache is None:
        raise UsageError("Name a cache: featcache sweep CACHE.h5")
    settings = vars(options) | {
        "preset": _one_preset([*(options.preset or []), *(ctx.default_map or {}).get("preset", [])]),
        "budget": parse_seconds(options.budget) if options.budget else None,
        "memory": parse_bytes(options.memory) if options.memory else None,
        "grid": parse_grid(options.grid) if options.grid else None,
    }
    with progress(quiet) as draw:
        run = sweep(cache, out=out, force=force, progress=draw, **settings)
    if before and before[1] != run.images_digest:
        say(f"{before[0]} was made from other images, labels or splits, so this is not the same sweep again")
    emit(json, document(run), lambda: text(run))


def _one_preset(named: Sequence[str]) -> str | None:
    """Return the preset that is named, if one is. Raises UsageError for several."""
    if len(set(named)) > 1:
        raise UsageError(f"--preset takes one protocol; got {', '.join(named)}. Leave all but one out")
    return named[0] if named else None


def document(run: Run) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
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
    """Return the result as a person reads it."""
    from featcache.extras.report.table import trials_table

    which = _next(run)
    trial = in_shell(f"{run.path}@{which}")
    return "\n".join(
        [
            trials_table(run, limit=20),
            f"Run: {run.path}",
            f"Next: featcache handoff {trial} -o model.keras{allow_flags(run[which].own_code)}",
        ]
    )


def _next(run: Run) -> str:
    """Return the trial to hand off: the best, fitted on all images if it was, unless it has no form in Keras."""
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
    grids = {name: [one.params for one in settings(name)] for name in FAMILIES}
    return {
        "heads": [
            {"head": head, "default": head in default, "grid": {name: [one[name] for one in grid] for name in grid[0]}}
            for head, grid in grids.items()
        ],
        "presets": [{"preset": name, **asdict(preset)} for name, preset in PRESETS.items()],
    }


def choices_text() -> str:
    """Return the same as a person reads it."""
    from featcache.text import table

    found = choices()
    heads = [(one["head"], "yes" if one["default"] else "no", _tries(one["grid"])) for one in found["heads"]]
    presets = [
        (one["preset"], head, _tries(grid), one["prepare"], _else(one))
        for one in found["presets"]
        for head, grid in one["grid"].items()
    ]
    sources = [f"{one['preset']}: {one['source']}" for one in found["presets"]]
    return "\n".join(
        [
            table(["head", "by default", "tries"], heads),
            "Other values: --grid HEAD.PARAMETER=VALUES",
            "",
            table(["preset", "head", "tries", "prepare", "and"], presets),
            *sources,
        ]
    )


def _tries(grid: Mapping[str, Sequence[Any]]) -> str:
    """Return the values of parameters as --grid takes them, of many the ends."""
    from featcache.sweeps.trial import spelt

    def some(values: Sequence[Any]) -> str:
        texts = list(dict.fromkeys(map(spelt, values)))
        return ",".join(texts) if len(texts) <= MANY else f"{texts[0]}..{texts[-1]} ({len(texts)} values)"

    return " ".join(f"{name}={some(values)}" for name, values in grid.items()) or "-"


def _else(preset: Mapping[str, Any]) -> str:
    """Return what a preset does beside fitting."""
    shots, seeds = ({one[at]: None for one in preset["few"]} for at in (0, 1))
    said = ["--refit"] if preset["refit"] else []
    said += [f"the last tap, and the last {preset['join_last']} joined"] if preset["join_last"] else []
    said += [f"{', '.join(map(str, shots))} per class, {len(seeds)} draws"] if shots else []
    return "; ".join(said) or "-"
