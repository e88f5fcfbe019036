"""Which images must stay in one split: the rule that gives an image its group, and what came of it.

A requested rule that does nothing is an error. A rule that groups only a part of the images gives a remark.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from featcache.errors import UsageError
from featcache.images.listing import SPLIT_NAMES, Listed
from featcache.spec import SPLITS, ImageRow

GroupOf = Callable[[Listed], str]

NO_GROUP = {
    "parent": "The group is the folder inside the class folder, as in roses/plant_7/1.jpg",
    "regex": "The pattern is searched in paths as this one is written",
    "csv": "The column has no value there",
}


@dataclass(frozen=True)
class Groups:
    """How many groups the images are in, and whether they stay together."""

    count: int
    least: int  # images in the smallest group
    most: int
    ungrouped: int  # images without a group
    crossing: int  # groups that stand in several splits


def summary(rows: Iterable[ImageRow]) -> Groups:
    """Return how many groups there are and how many images they have."""
    rows = list(rows)
    sizes = Counter(row.group for row in rows)
    ungrouped = sizes.pop("", 0)
    counts = sizes.values()
    return Groups(
        count=len(sizes),
        least=min(counts, default=0),
        most=max(counts, default=0),
        ungrouped=ungrouped,
        crossing=len(crossing_groups(rows)),
    )


def crossing_groups(rows: Iterable[ImageRow]) -> Mapping[str, Mapping[str, int]]:
    """Return {group: {split: images}} of the groups that stand in several splits, by name."""
    splits_of: dict[str, Counter[str]] = {}
    for row in rows:
        if row.group and row.split:
            splits_of.setdefault(row.group, Counter())[row.split] += 1
    crossing: dict[str, Mapping[str, int]] = {}
    for group, counts in sorted(splits_of.items()):
        if len(counts) > 1:
            crossing[group] = {split: counts[split] for split in SPLITS if split in counts}
    return crossing


def crossing_remark(rows: Sequence[ImageRow], fixed_paths: Collection[str]) -> str:
    """Return a sentence on the groups that stand in several splits, and why, or "".

    fixed_paths: paths of the images whose split a folder or a table sets.
    """
    crossing = crossing_groups(rows)
    if not crossing:
        return ""
    count = len({row.group for row in rows if row.group})
    name, splits = next(iter(crossing.items()))
    is_fixed = any(row.group in crossing and row.path in fixed_paths for row in rows)
    why = "folders or a table give the splits" if is_fixed else "stored splits never move, and later images link them"
    return (
        f"{len(crossing)} of {count} groups stand in several splits, such as '{name}' in {' and '.join(splits)}, since "
        f"{why}: scores on those splits are too good"
    )


def rule_of(group_from: str | None) -> tuple[str | None, GroupOf]:
    """Return the column of a table that has the groups, if the rule names one, and the group of an image.

    Raises UsageError if there is no such rule.
    """
    kind, _, value = (group_from or "").partition(":")
    if group_from is None or (kind == "csv" and value):
        return value or None, lambda file: file.group
    if group_from == "parent":
        return None, _parent
    if kind != "regex" or not value:
        raise UsageError(f"`group_from` takes parent, regex:PATTERN or csv:COLUMN; got '{group_from}'")
    return None, _matched(value)


def check(group_from: str, files: Sequence[Listed], groups: Sequence[str]) -> None:
    """Raise UsageError if the rule gives no image a group, or if `parent` only gives the folders of classes."""
    kind = group_from.partition(":")[0]
    if not any(groups):
        raise UsageError(
            f"'{group_from}' gives none of {len(files)} images a group, such as {files[0].path}. {NO_GROUP[kind]}"
        )
    if kind != "parent" or not _are_classes(files, groups):
        return
    # Where the label stands in the path, the groups are folders inside it, and each class merely has a single one.
    labels_are_folders = any(file.label in file.path.split("/") for file in files)
    if not labels_are_folders:
        raise UsageError(
            f"'parent' makes each class one group, since all images of a class lie in one folder, such as {groups[0]}. "
            f"{NO_GROUP['parent']}"
        )


def remarks(group_from: str, files: Sequence[Listed], groups: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence on each effect of the rule that the user may not have meant."""
    ungrouped = [file.path for file, group in zip(files, groups, strict=True) if not group]
    sizes = Counter(group for group in groups if group)
    sentences = []
    if ungrouped:
        sentences.append(
            f"'{group_from}' gives {len(ungrouped)} of {len(files)} images no group, such as {ungrouped[0]}, so that "
            f"nothing keeps these together. {NO_GROUP[group_from.partition(':')[0]]}"
        )
    example = f"'{min(sizes)}'"
    if max(sizes.values()) == 1:
        sentences.append(
            f"'{group_from}' gives every image another group, such as {example}: it keeps nothing together"
        )
    elif len(sizes) == 1:
        sentences.append(f"'{group_from}' puts {sizes.total()} images into one group, {example}, so into one split")
    elif _are_classes(files, groups):
        sentences.append(f"'{group_from}' makes each class one group, so that each class is in one split only")
    return tuple(sentences)


def _are_classes(files: Sequence[Listed], groups: Sequence[str]) -> bool:
    """Return whether every class is one group and every group one class."""
    pairs = {(file.label, group) for file, group in zip(files, groups, strict=True)}
    labels = {label for label, _ in pairs}
    if len(labels) < 2 or "" in labels or "" in groups:
        return False
    return len(labels) == len(pairs) == len(set(groups))


def without_split(path: str) -> str:
    """Return the path without its first folder that has the name of a split.

    >>> without_split("train/roses/plant_7"), without_split("roses/plant_7")
    ('roses/plant_7', 'roses/plant_7')
    """
    folders = path.split("/")
    for number, folder in enumerate(folders):
        if folder.lower() in SPLIT_NAMES:
            del folders[number]
            break
    return "/".join(folders)


def _parent(file: Listed) -> str:
    """Return the folder inside the class folder, `roses/plant_7/1.jpg`; an image directly in its class has no group.

    A folder that is in train and in test under one name is one group in two splits.
    """
    folder = file.path.rpartition("/")[0]
    innermost = folder.rpartition("/")[2]
    if innermost in ("", file.label):
        return ""
    return without_split(folder) if file.split else folder


def _matched(pattern: str) -> GroupOf:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"`group_from`: '{pattern}' is no regular expression ({error})") from error
    if compiled.groups > 1:
        raise UsageError(
            f"`group_from`: '{pattern}' has {compiled.groups} groups in parentheses, and any of them could be meant. "
            "Keep one, and write the others as (?:...)"
        )

    def group_of(file: Listed) -> str:
        match = compiled.search(file.path)
        if match is None:
            return ""
        # Parentheses that took no part in the match, as in x|p(1), give None.
        return match[compiled.groups] or ""

    return group_of
