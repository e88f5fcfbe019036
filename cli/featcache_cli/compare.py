"""featcache compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache_cli.handoff import Moved
from featcache_cli.output import Allow, Json, Quiet, emit, open_trial, progress

if TYPE_CHECKING:
    from featcache.sweeps import Comparison


def command(
    a: Annotated[str, typer.Argument(help="RUN@1")],
    b: Annotated[
        str,
        typer.Argument(help="RUN@2, of this run or of another on the same images, or MODEL.keras that came from it."),
    ],
    metric: Annotated[str | None, typer.Option("--metric", help="[default: that of the first run]")] = None,
    images: Moved = None,
    allow: Allow = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two trials, or a trial and a model, on the same images: is one better, or is it chance?

    A model is compared on the validation images, and --images says where these lie now.

    Example: featcache compare photos.run@1 photos.run@2
    """
    from featcache.sweeps import compare

    trust.allow(*(allow or ()))
    first = open_trial(a)
    if b.endswith(".keras"):
        from featcache.extras.report.tuned_models import model_on_val

        with progress(quiet) as draw:
            found = compare(first, model_on_val(first.run, Path(b), images, draw), metric)
    else:
        found = compare(first, open_trial(b), metric)
    emit(json, document(found), lambda: text(found))


def document(found: Comparison) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "a": found.a,
        "b": found.b,
        "metric": found.metric,
        "scores": list(found.scores),
        "difference": found.difference,
        "interval": list(found.interval),
        "p_value": found.p_value,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "images": found.images,
        "verdict": found.verdict,
    }


def text(found: Comparison) -> str:
    """Return the result as a person reads it."""
    low, high = found.interval
    return "\n".join(
        [
            f"{found.a}  {found.metric} {found.scores[0]:.4f}",
            f"{found.b}  {found.metric} {found.scores[1]:.4f}",
            f"difference {found.difference:+.4f} [{low:+.4f}, {high:+.4f}] over {found.images} images, by bootstrap",
            f"only the first is right of {found.only_a}, only the second of {found.only_b}: "
            f"McNemar's exact p = {found.p_value:.3g}",
            found.verdict,
        ]
    )
