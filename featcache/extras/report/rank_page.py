"""One HTML file with a ranking: accuracy against the time of the backbones, and the table. It runs no script."""

from __future__ import annotations

from pathlib import Path

from featcache.extras.ranking import Ranking
from featcache.extras.report.plots import Curve, points
from featcache.extras.report.templates import has_mark, page_text, templates
from featcache.files import write_whole
from featcache.outputs import Kind, check_output
from featcache.text import printable

MARK = b'<meta name="generator" content="featcache rank">'
RANK_PAGE = Kind("page of featcache rank", lambda path: has_mark(path, MARK))


def check_rank_page(images: str | Path, cache: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Raise early what `write_rank_page` would raise: UsageError, DiskFault."""
    check_output(Path(out), RANK_PAGE, inputs=[Path(images), Path(cache)], force=force)


def write_rank_page(ranking: Ranking, images: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Write the page. images: what was ranked, which the page must not replace. Raises UsageError, DiskFault."""
    context = {
        "name": printable(Path(images).resolve().name),
        "ranking": ranking,
        "contenders": [(printable(contender.tap or contender.backbone), contender) for contender in ranking.contenders],
        "remarks": [printable(remark).replace("`", "") for remark in ranking.remarks],  # names of arguments
        "plot": _plot(ranking),
        "style": page_text("page.css"),
    }
    page = templates().get_template("rank.html").render(context)
    # Now, and not only before the ranking: that takes minutes, and another file may lie there by now.
    check_rank_page(images, ranking.cache, out, force=force)
    write_whole(Path(out), page.encode("utf-8", "replace"))


def _plot(ranking: Ranking) -> str:
    """Return a plot of score against seconds as SVG; "" if no backbone was timed."""
    lines: list[Curve] = []
    for contender in ranking.contenders:
        if contender.score is None or contender.seconds_per_1000 is None:
            continue
        value, low, high = contender.score
        name = f"{printable(contender.tap)} ({contender.verdict}, {contender.images} images)"
        lines.append(Curve(name, [contender.seconds_per_1000], [value], [low], [high]))
    if not lines:
        return ""
    about = "Accuracy against the time of each backbone, with 95 % intervals"
    return points(lines, "seconds per 1,000 images", "accuracy, each image left out once", about=about)
