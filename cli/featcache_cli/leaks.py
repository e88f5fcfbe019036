"""featcache leaks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from featcache.settings import LeaksOptions
from featcache.text import counts_text
from featcache_cli import review
from featcache_cli.output import (
    LISTED,
    Json,
    Quiet,
    emit,
    in_shell,
    listed_table,
    progress,
    remarks_in_flags,
)

if TYPE_CHECKING:
    from featcache.extras.leaks import Doubts, Fixed, Leaks

CONTAMINATED = 3  # exit code


def command(
    cache: Annotated[Path, typer.Argument(help="A CACHE.h5.")],
    options: LeaksOptions,
    repair: Annotated[
        bool,
        typer.Option("--fix", help="Change the cache so that images that show the same, and groups, are in one split."),
    ] = False,
    fix_to: Annotated[
        Path | None,
        typer.Option(
            "--fix-to", help="Like --fix, but write a CSV (path, label, split, group) and leave the cache as it is."
        ),
    ] = None,
    unfix: Annotated[bool, typer.Option("--unfix", help="Undo every change that --fix made to the cache.")] = False,
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
        others = {
            "--fix": repair,
            "--fix-to": fix_to,
            "--csv": csv,
            "--html": html,
            "--force": force,
            "--tap": options.tap is not None,
            "--images": options.images,
            "--threshold": options.threshold != LeaksOptions.threshold,
        }
        review.check_alone(others)
        review.change(cache, apply, unapply, unfix, json, quiet)
        return
    # Comparing takes minutes, so files that cannot be written are refused before it.
    images = options.images
    review.check_files(cache, labels, csv, html, images, force)
    if fix_to is not None:
        check_table(cache, fix_to, images, force=force)
    files = review.Files(cache, csv, html)
    stays = True
    with progress(quiet) as draw:
        result = leaks(cache, progress=draw, **vars(options))
        doubted = doubts(result, tap=options.tap, progress=draw) if labels else None
        if doubted is not None:
            review.write_files(doubted, files, images, force, draw)
        if fix_to is not None:
            stays = write_table(result, fix_to, images, force=force)
        fixed = fix(result, progress=draw) if repair else None
    table = None
    if fix_to is not None:
        compared_tap = Cache.open(result.cache).taps[result.tap]
        table = _FixedTable(fix_to, stays, flags_of([compared_tap]))
    emit(json, document(result, doubted, fixed, table, files), lambda: text(result, doubted, fixed, table, files))
    if result.contaminated and fixed is None:
        raise typer.Exit(CONTAMINATED)


class _FixedTable(NamedTuple):
    """A table written by --fix-to."""

    path: Path
    stays: bool  # whether its images lie in the folder of the table
    flags: str  # options of the extraction whose features were compared

    @property
    def command(self) -> str:
        """Return the command that extracts from the table."""
        outside = "" if self.stays else " --allow-outside"
        out = quote(str(self.path.with_suffix(".h5")))
        return f"featcache extract {quote(str(self.path))}{outside} {self.flags} -o {out}"


def document(
    result: Leaks, doubted: Doubts | None, fixed: Fixed | None, table: _FixedTable | None, files: review.Files
) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    pairs = [asdict(pair) | {"splits": list(pair.splits)} for pair in result.pairs]
    counts = [{"splits": list(splits), **kinds} for splits, kinds in result.counts.items()]
    facts: dict[str, Any] = {
        "cache": str(result.cache),
        "tap": result.tap,
        "images": result.images,
        "pairs": pairs,
        "contaminated": result.contaminated,
        "guarded": result.guarded,
        "crossing_groups": {group: dict(splits) for group, splits in result.crossing_groups.items()},
        "counts": counts,
        "thresholds": asdict(result.thresholds),
        "features_only": result.unseen,
        "notes": remarks_in_flags(result.notes),
        "seconds": dict(result.seconds),
    }
    if doubted is not None:
        facts["labels"] = [asdict(doubt) for doubt in doubted.doubts]
        facts["labels_judged"] = {
            "images": doubted.images,
            "unjudged": doubted.unjudged,
            "reviewed": doubted.reviewed,
            "accuracy": doubted.accuracy,
            "tap": doubted.tap,
            "seconds": doubted.seconds,
        }
        facts["labels_files"] = files.to_json()
    if fixed is not None:
        facts["fixed"] = asdict(fixed) | {"cache": str(fixed.cache)}
    if table is not None:
        facts["table"] = {"csv": str(table.path), "next": table.command}
    return facts


def text(
    result: Leaks, doubted: Doubts | None, fixed: Fixed | None, table: _FixedTable | None, files: review.Files
) -> str:
    """Return the result as a person reads it."""
    from featcache.text import printable

    splits_share_images = bool(result.crossing_groups) or any(pair.crosses for pair in result.pairs)
    lines = [*_comparison(result), "", *_pairs(result), printable(result.verdict(was_fixed=fixed is not None))]
    if doubted is not None:
        lines += ["", *_doubts(doubted), *review.next_lines(doubted, files)]
    if table is not None:
        lines += [f"Table: {printable(str(table.path))}", f"Next: {printable(table.command)}"]
    elif fixed is None and splits_share_images:
        repair = f"featcache leaks {in_shell(result.cache)} --fix"
        lines += ["--fix puts such images into one group and one split.", f"Next: {repair}"]
    if fixed is not None:
        lines += ["", *_fixed(fixed, result.guarded if result.contaminated else "")]
    return "\n".join(lines)


def _comparison(result: Leaks) -> list[str]:
    """Return how the images were compared, and from which thresholds on a pair counts."""
    from featcache.text import counted, printable

    thresholds = result.thresholds
    seconds = sum(result.seconds.values())
    lines = [f"{counted(result.images, 'image')}, compared by the features of {result.tap} in {seconds:.1f} s."]
    if thresholds.agreement is None:
        lines.append(f"Threshold: similarity {thresholds.features:.3f}, {thresholds.why}.")
    else:
        lines.append(f"Pairs count whose pixels agree by {thresholds.agreement:.2f}.")
        similarity = f"similarity from {thresholds.features:.3f}, {thresholds.why}"
        lines.append(f"Looked at: {similarity}; hashes from {thresholds.hashes:.3f}.")
        if result.unseen:
            lines.append(f"Where pixels could not be compared: similarity {thresholds.alone:.3f}.")
    lines += [f"{printable(note)}." for note in remarks_in_flags(result.notes)]
    return lines


def _pairs(result: Leaks) -> list[str]:
    from featcache.text import table

    if not result.pairs:
        return ["No two images show the same."]
    lines = [table(*result.pair_table(LISTED))]
    if len(result.pairs) > LISTED:
        lines.append(f"{len(result.pairs) - LISTED} more pairs: --json lists all.")
    return [*lines, "", table(*result.count_table()), ""]


def _doubts(doubted: Doubts) -> list[str]:
    from featcache.text import counted, printable

    lines = [
        f"Labels that look wrong: {len(doubted.doubts)} of {doubted.images}, to a logistic regression on {doubted.tap} "
        "that had seen neither the image nor a copy of it "
        f"(accuracy {doubted.accuracy:.3f}, {doubted.seconds:.1f} s)."
    ]
    if doubted.reviewed:
        lines.append(f"{doubted.reviewed} more were reviewed, so they are not listed again.")
    for photo in doubted.photos_of_two_labels[:LISTED]:
        labels = {label for _, label in photo}
        places = " and ".join(f"{path} ({label})" for path, label in photo)
        lines.append(printable(f"One photo under {len(labels)} labels: {places}"))
    if doubted.unjudged:
        lines.append(f"Not judged: {counted(doubted.unjudged, 'image')} in classes that have too few others.")
    rows = []
    for doubt in doubted.doubts:
        probabilities = [_three_digits(doubt.probability), _three_digits(doubt.of_suggested)]
        rows.append([doubt.path, doubt.label, doubt.suggested or "-", *probabilities])
    return lines + listed_table(["image", "label", "rather", "p(label)", "p(rather)"], rows)


def _three_digits(probability: float | None) -> str:
    return "-" if probability is None else f"{probability:.3f}"


def _fixed(fixed: Fixed, repaired: str) -> list[str]:
    """Return what the fix changed. repaired: the split that was contaminated, or ""."""
    from featcache.text import counted, printable

    images = counted(fixed.images, "image")
    groups = counted(fixed.groups, "group")
    moved = f"{counted(len(fixed.moved), 'image')} moved" + (":" if fixed.moved else ".")
    lines = [f"Fixed in {printable(str(fixed.cache))}: {images} in {groups}, each in one split. {moved}"]
    lines += review.moves_table(fixed.moved)
    lines.append(f"Images now: {counts_text(fixed.splits)}.")
    if repaired:
        lines.append(f"Now no image of {repaired} is in another split as well.")
    if fixed.emptied:
        lines.append(f"Nothing left: {'; '.join(map(printable, fixed.emptied))}.")
    if fixed.moved:
        cache = in_shell(fixed.cache)
        lines.append(f"Runs from before are about other splits or groups. Sweep again: featcache sweep {cache}")
        lines.append(f"To take it back: featcache leaks {cache} --unfix")
    return lines
