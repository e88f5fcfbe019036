"""featcache leaks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from featcache.settings import LeaksOptions
from featcache_cli import review
from featcache_cli.output import Json, Quiet, emit, in_shell, progress

if TYPE_CHECKING:
    from featcache.extras.leaks import Doubts, Fixed, Leaks

CONTAMINATED = 3
LISTED = 20


def command(
    cache: Annotated[Path, typer.Argument(help="A CACHE.h5.")],
    options: LeaksOptions,
    repair: Annotated[
        bool,
        typer.Option("--fix", help="Put images that show the same, and each group, into one split, in the cache."),
    ] = False,
    fix_to: Annotated[
        Path | None, typer.Option("--fix-to", help="Write that to a CSV (path, label, split, group), not to the cache.")
    ] = None,
    unfix: Annotated[bool, typer.Option("--unfix", help="Take back all that --fix did to the cache.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Also list labels that look wrong.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="With --labels: write all to a CSV; fill its column decision.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="With --labels: write a page to decide by eye, which saves that CSV.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Give the cache the labels that a reviewed CSV decides.")
    ] = None,
    unapply: Annotated[
        bool,
        typer.Option("--unapply", help="Take back all decisions of --apply: folders or table give the labels again."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --fix-to, --csv, --html: replace a file that is there.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find images that show the same within and across splits: copies, re-encoded, resized, turned, near duplicates.

    Exit code 3 if test (or val, where there is no test) shares images or groups with another split, and --fix is not
    given. With --apply, --unapply or --unfix nothing is compared.

    Example: featcache leaks photos.h5
    """
    from featcache.cache.reader import Cache
    from featcache.extras.leaks import check_table, doubts, fix, leaks, write_table
    from featcache.extras.report.commands import flags_of

    if apply is not None or unapply or unfix:
        others = {"--fix": repair, "--fix-to": fix_to, "--csv": csv, "--html": html, "--force": force}
        others |= {"--tap": options.tap is not None, "--images": options.images}
        review.check_alone(others | {"--threshold": options.threshold != LeaksOptions.threshold})
        review.change(cache, apply, unapply, unfix, json, quiet)
        return
    images = options.images
    review.check_files(cache, labels, csv, html, images, force)
    if fix_to is not None:
        check_table(cache, fix_to, images, force=force)
    files = review.Files(cache, csv, html)
    stays = True
    with progress(quiet) as draw:
        found = leaks(cache, progress=draw, **vars(options))
        doubted = doubts(found, tap=options.tap, progress=draw) if labels else None
        if doubted is not None:
            review.write_files(doubted, files, images, force, draw)
        if fix_to is not None:
            stays = write_table(found, fix_to, images, force=force)
        fixed = fix(found, progress=draw) if repair else None
    table = None if fix_to is None else _Table(fix_to, stays, flags_of([Cache.open(found.cache).taps[found.tap]]))
    emit(json, document(found, doubted, fixed, table, files), lambda: text(found, doubted, fixed, table, files))
    if found.contaminated and fixed is None:
        raise typer.Exit(CONTAMINATED)


class _Table(NamedTuple):
    """A table that was written."""

    path: Path
    stays: bool  # its images lie in its own folder
    flags: str  # of the extraction whose features were compared

    @property
    def command(self) -> str:
        """Return what extracts from it."""
        outside = "" if self.stays else " --allow-outside"
        out = quote(str(self.path.with_suffix(".h5")))
        return f"featcache extract {quote(str(self.path))}{outside} {self.flags} -o {out}"


def document(
    found: Leaks, doubted: Doubts | None, fixed: Fixed | None, table: _Table | None, files: review.Files
) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    pairs = [{**asdict(pair), "splits": [*pair.splits]} for pair in found.pairs]
    counts = [{"splits": [*splits], **kinds} for splits, kinds in found.counts.items()]
    facts: dict[str, Any] = {
        "cache": str(found.cache),
        "tap": found.tap,
        "images": found.images,
        "pairs": pairs,
        "contaminated": found.contaminated,
        "guarded": found.guarded,
        "crossing_groups": {group: dict(splits) for group, splits in found.crossing_groups.items()},
        "counts": counts,
        "thresholds": asdict(found.thresholds),
        "features_only": found.unseen,
        "notes": [*found.notes],
        "seconds": dict(found.seconds),
    }
    if doubted is not None:
        facts["labels"] = [asdict(one) for one in doubted.doubts]
        facts["labels_judged"] = {
            name: getattr(doubted, name) for name in ("images", "unjudged", "reviewed", "accuracy", "tap", "seconds")
        }
        facts["labels_files"] = files.to_json()
    if fixed is not None:
        facts["fixed"] = {**asdict(fixed), "cache": str(fixed.cache)}
    if table is not None:
        facts["table"] = {"csv": str(table.path), "next": table.command}
    return facts


def text(found: Leaks, doubted: Doubts | None, fixed: Fixed | None, table: _Table | None, files: review.Files) -> str:
    """Return the result as a person reads it."""
    from featcache.text import printable

    lines = [*_what_was_compared(found), "", *_pairs(found), _verdict(found)]
    lines += [] if doubted is None else ["", *_doubts(doubted), *review.next_lines(doubted, files)]
    if table is not None:
        lines += [f"Table: {printable(str(table.path))}", f"Next: {printable(table.command)}"]
    elif fixed is None:
        lines += _remedy(found)
    lines += [] if fixed is None else ["", *_fixed(fixed)]
    return "\n".join(lines)


def _what_was_compared(found: Leaks) -> list[str]:
    from featcache.text import counted, printable

    at, seconds = found.thresholds, sum(found.seconds.values())
    lines = [f"{counted(found.images, 'image')}, compared by the features of {found.tap} in {seconds:.1f} s."]
    if at.agreement is None:
        lines.append(f"Threshold: similarity {at.features:.3f}, {at.why}.")
    else:
        lines.append(f"Pairs count whose pixels agree by {at.agreement:.2f}.")
        lines.append(f"Looked at: similarity from {at.features:.3f}, {at.why}; hashes from {at.hashes:.3f}.")
    if at.agreement is not None and found.unseen:
        lines.append(f"Where pixels could not be compared: similarity {at.alone:.3f}.")
    return lines + [f"{printable(note)}." for note in found.notes]


def _pairs(found: Leaks) -> list[str]:
    from featcache.extras.leaks import KINDS
    from featcache.text import table

    if not found.pairs:
        return ["No two images show the same."]
    rows = [
        [
            *(pair.a, pair.b, pair.kind, f"{pair.similarity:.3f}"),
            *("-" if pair.agreement is None else f"{pair.agreement:.2f}", _between(pair.splits)),
        ]
        for pair in found.pairs[:LISTED]
    ]
    more = len(found.pairs) - len(rows)
    counts = [
        [_between(splits), *(kinds.get(kind, 0) for kind in KINDS), sum(kinds.values())]
        for splits, kinds in found.counts.items()
    ]
    return [
        table(["image", "shows the same as", "kind", "features", "pixels", "splits"], rows),
        *([f"{more} more pairs: --json lists all."] if more else []),
        "",
        table(["pairs", *KINDS, "all"], counts),
        "",
    ]


def _between(splits: tuple[str, str]) -> str:
    return " - ".join(name or "none" for name in splits)


def _verdict(found: Leaks) -> str:
    from featcache.text import printable

    if not found.guarded:
        return "There are no splits that could share images."
    if not found.contaminated:
        return f"No image of {found.guarded} is in another split as well."
    paths = {path for pair in found.contaminating for path, split in _ends(pair) if split == found.guarded}
    shared = []
    if paths:
        shared.append(f"{len(paths)} of its images are in other splits as well")
    if groups := found.contaminating_groups:
        shared.append(f"{len(groups)} of its groups, such as '{printable(groups[0])}', have images in other splits")
    return f"{found.guarded} is contaminated: {' and '.join(shared)}, so scores on it are too good."


def _ends(pair: Any) -> list[tuple[str, str]]:
    return list(zip((pair.a, pair.b), pair.splits, strict=True))


def _remedy(found: Leaks) -> list[str]:

    if not found.crossing_groups and not any(pair.crosses for pair in found.pairs):
        return []
    return [f"Next: featcache leaks {in_shell(found.cache)} --fix   puts such images into one group and one split"]


def _doubts(doubted: Doubts) -> list[str]:
    from featcache.text import counted, printable, table

    lines = [
        f"Labels that look wrong: {len(doubted.doubts)} of {doubted.images}, to a logistic regression on {doubted.tap} "
        "that had seen neither the image nor a copy of it "
        f"(accuracy {doubted.accuracy:.3f}, {doubted.seconds:.1f} s)."
    ]
    if doubted.reviewed:
        lines.append(f"{doubted.reviewed} more were reviewed, so they are not listed again.")
    for photo in doubted.photos_of_two_labels[:LISTED]:
        places = " and ".join(f"{path} ({label})" for path, label in photo)
        lines.append(printable(f"One photo under {len({label for _, label in photo})} labels: {places}"))
    if doubted.unjudged:
        lines.append(f"Not judged: {counted(doubted.unjudged, 'image')} in classes that have too few others.")
    rows = [
        [doubt.path, doubt.label, doubt.suggested or "-", _share(doubt.probability), _share(doubt.of_suggested)]
        for doubt in doubted.doubts[:LISTED]
    ]
    more = len(doubted.doubts) - len(rows)
    lines += [table(["image", "label", "rather", "p(label)", "p(rather)"], rows)] if rows else []
    return lines + ([f"{more} more: --json lists all."] if more > 0 else [])


def _share(probability: float | None) -> str:
    return "-" if probability is None else f"{probability:.3f}"


def _fixed(fixed: Fixed) -> list[str]:
    from featcache.text import counted, printable, table

    lines = [
        f"Fixed in {printable(str(fixed.cache))}: {counted(fixed.images, 'image')} in "
        f"{counted(fixed.groups, 'group')}, each in one split. "
        f"{counted(len(fixed.moved), 'image')} moved" + (":" if fixed.moved else ".")
    ]
    if fixed.moved:
        rows = [[one.path, one.before, one.after] for one in fixed.moved[:LISTED]]
        lines.append(table(["image", "was in", "is in"], rows))
    more = len(fixed.moved) - LISTED
    lines += [f"{more} more: --json lists all."] if more > 0 else []
    lines.append("Images now: " + ", ".join(f"{count} {name}" for name, count in fixed.splits.items()) + ".")
    lines += [f"Nothing left: {'; '.join(map(printable, fixed.emptied))}."] if fixed.emptied else []
    if fixed.moved:
        lines.append("Runs from before are about other splits or groups. Sweep again: featcache sweep")
        lines.append(f"To take it back: featcache leaks {in_shell(fixed.cache)} --unfix")
    return lines
