"""featcache compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from featcache import trust
from featcache.settings import Metric
from featcache_cli import complete
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
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="[default: the metric of the first run]",
            autocompletion=complete.words(*get_args(Metric)),
        ),
    ] = None,
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
            second = model_on_val(first.run, Path(b), images, draw)
            comparison = compare(first, second, metric)
    else:
        comparison = compare(first, open_trial(b), metric)
    emit(json, document(comparison), lambda: text(comparison))


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as it stands in JSON."""
    return {
        "a": comparison.a,
        "b": comparison.b,
        "metric": comparison.metric,
        "scores": list(comparison.scores),
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "p_value": comparison.p_value,
        "only_a": comparison.only_a,
        "only_b": comparison.only_b,
        "images": comparison.images,
        "verdict": comparison.verdict,
    }


def text(comparison: Comparison) -> str:
    """Return the comparison as a person reads it."""
    from featcache.text import table

    return "\n".join([table(*comparison.rows), *comparison.sentences])
