"""featcache rank."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.settings import ExtractOptions, RankOptions, as_flags
from featcache_cli.output import Force, Json, Quiet, emit, in_shell, path_document, progress, remarks_in_flags, say
from featcache_cli.scan import Where, cache_name

if TYPE_CHECKING:
    from featcache.extras.ranking import Contender, Ranking


def command(
    images: Where,
    options: RankOptions,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The cache that keeps the features. [default: photos.h5 for photos/]"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one HTML file that shows score against cost.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find out which backbone suits these images, without extracting with all of them.

    Example: featcache rank photos/ -b mobilenet_v2,resnet50_v2 --budget 5m
    """
    from featcache.extras.ranking import rank

    out = out or Path(cache_name(images))
    if html is not None:
        from featcache.extras.report.rank_page import check_rank_page

        check_rank_page(images, out, html, force=force)
    with progress(quiet) as draw:
        ranking = rank(images, out=out, force=force, progress=draw, **vars(options))
    if html is not None:
        from featcache.extras.report.rank_page import write_rank_page

        write_rank_page(ranking, images, html, force=force)
    for remark in remarks_in_flags(ranking.remarks):
        say(f"{remark}.")
    next_command = _next_command(images, options, ranking)
    facts = ranking.to_json() | {"remarks": remarks_in_flags(ranking.remarks), "html": path_document(html)}
    emit(json, facts | {"next": next_command}, lambda: text(ranking, next_command, html))


def text(ranking: Ranking, next_command: str, html: Path | None) -> str:
    """Return the result as a person reads it."""
    from featcache.text import counted, interval, printable, table

    header = ["tap", "verdict", "difference [99 %]", "accuracy [95 %]", "images", "s/1000", "MB/1000", "start s"]
    rows: list[list[object]] = []
    for contender in ranking.contenders:
        score = "-" if contender.score is None else interval(*contender.score)
        seconds = "-" if contender.seconds_per_1000 is None else f"{contender.seconds_per_1000:.1f}"
        megabytes = "-" if contender.mb_per_1000 is None else f"{contender.mb_per_1000:.2f}"
        name = contender.tap or contender.backbone
        start = f"{contender.start_s:.1f}"
        verdict, difference = contender.verdict, _difference(contender)
        rows.append([name, verdict, difference, score, contender.images, seconds, megabytes, start])

    images = f"{counted(ranking.images, 'image')} of {counted(ranking.classes, 'class')}"
    lines = [
        f"{images}. Accuracy of ridge on training images, each left out once:",
        "",
        table(header, rows, spare=["start s", "difference [99 %]"]),
        "",
    ]
    if ranking.estimate is not None:
        lines.append(
            f"Estimate: {interval(*ranking.estimate)} for {printable(ranking.winner.tap)}, on "
            f"{counted(ranking.judging_images, 'validation image')}, which chose nothing; fitted on "
            f"{counted(ranking.winner.images, 'image')}."
        )
    if ranking.ties:
        lines.append(_on_ties(ranking))
    lines.append(f"{_cost(ranking)} Features are kept in {printable(ranking.cache)}.")
    if html is not None:
        lines.append(f"To look at: {printable(str(html))}")
    lines.append(f"Next: {next_command}")
    return "\n".join(lines)


def _difference(contender: Contender) -> str:
    """Return the interval of the difference from the leader; a dash for the leader itself."""
    if contender.difference is None or contender.verdict == "winner":
        return "-"
    low, high = contender.difference
    return f"{low:+.3f} to {high:+.3f}"


def _on_ties(ranking: Ranking) -> str:
    """Return a sentence on the taps that cannot be told from the winner, with the cheapest of all of them."""
    from featcache.text import counted, printable

    text = f"{counted(len(ranking.ties), 'tap')} cannot be told from the winner on these images."
    timed = [contender for contender in (ranking.winner, *ranking.ties) if contender.seconds_per_1000 is not None]
    if not timed:
        return text
    cheapest = min(timed, key=lambda contender: contender.seconds_per_1000 or 0.0)
    if cheapest is ranking.winner:
        return f"{text} The winner is also the fastest of them."
    return f"{text} The fastest of them is {printable(cheapest.tap)}."


def _cost(ranking: Ranking) -> str:
    start_of = {contender.backbone: contender.start_s for contender in ranking.contenders}
    starting_s = sum(start_of.values())
    text = f"{ranking.seconds:.0f} s, of which {starting_s:.0f} s to start the backbones"
    if ranking.share is None:
        return f"{text}."
    return f"{text}; {ranking.share:.0%} of the time that all images through all backbones would take."


def _next_command(images: Path, options: RankOptions, ranking: Ranking) -> str:
    """Return the extraction of the winner with the same options, which computes only what is missing."""
    names = {field.name for field in fields(ExtractOptions)}
    values = {name: value for name, value in vars(options).items() if name in names}
    values |= {"backbone": ranking.winner.backbone, "tap": ranking.winner.layer}
    words = ["featcache", "extract", images, "-o", ranking.cache, *as_flags(ExtractOptions, values)]
    return " ".join(map(in_shell, words))
