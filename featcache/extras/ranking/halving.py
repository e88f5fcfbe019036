"""`rank`: what users call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.backbones.parse import Request, backbones_in
from featcache.errors import UsageError
from featcache.extraction.api import begin_extraction
from featcache.extraction.extract_options import Options
from featcache.extras.ranking.contenders import Ranking
from featcache.extras.ranking.contest import Contest
from featcache.extras.ranking.rungs import rows_to_rank, rungs_of
from featcache.images.manifest import Images
from featcache.spec import Progress, silent
from featcache.sweeps.budget import parse_seconds


def rank(
    images: Images | str | Path,
    backbone: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    budget: float | str | None = None,
    tap: str | Sequence[str] = "top",
    weights: str | None = None,
    size: int | None = None,
    pool: str | None = None,
    resize: str = "stretch",
    decode: str = "exact",
    bits: int | None = None,
    precision: str = "float32",
    dtype: str = "float32",
    engine: str = "auto",
    device: str = "auto",
    batch: int | str = "auto",
    split: str | None = None,
    group_from: str | None = None,
    seed: int | None = None,
    allow_outside: bool = False,
    label_column: str | None = None,
    path_column: str | None = None,
    trust: bool = False,
    force: bool = False,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Ranking:
    """Return which backbone, and which tap, separates the classes of these images best, and at what cost.

    backbone: two or more names, as in `extract`; or one, with several layers in `tap`. A backbone whose weights are
    missing is left out, and the result says so. out: the cache that keeps all features that are computed.
    budget: seconds, or a text such as "5m", for everything but starting the backbones; without it, only what is surely
    behind is left out early.
    seed: of the split, and of which images come first. clock: returns seconds; what a test may replace.
    Other arguments are as in `extract`, which continues the cache if it gets the same.
    Raises UsageError for fewer than two taps, and for a budget that is too short for the first rung; TooFewClasses,
    WeightsMissing if fewer than two backbones have weights, and what `extract` raises.
    """
    began = clock()
    options = Options(
        backbone=backbone or "",
        tap=tap,
        weights=weights,
        size=size,
        pool=pool,
        resize=resize,
        decode=decode,
        bits=bits,
        precision=precision,
        dtype=dtype,
        engine=engine,
        device=device,
        batch=batch,
        split=split,
        group_from=group_from,
        seed=seed,
        allow_outside=allow_outside,
        label_column=label_column,
        path_column=path_column,
        trust=trust,
    )
    if precision == "int8":
        raise UsageError("`precision='int8'` does not rank: rank in float32, then extract with the winner in 8 bits")
    budget_s = _budget(budget)
    names = _names(options)
    extraction = begin_extraction(images, Path(out), options, force=force, progress=progress, clock=clock)
    extraction.images.require_classes()
    contest = Contest(extraction, names, budget_s, began, clock)
    contest.start()
    rows = rows_to_rank(extraction.images.rows, extraction.images.root)
    contest.climb(rungs_of(rows, extraction.images.split_spec.seed))
    return contest.result()


def _budget(budget: float | str | None) -> float | None:
    """Return the seconds of a budget; None without one. Raises UsageError."""
    seconds = parse_seconds(budget) if isinstance(budget, str) else budget
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"`budget` takes a time such as 60s, 5m or 1h; got {seconds:g} s")
    return seconds


def _names(options: Options) -> dict[Request, str]:
    """Return {request: the backbone as the user named it}. Raises UsageError if there is nothing to rank."""
    names: dict[Request, str] = {}
    for name in backbones_in(options.backbone):
        [request] = replace(options, backbone=[name]).requests()
        names.setdefault(request, name)
        if request.pooling == "none":
            raise UsageError("To rank takes vectors, and `pool='none'` keeps spatial maps. Use `pool='avg'`")
    if not names:
        raise UsageError("Name two or more backbones to rank, such as `backbone='mobilenet_v2,resnet50_v2'`")
    if len(names) == 1:
        [(request, name)] = names.items()
        if len(request.layers) == 1 and request.layers != ("auto",):
            raise UsageError(
                f"There is nothing to rank: `backbone` names only '{name}'. Name two or more, comma between them, or "
                "rank its layers: `tap='auto'`"
            )
    return names
